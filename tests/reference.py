"""Reference vectors: how their weights and inputs are made by rule, and how a case is read.

Every parameter of a case is a function of its full state-dict key, every input of its name, so
only the expected outputs are stored (`tests/vectors/<category>/<case>.{json,npz}`).
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent / "vectors"

# (rtol, atol) in float32 on a CPU, from the spread between two back-ends of the reference
TOLERANCES = {
    "a_autoencoder_kl": (1e-4, 5e-5),
    "b_vq": (1e-4, 5e-5),
    "c_unet": (1e-4, 5e-5),
    "d_ddpm_math": (1e-4, 2e-4),
    "d_ldm_math": (1e-4, 2e-4),
    "d_schedule": (1e-6, 1e-7),
    "e_ddim_tables": (1e-6, 1e-7),
    "e_samplers": (1e-3, 1e-3),
    "f_encoders": (1e-4, 5e-5),
    "g_losses": (1e-4, 1e-6),
    "h_ema_lr_dist": (1e-6, 1e-7),
    "i_ldm_specifics": (1e-4, 5e-5),
    "j_training": (1e-3, 1e-3),
    "k_published_size": (1e-4, 5e-5),
    "m_modules": (1e-4, 5e-5),
    "m_traces": (1e-3, 1e-3),
    "gradients": (1e-3, 1e-3),
}


def cases(category):
    """Names of all cases of a category, for `pytest.mark.parametrize`."""
    return sorted(path.stem for path in (ROOT / category).glob("*.json"))


class Case:
    """One case: its description (`spec`), its inputs by rule, its expected outputs."""

    def __init__(self, category, name):
        self.category, self.name = category, name
        self.spec = json.loads((ROOT / category / f"{name}.json").read_text())
        with np.load(ROOT / category / f"{name}.npz") as stored:
            self.want = {key: stored[key] for key in stored.files}

    @property
    def params(self):
        return self.spec["constructor"]["params"]

    def input(self, name):
        """An input as a tensor, made by its rule."""
        entry = self.spec["inputs"][name]
        if entry["rule"] == "normal":
            shape = entry["shape"]
            key = entry["key"].removeprefix("input:")
            return torch.from_numpy(rule_input(key, shape))
        if entry["rule"] == "literal":
            return torch.tensor(entry["value"], dtype=getattr(torch, entry.get("dtype", "float32")))
        raise ValueError(f"{self.name}: input {name} is described in words: {entry}")

    def check(self, name, got, tolerance=None):
        """Assert that an output equals the expected one within the category's tolerance."""
        rtol, atol = TOLERANCES[tolerance or self.category]
        got = got.detach().cpu().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
        want = self.want[name]
        assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=f"{self.name}: {name}")


def raw(name, shape):
    """Float64 standard normal numbers that depend on the name alone."""
    seed = zlib.crc32(name.encode()) & 0xFFFFFFFF
    return np.asarray(np.random.RandomState(seed).standard_normal(tuple(shape)))


def rule_weight(key, shape):
    """Value of the parameter with this state-dict key."""
    r = raw(key, shape)
    if key.endswith("quantize.embedding.weight"):
        value = r
    elif len(shape) >= 2:
        value = r / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1 and key.endswith(".weight"):
        value = 1 + 0.1 * r
    else:
        value = 0.1 * r
    return value.astype(np.float32)


def rule_input(name, shape):
    """Value of the input with this name."""
    return raw("input:" + name, shape).astype(np.float32)


def fill(module, prefix=""):
    """Give every parameter of a module its rule value; 0-d parameters and buffers stay."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim:
                value = rule_weight(prefix + key, parameter.shape)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return module


def key_crc32(module):
    """CRC-32 of a module's parameter names and shapes, as `rule_filled` in a case gives it."""
    lines = sorted(f"{key} {list(p.shape)}" for key, p in module.named_parameters())
    return zlib.crc32("\n".join(lines).encode())
