"""A VQ first stage with any quantizer: options, training, measures of its codebook."""

import copy

import pytest
import torch

from ldm.config import ConfigError
from ldm.diffusion.draws import KeyedDraws
from ldm.models.autoencoder import VQModelInterface
from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.quantizer_ema import EMAVectorQuantizer
from tests.models.first_stages import NETWORK, Images, tiny_vq
from tests.models.processes import in_two_processes
from tests.models.test_first_stage_module import CSVLogger, collate, loader, rows, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*number of training batches.*is smaller than the logging"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
SIZE = {"n_e": 16, "e_dim": 3}
CONFIGS = {
    "published": None,
    "l2 and restart": {
        "target": "ldm.nets.quantizer.VectorQuantizer",
        "params": {**SIZE, "l2_norm": True, "restart": True},
    },
    "ema": {
        "target": "ldm.nets.quantizer_ema.EMAVectorQuantizer",
        "params": {
            **SIZE,
            "l2_norm": True,
            "rotation": True,
            "restart": {
                "target": "ldm.nets.quantizer_cures.Restart",
                "params": {"threshold": 0.5, "memory": 1},
            },
            "kmeans_init": {
                "target": "ldm.nets.quantizer_cures.KMeansInit",
                "params": {"latents_per_code": 4},
            },
        },
    },
    "simvq": {"target": "ldm.nets.quantizer_simvq.SimVQ", "params": SIZE},
    "fsq": {"target": "ldm.nets.quantizer_fsq.FSQ", "params": {"levels": [4, 2, 2]}},
    "gumbel": {
        "target": "ldm.nets.quantizer_gumbel.GumbelQuantizer",
        "params": {
            **SIZE,
            "temperature": {
                "target": "ldm.nets.quantizer_gumbel.CosineAnnealing",
                "params": {"steps": 4},
            },
        },
    },
}
EACH = pytest.mark.parametrize("name", CONFIGS)


def model_with(name, loss=(), **options):
    torch.manual_seed(0)
    return tiny_vq(loss, quantizer_config=CONFIGS[name], **options)


@EACH
def test_first_stage_takes_any_quantizer(name):
    model = model_with(name).eval()
    with torch.no_grad():
        made = model.autoencode(torch.randn(2, 3, 16, 16), None)
        image = model.decode_code(made.codes.view(2, 8, 8))
    torch.testing.assert_close(image, made.reconstruction, rtol=1e-4, atol=1e-5)


def test_quantizer_may_be_an_object():
    quantizer = EMAVectorQuantizer(16, 3)
    assert tiny_vq(quantizer_config=quantizer).quantize is quantizer


def test_default_is_the_published_quantizer_with_its_names():
    names = [name for name in tiny_vq().state_dict() if name.startswith("quantize.")]
    assert names == ["quantize.embedding.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"quantizer_config": EMAVectorQuantizer(16, 4)},
            "EMAVectorQuantizer has 4 channels, but embed_dim=3",
        ),
        (
            {"quantizer_config": EMAVectorQuantizer(8, 3)},
            "EMAVectorQuantizer has 8 codes, but n_embed=16",
        ),
        ({"quantizer_config": CONFIGS["fsq"], "remap": "used.npy"}, "remap: 'used.npy' beside"),
        (
            {"quantizer_config": CONFIGS["fsq"], "sane_index_shape": True},
            "sane_index_shape: True beside quantizer_config",
        ),
        ({"quantizer_config": torch.nn.Identity()}, "quantizer_config: expected .*, got Identity"),
        (
            {
                "quantizer_config": {
                    "target": "ldm.nets.quantizer_fsq.FSQ",
                    "params": {"levels": [1]},
                }
            },
            r"quantizer_config\.params\.levels=\[1\]|quantizer_config: levels=\[1\]",
        ),
        (
            {
                "quantizer_config": {
                    "target": "ldm.nets.quantizer.VectorQuantizer",
                    "params": {**SIZE, "l2norm": True},
                }
            },
            r"quantizer_config\.params\.l2norm: .*did you mean 'l2_norm'",
        ),
    ],
    ids=["width", "codes", "remap", "shape", "no quantizer", "value", "misspelt"],
)
def test_quantizer_that_does_not_fit_is_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_vq(**options)


def test_diffusion_quantizes_with_it_when_it_decodes():
    torch.manual_seed(0)
    network = {**NETWORK, "double_z": False}
    quantizer = EMAVectorQuantizer(16, 3, l2_norm=True)
    model = VQModelInterface(network, torch.nn.Identity(), 16, 3, quantizer_config=quantizer)
    z = model.eval().encode(torch.randn(1, 3, 16, 16))
    quantized = quantizer(z)[0]
    torch.testing.assert_close(model.decode(z), model.decode(quantized, force_not_quantize=True))


@pytest.mark.parametrize("name", ["l2 and restart", "ema"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_cures_go_on_from_a_checkpoint_without(name, device, tmp_path):
    path = tmp_path / "published.ckpt"
    source = tiny_vq()
    torch.save({"state_dict": source.state_dict()}, path)
    network = {**NETWORK, "double_z": False}
    with torch.device(device):
        model = VQModelInterface(
            network,
            torch.nn.Identity(),
            16,
            3,
            quantizer_config=CONFIGS[name],
            ckpt_path=str(path),
        )
    assert torch.equal(model.quantize.embedding.weight, source.quantize.embedding.weight)
    assert model.quantize.usage.tolist() == [1.0] * 16
    if name == "ema":
        assert model.quantize.is_initialized


def test_a_codebook_that_is_ignored_brings_no_counters(tmp_path):
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": tiny_vq().state_dict()}, path)
    model = model_with("ema", ckpt_path=str(path), ignore_keys=["quantize."])
    assert not model.quantize.is_initialized


# training


def collecting():
    """K-means waits for the latents of five of the eight steps."""
    config = copy.deepcopy(CONFIGS["ema"])
    config["params"]["kmeans_init"]["params"]["latents_per_code"] = 40
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, "ema, collecting"])
def test_resumed_run_equals_the_uninterrupted_one(name, tmp_path):
    def fit(max_epochs, **fit_arguments):
        torch.manual_seed(0)
        config = collecting() if name == "ema, collecting" else CONFIGS[name]
        model = tiny_vq({"disc_start": 2}, quantizer_config=config, use_ema=True)
        model.learning_rate = 1e-3
        run = trainer(tmp_path, max_epochs=max_epochs)
        torch.manual_seed(len(fit_arguments))  # nothing is drawn from this generator
        run.fit(model, loader(), **fit_arguments)
        return run, model

    _, whole = fit(max_epochs=2)
    run, half = fit(max_epochs=1)
    run.save_checkpoint(tmp_path / "half.ckpt")
    again, resumed = fit(max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert again.global_step == 8
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert torch.equal(resumed._window.codes(), whole._window.codes())
    if name.startswith("ema"):  # on either side of the initialization
        assert bool(half.quantize.is_initialized) == (name == "ema")
        assert whole.quantize.is_initialized


def test_drawn_codes_of_an_image_do_not_depend_on_its_batch():
    model = model_with("gumbel")
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def codes(rows, **place):
        draws = KeyedDraws(rows, **{"seed": 1, "step": 2} | place)
        return model.autoencode(images[rows], draws).codes.view(len(rows), -1)

    together = codes([0, 1, 2])
    assert torch.equal(codes([1])[0], together[1])
    assert not torch.equal(codes([0, 1, 2], step=3), together)
    likely = [model.autoencode(images, None).codes for _ in range(2)]
    assert torch.equal(*likely)


@pytest.mark.slow
@pytest.mark.parametrize("gan_forward", ["shared", "published"])
@EACH
def test_accumulated_batches_are_learned_from_once(name, gan_forward, tmp_path):
    """Passes that are made again, for the discriminator, do not count twice."""
    model = model_with(name, gan_forward=gan_forward)
    model.accumulate_grad_batches = 2
    seen = []
    model.quantize.register_forward_hook(lambda *_: seen.append(1))
    trainer(tmp_path, max_steps=1).fit(model, loader(batch_size=2))
    assert len(seen) == 4  # two micro-batches, twice
    use = model._window.use()
    assert use.num_counted == 2 * 2 * 8 * 8


@pytest.mark.slow
def test_average_of_weights_has_the_codebook_that_moves_by_itself(tmp_path):
    model = model_with("ema", use_ema=True)
    trainer(tmp_path, max_steps=3).fit(model, loader())
    average = model.model_ema.module["quantize"]
    assert torch.equal(average.codes(), model.quantize.codes())


@pytest.mark.slow
def test_temperature_follows_the_step(tmp_path):
    model = model_with("gumbel")
    trainer(tmp_path, max_steps=3).fit(model, loader())
    annealing = model.quantize.annealing
    assert model.quantize.temperature == annealing(2) != annealing(0)


# measures


@pytest.mark.slow
def test_training_logs_the_window_as_often_as_the_trainer_logs(tmp_path):
    model = model_with("published")
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1)
    run = trainer(tmp_path, max_steps=7, logger=logger, log_every_n_steps=3)
    measured = []
    original = model._window.use
    model._window.use = lambda device: measured.append(run.global_step) or original(device)
    run.fit(model, loader())
    steps = [2, 5]
    assert measured == [3, 6]  # after the moves of these steps, and in no other
    for name in ("codebook_usage", "codebook_perplexity"):
        found = rows(tmp_path, f"train/{name}")
        assert [step for step, _ in found] == steps
    usage, perplexity = (
        rows(tmp_path, f"train/codebook_{name}")[-1][1] for name in ("usage", "perplexity")
    )
    assert 1 / 16 <= usage <= 1
    assert 1 <= perplexity <= 16 * usage + 1e-3


def test_validation_counts_the_codes_of_all_batches(tmp_path):
    model = model_with("published").eval()
    metrics = trainer(tmp_path).validate(model, loader(length=7, batch_size=2), verbose=False)[0]
    with torch.no_grad():
        images = model.get_input(collate([Images(7)[i] for i in range(7)]))
        codes = model.autoencode(images, None).codes
    share = torch.bincount(codes, minlength=16) / len(codes)
    entropy = -torch.special.xlogy(share, share).sum()
    assert metrics["val/codebook_codes"] == 7 * 8 * 8
    assert metrics["val/codebook_usage"] == pytest.approx(len(codes.unique()) / 16)
    assert metrics["val/perplexity"] == pytest.approx(entropy.exp().item(), rel=1e-5)


def test_average_and_test_have_counts_of_their_own(tmp_path):
    model = model_with("published", {"n_classes": 16, "disc_start": 100}, use_ema=True).eval()
    with torch.no_grad():  # the live encoder has only one code left
        model.quant_conv.weight.zero_()
        model.quant_conv.bias.zero_()
    metrics = trainer(tmp_path).validate(model, loader(), verbose=False)[0]
    assert metrics["val/perplexity"] == 1
    assert metrics["val/codebook_usage"] == 1 / 16
    assert metrics["val/cluster_usage"] == 1
    assert metrics["val_ema/perplexity"] > 1
    assert metrics["val_ema/codebook_codes"] == 8 * 8 * 8
    tested = trainer(tmp_path).test(model, loader(), verbose=False)[0]
    assert tested["test/codebook_usage"] == 1 / 16
    assert tested["test_ema/perplexity"] > 1


def test_codes_of_a_remapped_codebook_are_shares_of_those_in_use():
    quantizer = VectorQuantizer(16, 3, remap=torch.arange(0, 16, 2), unknown_index="extra")
    assert tiny_vq(quantizer_config=quantizer)._window.num_codes == 9


def validate(rank, world, path):
    torch.set_num_threads(1)
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy
    from torch.utils.data import DataLoader, Subset

    model = model_with("ema", {"disc_start": 100})
    run = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_steps=4,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    part = Subset(Images(8), range(rank, 8, world))
    data = DataLoader(part, batch_size=2, collate_fn=collate)
    run.fit(model, data)
    logged = {k: float(v) for k, v in run.callback_metrics.items() if "codebook" in k}
    metrics = run.validate(model, data, verbose=False)[0]
    with torch.no_grad():
        images = model.get_input(collate([Images(8)[i] for i in range(8)]))
        codes = model.eval().autoencode(images, None).codes
    torch.save(
        {"metrics": metrics, "train": logged, "codes": codes, "codebook": model.quantize.codes()},
        f"{path}{rank}",
    )


@pytest.mark.slow
def test_two_processes_have_one_codebook_and_measure_all_codes(tmp_path):
    in_two_processes(validate, str(tmp_path / "rank"))
    first, second = (torch.load(path, weights_only=True) for path in sorted(tmp_path.iterdir()))
    assert torch.equal(first["codebook"], second["codebook"])
    for rank in (first, second):
        assert rank["metrics"]["val/codebook_codes"] == 8 * 8 * 8
        used = len(rank["codes"].unique())
        assert rank["metrics"]["val/codebook_usage"] == pytest.approx(used / 16)
    assert first["train"].keys() == {"train/codebook_usage", "train/codebook_perplexity"}
    assert first["train"] == second["train"]
