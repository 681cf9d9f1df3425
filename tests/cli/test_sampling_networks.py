"""Networks that a job draws with: held in half precision, compiled, and what records say of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo import config as dynamo

from ldm.cli.sampling.classes import Sample
from ldm.cli.sampling.flags import check_flags, sampling_parser
from ldm.cli.sampling.image_to_image import ImageToImage
from ldm.cli.sampling.networks import prepare_networks
from ldm.cli.sampling.record import read_record
from ldm.cli.sampling.weak import Weak
from ldm.config import ConfigError, load, to_plain, without_checkpoints
from ldm.guidance.autoguidance import Autoguided
from ldm.samplers.names import sampler_named
from tests.cli.jobs import built, draw, job
from tests.cli.runs import ROOT, pixels, second_stage, unconditional

GUIDANCE = {
    "free": ["--scale", "2"],
    "interval": ["--scale", "2", "--interval", "0.2", "0.8"],
    "all": [
        *("--scale", "2", "--interval", "0.2", "0.8", "--rescale", "0.5", "--project", "3"),
    ],
    "tiled": ["--scale", "2", "--tile", "8", "8"],
}


def by_class():
    config = second_stage()
    unet = config["model"]["params"]["unet_config"]["params"]
    unet |= {"channel_mult": [1], "attention_resolutions": []}
    return built(config)


def flags(*words):
    parser = sampling_parser("")
    Sample().add_flags(parser)
    args = parser.parse_args(["run", *words])
    check_flags(args)
    return args


def names(out):
    return sorted(path.name for path in out.glob("[0-9]*.png"))


def difference(one, other):
    """In levels of 255, over all pictures."""
    assert names(one) == names(other)
    pairs = ((pixels(one / n).astype(int), pixels(other / n).astype(int)) for n in names(one))
    return max(np.abs(a - b).max() for a, b in pairs)


def test_held_weights_draw_the_same_to_the_last_bit(tmp_path):
    words = ["--precision", "bf16", "--classes", 3, "--n", 3, "--steps", 3, "--scale", 2]
    model = by_class()
    draw(model, tmp_path / "cast", *words)
    prepare_networks(model, flags("--precision", "bf16"))
    assert torch.bfloat16 in {p.dtype for p in model.ema_denoiser.net.parameters()}
    assert {p.dtype for p in model.denoiser.net.parameters()} == {torch.float32}
    draw(model, tmp_path / "held", *words)
    assert difference(tmp_path / "cast", tmp_path / "held") == 0


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_in_full_precision_networks_stay_as_they_are(weights):
    model = by_class()
    prepare_networks(model, flags("--weights", weights))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.ema_denoiser.net.diffusion_model._compiled_call_impl is None


def test_the_network_of_weak_is_prepared_too():
    model, weak = by_class(), by_class()
    args = flags("--precision", "bf16", "--compile")
    args.weak_model = Weak(weak, weak.ema_denoiser, "")
    prepare_networks(model, args)
    for each in (model, weak):
        net = each.ema_denoiser.net.diffusion_model
        assert net._compiled_call_impl is not None
        assert torch.bfloat16 in {p.dtype for p in net.parameters()}


def test_graphs_away_from_cuda_are_refused():
    with pytest.raises(ConfigError, match=r"--compile graphs: CUDA graphs need .* is on cpu"):
        prepare_networks(by_class(), flags("--compile", "graphs"))


def test_graphs_are_asked_for_by_their_mode(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: modes.append(how))
    model = by_class()
    on_gpu = SimpleNamespace(device=torch.device("cuda"), ema_denoiser=model.ema_denoiser)
    for words in (["--compile"], ["--compile", "graphs"]):
        prepare_networks(on_gpu, flags(*words))
        assert model.ema_denoiser.net.is_replayed is (len(words) > 1)
    assert modes == [
        {"dynamic": False, "mode": None},
        {"dynamic": False, "mode": "reduce-overhead"},
    ]


def test_what_a_replayed_graph_returns_is_kept_from_the_next_call():
    net = by_class().denoiser.net
    buffer = torch.zeros(1, 4, 8, 8)
    net.diffusion_model.forward = lambda x, t, context: buffer.copy_(x)
    net.is_replayed = True
    x, t = torch.ones(1, 4, 8, 8), torch.zeros(1)
    cond = by_class().conditioner({"class_label": torch.tensor([0])})
    first = net(x, t, cond)
    net(2 * x, t, cond)
    assert torch.equal(first, x)


@pytest.mark.slow  # traces networks
@pytest.mark.parametrize("kind", GUIDANCE)
def test_a_job_compiles_once_per_size_of_batch_whatever_guides_it(kind, tmp_path, counted):
    words = ["--classes", 3, 5, 7, "--n", 3, "--batch-size", 4, "--steps", 6, *GUIDANCE[kind]]
    plain, compiled = by_class(), by_class()
    draw(plain, tmp_path / "plain", *words)
    prepare_networks(compiled, flags("--compile"))
    draw(compiled, tmp_path / "compiled", "--compile", *words)
    assert difference(tmp_path / "plain", tmp_path / "compiled") <= 1
    # both halves of guidance, and one alone outside of an interval; the last batch has one image
    assert counted.frame_count == 1 + ("--interval" in GUIDANCE[kind])


@pytest.mark.slow  # traces networks
def test_a_job_of_more_sizes_than_torch_compiles_is_compiled_for_each(tmp_path, counted):
    config = unconditional()
    network = {"channel_mult": [1], "attention_resolutions": []}
    config["model"]["params"]["unet_config"]["params"] |= network
    given = tmp_path / "in"
    given.mkdir()
    num_sizes = dynamo.recompile_limit + 2
    for index in range(num_sizes):
        Image.new("RGB", (8 + 2 * index, 8)).save(given / f"{index:02}.png")
    words = [given, "--n", 2, "--steps", 2, "--strength", 1]
    plain, compiled = built(config), built(config)
    draw(plain, tmp_path / "plain", *words, task=ImageToImage())
    prepare_networks(compiled, flags("--compile"))
    draw(compiled, tmp_path / "compiled", *words, "--compile", task=ImageToImage())
    assert counted.frame_count == num_sizes
    assert difference(tmp_path / "plain", tmp_path / "compiled") <= 1


@pytest.mark.slow  # traces networks
def test_a_weak_network_of_the_same_shape_shares_the_compilation(counted):
    model, weak = by_class(), by_class()
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter.mul_(0.9)
    args = flags("--compile")
    args.weak_model = Weak(weak, weak.ema_denoiser, "")
    labels = {"class_label": torch.tensor([3, 5])}

    def drawn():
        guide = lambda denoiser, null: Autoguided(denoiser, weak.ema_denoiser, 2.0)  # noqa: E731
        return model.sample([1, 2], labels, steps=4, guide=guide)

    want, alone = drawn(), model.sample([1, 2], labels, steps=4)
    prepare_networks(model, args)
    torch.testing.assert_close(drawn(), want, rtol=1e-4, atol=1e-4)
    assert (want - alone).abs().max() > 1e-2
    assert counted.frame_count == 1


@pytest.mark.slow  # traces networks
@pytest.mark.parametrize("name", ["ddpm", "ldm-class", "ldm-text", "ldm-uncond", "ldm-vq"])
def test_the_tiny_models_draw_compiled(name, counted, monkeypatch):
    monkeypatch.chdir(ROOT)
    model = built(without_checkpoints(to_plain(load([ROOT / "configs/tiny" / f"{name}.yaml"]))))
    entries = {"ldm-class": {"class_label": torch.tensor([1, 2])}, "ldm-text": {"caption": TEXTS}}
    batch = {
        part.key: entries[name].get(part.key, torch.tensor([1, 2]))
        for part in model.conditioner.parts
    }
    options = {"steps": 3, "scale": 2.0 if batch else 1.0}
    want = model.sample([1, 2], batch or None, **options)
    prepare_networks(model, flags("--compile"))
    for _ in range(2):
        got = model.sample([1, 2], batch or None, **options)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert counted.frame_count == 1


TEXTS = ["a red circle", "a blue square"]


def test_a_smaller_batch_of_a_compiled_job_is_filled_up(tmp_path):
    words = ["--classes", 3, "--n", 7, "--batch-size", 4]
    batches = [range(4), range(4, 7)]
    model = by_class()
    compiled = job(model, tmp_path, "--compile", *words)
    assert compiled.batches() == batches
    assert [compiled.together(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 6]]
    plain = job(model, tmp_path, *words)
    assert [plain.together(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6]]
    # there is no larger batch to be like
    alone = job(model, tmp_path, "--compile", *words[:3], 2)
    assert alone.together(range(2)) == [0, 1]


def test_the_record_names_what_was_drawn_beside_and_that_it_was_compiled(tmp_path):
    words = ["--classes", 3, "--n", 3, "--batch-size", 2, "--steps", 2]
    made = job(by_class(), tmp_path, "--compile", *words)
    for batch in made.batches():
        made.write(batch)
    assert names(tmp_path) == ["00000.png", "00001.png", "00002.png"]
    record = read_record(tmp_path / "00002.png")
    assert [item["seed"] for item in record.items] == [2, 2]
    assert record.index == 0
    assert record.flags["compiled"] is True
    draw(by_class(), tmp_path / "plain", "--classes", 3, "--n", 1, "--steps", 2)
    assert read_record(tmp_path / "plain" / "00000.png").flags["compiled"] is None
    with Image.open(tmp_path / "plain" / "00000.png") as image:
        assert "compiled" not in image.text


def test_previews_of_a_filled_up_batch_are_of_its_images(tmp_path):
    words = ["--classes", 3, "--n", 3, "--batch-size", 2, "--steps", 2, "--preview", "row"]
    draw(by_class(), tmp_path, "--compile", *words)
    assert len(list(tmp_path.glob("*_row.png"))) == 3


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "plms", "unipc"])
def test_graphs_draw_what_the_compiled_network_draws(sampler):
    images, labels = [], {"class_label": torch.tensor([3, 5], device="cuda")}
    for mode in ("default", "graphs"):
        torch.compiler.reset()
        model = by_class().to("cuda")
        prepare_networks(model, flags("--compile", mode, "--weights", "raw"))
        options = {"steps": 6, "scale": 2.0, "sampler": sampler_named(sampler), "weights": "raw"}
        for _ in range(3):  # graphs are recorded in the first calls
            drawn = model.sample([1, 2], labels, **options)
        images.append(drawn)
    # multistep samplers keep what the network returned: a graph must not have overwritten it
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)
