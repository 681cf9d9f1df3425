"""The autoencoders of the paper: what each file says of itself, its published twin, one step."""

import re
from functools import cache

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from ldm.benchmark.configuration import measured_block, without_weights
from ldm.benchmark.flops import flops_per_image
from ldm.cli.train import main
from ldm.config import instantiate_from_config, instantiate_model, load, locate, to_plain
from ldm.config.signature import signature_of
from ldm.data.module import collate
from tests.data.photographs import mixed_directory
from tests.data.reading import read_whole
from tests.models.first_stages import Images
from tests.reference_configs import published_config
from tests.reference_state_dicts import listing
from tests.shipped_configs import ROOT, plain, shrunk

DIRECTORY = ROOT / "configs" / "autoencoder"
PAGE = ROOT / "docs" / "first-stages.md"
IDENTITY = DIRECTORY / "identity-f1.yaml"

# arXiv:2112.10752, table 8: f, channels of the latent, codes; rFID, PSNR in dB, SSIM
PAPER = {
    "kl-f2": ((2, 2, None), ("0.086", "32.47", "0.93")),
    "kl-f4": ((4, 3, None), ("0.27", "27.53", "0.82")),
    "kl-f8": ((8, 4, None), ("0.90", "24.19", "0.69")),
    "kl-f16": ((16, 16, None), ("0.87", "24.08", "0.68")),
    "kl-f16-d8": ((16, 8, None), ("2.63", "21.94", "0.59")),
    "kl-f32": ((32, 64, None), ("2.04", "22.27", "0.61")),
    "kl-f32-d16": ((32, 16, None), ("7.3", "20.38", "0.53")),
    "vq-f2": ((2, 2, 2048), ("0.16", "30.85", "0.91")),
    "vq-f2-n64": ((2, 2, 64), ("0.40", "29.13", "0.90")),
    "vq-f4": ((4, 3, 8192), ("0.58", "27.43", "0.82")),
    "vq-f4-n256": ((4, 3, 256), ("0.47", "26.43", "0.80")),
    "vq-f4-noattn": ((4, 3, 8192), ("1.06", "25.21", "0.76")),
    "vq-f8": ((8, 4, 16384), ("1.14", "23.07", "0.65")),
    "vq-f8-n256": ((8, 4, 256), ("1.49", "22.35", "0.62")),
    "vq-f16": ((16, 8, 16384), ("5.15", "20.83", "0.54")),
    "vq-f32": ((32, 16, 16384), ("31.83", "17.45", "0.41")),
}
# the published configuration that a file takes its batch size and accumulation from
TRAINED_AS = {
    "kl-f4": "train_autoencoder_kl_64x64x3",
    "kl-f8": "train_autoencoder_kl_32x32x4",
    "kl-f16": "train_autoencoder_kl_16x16x16",
    "kl-f32": "train_autoencoder_kl_8x8x64",
    **{name: f"first_stage_{name}" for name in ("vq-f4", "vq-f4-noattn")},
    **{name: f"first_stage_{name}" for name in ("vq-f8", "vq-f8-n256", "vq-f16")},
}
# a file that was never published -> the published one it follows, and what it changes in it
FOLLOWS = {
    "kl-f2": ("kl-f4", {"ch_mult", "z_channels", "embed_dim"}),
    "kl-f16-d8": ("kl-f16", {"z_channels", "embed_dim"}),
    "kl-f32-d16": ("kl-f32", {"z_channels", "embed_dim"}),
    "vq-f2": ("vq-f4", {"ch_mult", "z_channels", "embed_dim", "n_embed"}),
    "vq-f2-n64": ("vq-f2", {"n_embed"}),
    "vq-f4-n256": ("vq-f4", {"n_embed"}),
    "vq-f32": ("vq-f16", {"ch_mult", "attn_resolutions", "z_channels", "embed_dim"}),
}
# what training logs of an autoencoder and its discriminator, by family
LOGGED = {
    "kl": {"kl_loss", "logvar"},
    "vq": {"quant_loss", "p_loss"},
    "both": {"total_loss", "rec_loss", "nll_loss", "g_loss", "disc_loss", "d_weight"},
}
EVERY = pytest.mark.parametrize("name", PAPER)
PUBLISHED = pytest.mark.parametrize("name", TRAINED_AS)


def path_of(name):
    return DIRECTORY / f"{name}.yaml"


def params_of(name):
    return plain(path_of(name))["model"]["params"]


def header(path):
    """The comment that a file begins with, line by line, without its marks."""
    lines = path.read_text().split("model:\n")[0].splitlines()
    return [line.removeprefix("#").strip() for line in lines]


@cache
def block_of(name):
    return measured_block(path_of(name))


@cache
def meta_model(name):
    return without_weights(block_of(name))


def numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


def gflop(function, *arguments):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops() / 1e9


@cache
def costs(name):
    """GFLOP of encoding and of decoding one image of the configuration's resolution."""
    model, (f, channels, _) = meta_model(name), PAPER[name][0]
    image = torch.empty(1, 3, 256, 256, device="meta")
    latent = torch.empty(1, channels, 256 // f, 256 // f, device="meta")
    return gflop(model.encode, image), gflop(model.decode, latent)


def test_every_autoencoder_of_the_paper_has_a_file():
    assert {path.stem for path in DIRECTORY.glob("*.yaml")} == {*PAPER, IDENTITY.stem}
    assert {*TRAINED_AS, *FOLLOWS} == set(PAPER)


# what a file says of itself


@EVERY
def test_latent_and_codebook_are_those_of_the_paper(name):
    (f, channels, codes), _ = PAPER[name]
    model = meta_model(name)
    assert model.downsample_factor == f
    assert getattr(model, "n_embed", None) == codes
    encoded = model.encode(torch.empty(1, 3, 256, 256, device="meta"))
    latent = encoded.mean if codes is None else encoded[0]
    assert latent.shape == (1, channels, 256 // f, 256 // f)
    side, end = 256 // f, f", from a codebook of {codes}" if codes else ""
    assert f"latent of 256 x 256 pixels: {side} x {side} x {channels}{end}" in header(path_of(name))


@EVERY
def test_the_header_counts_the_parameters(name):
    model = meta_model(name)
    own, discriminator = numbers(model.networks()) / 1e6, numbers(model.loss.discriminator) / 1e6
    said = f"parameters: autoencoder {own:.1f} M, discriminator {discriminator:.1f} M"
    assert said in header(path_of(name))


@EVERY
def test_the_header_counts_the_weights_and_the_state_of_both_optimizers(name):
    model = meta_model(name)
    learned = numbers(model.networks()) + numbers(model.loss.discriminator)
    # fp32: each learned number and its two averages in Adam, and LPIPS, which does not learn
    size = (12 * learned + 4 * numbers(model.loss.perceptual_loss)) / 2**20
    said = f"memory: {size:.0f} MiB of weights and optimizer state in fp32; "
    assert any(line.startswith(said) for line in header(path_of(name)))


@EVERY
def test_the_header_counts_the_floating_point_operations(name):
    encode, decode = costs(name)
    step = flops_per_image(block_of(name), with_discriminator=True) / 1e9
    said = f"encode {encode:.0f}, decode {decode:.0f}, training step after disc_start {step:.0f}"
    assert f"GFLOP per image: {said}" in header(path_of(name))


@EVERY
def test_the_header_quotes_the_paper_and_names_its_own_file(name):
    rfid, psnr, ssim = PAPER[name][1]
    lines = header(path_of(name))
    assert f"quality (paper, table 8): rFID {rfid}, PSNR {psnr} dB, SSIM {ssim}" in lines
    command = f"python main.py -t -b configs/autoencoder/{name}.yaml"
    assert f"{command} data.params.train.params.root=DIR" in lines


@pytest.mark.parametrize("name", ["kl-f2", "vq-f2", "vq-f2-n64"])
def test_attention_is_nearly_half_of_the_cost_at_f_2(name):
    ddconfig = {**block_of(name)["params"]["ddconfig"], "attn_type": "none"}
    block = block_of(name) | {"params": block_of(name)["params"] | {"ddconfig": ddconfig}}
    without, whole = (flops_per_image(b, with_discriminator=True) for b in (block, block_of(name)))
    assert 0.4 < 1 - without / whole < 0.5


def test_the_table_of_the_page_says_what_the_files_say():
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert [name for name, _ in rows] == [IDENTITY.stem, *PAPER]
    for name, row in rows[1:]:
        (f, channels, codes), quality = PAPER[name]
        encode, decode = costs(name)
        cells = [
            *(str(f), f"{256 // f} x {256 // f} x {channels}", str(codes or "-")),
            *(f"{numbers(meta_model(name).networks()) / 1e6:.1f}", f"{encode:.0f}"),
            *(f"{decode:.0f}", *quality),
        ]
        assert row.split(" | ") == cells, name


# the published twin


@PUBLISHED
def test_an_autoencoder_has_the_parameters_of_the_published_checkpoint(name):
    published = {
        key: tuple(shape)
        for key, (shape, _) in listing(f"first_stage_{name}")["state_dict"].items()
        if not key.startswith("loss.")
    }
    model = meta_model(name)
    own = {key: tuple(v.shape) for key, v in model.state_dict().items()}
    assert {key: v for key, v in own.items() if not key.startswith("loss.")} == published
    count = sum(torch.Size(shape).numel() for shape in published.values())
    assert count == numbers(model.networks())


@PUBLISHED
def test_a_discriminator_has_the_parameters_of_the_published_checkpoint(name):
    prefix = "loss.discriminator."
    published = listing(f"first_stage_{name}")["state_dict"]
    wanted = {key: tuple(shape) for key, (shape, _) in published.items() if key.startswith(prefix)}
    assert wanted
    given = meta_model(name).loss.discriminator.state_dict()
    assert {prefix + key: tuple(value.shape) for key, value in given.items()} == wanted


def arguments(target, given):
    """All arguments of a class, the given ones and the defaults of the others."""
    return signature_of(locate(target)).defaults | given


@PUBLISHED
@pytest.mark.parametrize("source", ["weights", "training"])
def test_hyper_parameters_are_the_published_ones(name, source):
    kind = f"first_stage_{name}" if source == "weights" else TRAINED_AS[name]
    theirs, ours = published_config(kind), plain(path_of(name))
    assert ours["model"]["base_learning_rate"] == theirs["model"]["base_learning_rate"]
    mine, published = ours["model"]["params"], theirs["model"]["params"]
    assert mine["ddconfig"] == published["ddconfig"]
    for key in ("embed_dim", "n_embed", "monitor"):
        if key in published:
            assert mine[key] == published[key]
    loss = arguments(mine["lossconfig"]["target"], mine["lossconfig"]["params"])
    assert published["lossconfig"]["params"].items() <= loss.items()
    if source == "training":
        trainer = theirs.get("lightning", {}).get("trainer", {})
        assert ours["data"]["params"]["batch_size"] == theirs["data"]["params"]["batch_size"]
        own = ours["lightning"]["trainer"]["accumulate_grad_batches"]
        assert own == trainer.get("accumulate_grad_batches", 1)


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_was_never_published_follows_a_neighbour(name):
    neighbour, changes = FOLLOWS[name]
    mine, other = plain(path_of(name)), plain(path_of(neighbour))
    merged = [
        {**config["model"]["params"], **config["model"]["params"]["ddconfig"]}
        for config in (mine, other)
    ]
    for each in merged:
        del each["ddconfig"]
    assert {key for key in merged[0] if merged[0][key] != merged[1][key]} == changes
    assert mine["data"] == other["data"]
    assert mine["lightning"] == other["lightning"]


def test_the_f_32_quantizer_has_the_network_of_the_f_32_kl_autoencoder():
    differ = {"double_z", "z_channels"}
    networks = [params_of(name)["ddconfig"] for name in ("vq-f32", "kl-f32")]
    mine, other = ({k: v for k, v in net.items() if k not in differ} for net in networks)
    assert mine == other


# training


class Watched(pl.Callback):
    """The weights that each player had before the run, and what is logged."""

    def __init__(self):
        self.before, self.logged = {}, {}

    def on_train_start(self, trainer, module):
        self.before = {key: p.detach().clone() for key, p in self.players(module)}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.logged = {key: float(value) for key, value in trainer.logged_metrics.items()}

    def still(self, module):
        """Names of the parameters that are where they were."""
        return {k for k, p in self.players(module) if torch.equal(p, self.before[k])}

    @staticmethod
    def players(module):
        for prefix, net in (("", module.networks()), ("judge.", module.loss.discriminator)):
            for key, parameter in net.named_parameters():
                yield prefix + key, parameter


def narrow(name, side):
    """The model of a configuration at 32 channels, its discriminator playing from the start."""
    config = plain(path_of(name))
    overrides = [*shrunk(config, "."), "model.params.lossconfig.params.disc_start=0"]
    if codes := config["model"]["params"].get("n_embed"):
        overrides.append(f"model.params.n_embed={max(codes // 128, 4)}")
    # the levels are smaller, those with attention stay the same
    wide = config["model"]["params"]["ddconfig"]["attn_resolutions"]
    overrides += [
        f"model.params.ddconfig.resolution={side}",
        f"model.params.ddconfig.attn_resolutions={[each * side // 256 for each in wide]}",
    ]
    block = to_plain(load([path_of(name)], overrides))["model"]
    return instantiate_model({key: block[key] for key in ("target", "params")})


@pytest.mark.slow
@EVERY
def test_one_step_moves_both_players(name, tmp_path):
    pl.seed_everything(3, verbose=False)
    side = max(32, 2 * PAPER[name][0][0])
    model, watched = narrow(name, side), Watched()
    model.learning_rate = 1e-3
    run = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        callbacks=[watched],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(model, DataLoader(Images(2, side), batch_size=2, collate_fn=collate))
    assert run.global_step == 1
    still = watched.still(model)
    # Adam moves all that has a gradient; of the codebook, the entries that were used
    assert {key for key in still if not key.startswith("quantize.")} == set()
    assert "quantize.embedding.weight" not in still
    names = {key.removeprefix("train/") for key in watched.logged if key.startswith("train/")}
    assert names >= LOGGED["both"] | LOGGED[name[:2]]
    assert all(torch.isfinite(torch.tensor(value)) for value in watched.logged.values())
    assert watched.logged["train/disc_factor"] == 1


# data


def test_every_file_reads_a_directory_of_photographs_in_the_same_way(tmp_path):
    bad = mixed_directory(tmp_path)
    blocks = {}
    for name in PAPER:
        override = f"data.params.train.params.root={tmp_path}"
        blocks[name] = to_plain(load([path_of(name)], [override]))["data"]
        blocks[name]["params"].pop("batch_size")
    assert all(block == blocks["kl-f8"] for block in blocks.values())
    params = blocks["kl-f8"]["params"]
    train, validation = (
        instantiate_from_config(params[split]) for split in ("train", "validation")
    )
    names = [{item["relpath"] for item in read_whole(each)[0]} for each in (train, validation)]
    assert names[0].isdisjoint(names[1])
    assert all(names)
    assert names[0] | names[1] == {path.name for path in tmp_path.iterdir()} - bad
    assert train[0]["image"].shape == validation[0]["image"].shape == (256, 256, 3)


# none at all


def test_identity_is_the_first_stage_of_diffusion_in_pixels():
    block = OmegaConf.to_container(load([IDENTITY]))["model"]
    with torch.device("meta"):
        model = instantiate_model({key: block[key] for key in ("target", "params")})
    assert f"UNet {numbers(model.model.diffusion_model) / 1e6:.1f} M" in " ".join(header(IDENTITY))
    # table 13: 396 M
    assert int(numbers(model.model.diffusion_model) / 1e6) == 396
    first_stage = model.first_stage_model
    assert numbers(first_stage) == 0
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    assert torch.equal(first_stage.decode(first_stage.encode(images)), images)
    assert (model.channels, model.image_size) == (3, 256)


@pytest.mark.slow
def test_diffusion_in_pixels_trains_once_it_has_data(tmp_path):
    data = ROOT / "configs/tiny/ldm-class.yaml"
    (tmp_path / "data.yaml").write_text(OmegaConf.to_yaml({"data": load([data]).data}))
    code = main(
        [
            *("--base", str(IDENTITY), str(tmp_path / "data.yaml"), "--train", "--gpus", "cpu"),
            *("--logdir", str(tmp_path / "logs"), "--max_steps", "1", "--limit_val_batches", "0"),
            *(*shrunk(plain(IDENTITY), tmp_path), "model.params.image_size=32"),
            "lightning.callbacks.image_logger.params.disabled=true",
        ]
    )
    assert code == 0
    (checkpoint,) = tmp_path.glob("logs/*/checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 1
    assert not [key for key in state["state_dict"] if key.startswith("first_stage_model.")]
