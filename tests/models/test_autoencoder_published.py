"""First stages against the published values: layers, latents, codes, names."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.config import instantiate_from_config
from ldm.models import autoencoder
from ldm.models.autoencoder import VQModelInterface
from ldm.nets.quantizer import VectorQuantizer
from tests.reference import Case, cases, fill, key_crc32
from tests.reference_configs import published_config

TESTS = Path(__file__).parents[1]


def model_of(case):
    """The model of a case, with its rule weights, in eval mode."""
    cls = getattr(autoencoder, case.spec["constructor"]["target"].rsplit(".", 1)[1])
    model = cls(**case.params)
    assert key_crc32(model) == case.spec["rule_filled"][0]["key_crc32"]
    return fill(model).eval()


def check_all(case, got):
    assert got.keys() == case.want.keys()
    for name, value in got.items():
        case.check(name, value)


def check_codes(case, codes):
    """Codes must agree wherever the nearest one is clearly nearest."""
    want = case.want["indices"]
    assert tuple(codes.shape) == want.shape
    is_clear = case.want["index_margin"].reshape(want.shape) > 1e-4
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(codes.numpy()[is_clear], want[is_clear])


def squared_distance_margin(model, prequant):
    """Gap between the second-best and the best squared distance of each latent cell."""
    z = prequant.permute(0, 2, 3, 1).reshape(-1, prequant.shape[1]).double()
    distance = torch.cdist(z, model.quantize.embedding.weight.double()).square()
    best = distance.topk(2, dim=1, largest=False).values
    return (best[:, 1] - best[:, 0]).float()


@pytest.mark.parametrize("name", cases("a_autoencoder_kl"))
@torch.no_grad()
def test_kl_autoencoder_equals_published_values(name):
    case = Case("a_autoencoder_kl", name)
    model = model_of(case)
    x = case.input("x")
    posterior = model.encode(x)
    sample = posterior.sample(case.input("posterior_noise"))
    got = {
        "encoder_out": model.encoder(x),
        "moments": posterior.parameters,
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "std": posterior.std,
        "kl": posterior.kl(),
        "mode": posterior.mode(),
        "sample": sample,
        "nll_of_noise_at": posterior.nll(case.input("nll_at")),
        "decode_mode": model.decode(posterior.mode()),
        "decode_sample": model.decode(sample),
    }
    check_all(case, got)


@pytest.mark.parametrize("name", cases("b_vq"))
def test_vq_autoencoder_equals_published_values(name):
    case = Case("b_vq", name)
    model, interface = model_of(case), fill(VQModelInterface(**case.params)).eval()
    assert key_crc32(interface) == case.spec["rule_filled"][1]["key_crc32"]
    x = case.input("x")
    with torch.no_grad():
        prequant = model.encode_to_prequant(x)
        quant, emb_loss, (_, _, codes) = model.encode(x)
        reconstruction, loss = model(x)
        latent = interface.encode(x)
        batch, _, height, width = prequant.shape
        entry = model.quantize.get_codebook_entry(
            codes.reshape(-1), (batch, height, width, prequant.shape[1])
        )
        got = {
            "prequant": prequant,
            "quant": quant,
            "emb_loss": emb_loss,
            "indices": codes,
            "index_margin": squared_distance_margin(model, prequant),
            "decode_quant": model.decode(quant),
            "forward_rec": reconstruction,
            "forward_diff": loss,
            "interface_encode": latent,
            "interface_decode": interface.decode(latent),
            "interface_decode_noquant": interface.decode(latent, force_not_quantize=True),
            "codebook_entry": entry,
        }
    check_codes(case, codes)
    if "loss_legacy" in case.want:
        got |= quantizer_gradients(case, model, prequant)
    check_all(case, got)


def quantizer_gradients(case, model, prequant):
    """Gradients of a quantizer on its own, with either placement of beta."""
    got = {}
    for legacy, name in ((True, "legacy"), (False, "fixed")):
        quantize = VectorQuantizer(model.n_embed, model.embed_dim, beta=0.25, legacy=legacy)
        quantize.load_state_dict(model.quantize.state_dict())
        z = prequant.clone().requires_grad_()
        quant, loss, _ = quantize(z)
        dz, dcodebook = torch.autograd.grad(loss, [z, quantize.embedding.weight], retain_graph=True)
        got |= {
            f"loss_{name}": loss,
            f"dloss_dz_{name}": dz,
            f"dloss_dcodebook_{name}": dcodebook,
            f"straight_through_dz_{name}": torch.autograd.grad(quant, z, case.input("g"))[0],
        }
    return got


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in cases("k_published_size") if "ae_kl" in name])
@torch.no_grad()
def test_kl_autoencoder_of_published_size_equals_published_values(name):
    case = Case("k_published_size", name)
    model = model_of(case)
    posterior = model.encode(case.input("x"))
    got = {"moments": posterior.parameters, "decode_mode": model.decode(posterior.mode())}
    check_all(case, got)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in cases("k_published_size") if "ae_vq" in name])
@torch.no_grad()
def test_vq_autoencoder_of_published_size_equals_published_values(name):
    case = Case("k_published_size", name)
    model = model_of(case)
    prequant = model.encode_to_prequant(case.input("x"))
    quant, emb_loss, (_, _, codes) = model.quantize(prequant)
    check_codes(case, codes)
    got = {
        "prequant": prequant,
        "indices": codes,
        "index_margin": squared_distance_margin(model, prequant),
        "emb_loss": emb_loss,
        "decode_quant": model.decode(quant),
        "decode_prequant": model.decode(prequant),
    }
    check_all(case, got)


# layers that are not called as modules: attention applies its 1x1 convolutions to tokens in one
# product, up-sampling happens inside the convolution that follows it, and norms are computed with
# the activation behind them
FUSED = re.compile(r"attn(_1|\.\d)\.(q|k|v|proj_out)$|upsample\.conv$|norm(1|2|_out)$")


@pytest.mark.parametrize("name", ["trace_kl", "trace_vq"])
@torch.no_grad()
def test_every_layer_equals_its_published_trace(name):
    case = Case("m_traces", name)
    model = model_of(case)
    seen = {}

    def record(key):
        def hook(_, __, output):
            if isinstance(output, torch.Tensor):
                values = output.double().flatten()
                statistics = [values.mean(), values.std(), values.abs().max(), *values[:5]]
                seen[f"stat__{key}"] = torch.stack(statistics)

        return hook

    for key, module in model.named_modules():
        module.register_forward_hook(record(key))
    model.autoencode(case.input("x"), None)
    missing = case.want.keys() - seen.keys()
    assert missing == {key for key in case.want if FUSED.search(key)}
    for key in case.want.keys() & seen.keys():
        case.check(key, seen[key])


LISTINGS = sorted(
    path.name.removesuffix(".json.gz")
    for pattern in ("first_stage_*", "train_autoencoder_*")
    for path in (TESTS / "state_dicts").glob(pattern)
)


@pytest.mark.parametrize("name", LISTINGS)
def test_published_names_load_strictly(name):
    with gzip.open(TESTS / "state_dicts" / f"{name}.json.gz", "rt") as listing:
        published = json.load(listing)["state_dict"]
    with torch.device("meta"):
        model = instantiate_from_config(published_config(name)["model"])
        state = {
            key: torch.empty(shape, dtype=getattr(torch, dtype))
            for key, (shape, dtype) in published.items()
        }
    model.load_state_dict(state, strict=True, assign=True)
    own = {
        key: [list(v.shape), str(v.dtype).removeprefix("torch.")]
        for key, v in model.state_dict().items()
    }
    assert own == published
    model.loss.require_weights()
