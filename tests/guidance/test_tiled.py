"""Denoising in windows."""

import pytest
import torch

from ldm.diffusion.schedule import PublishedSchedule
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.tiled import Tiled
from ldm.tiling import BorderWeights
from ldm.types import Conditioning, Prediction
from tests.gaussian import GaussianDenoiser
from tests.reference import Case
from tests.reference_models import ReferenceModel

SCHEDULE = PublishedSchedule()
X = torch.randn(2, 3, 20, 28)
T = torch.tensor([10, 700])


def pointwise(x_t, t, cond):
    """A prediction that depends on the condition of the pixel."""
    eps = x_t + (0 if cond is None or cond.concat is None else cond.concat)
    return Prediction(x0=x_t - eps, eps=eps)


def test_tiling_a_pointwise_denoiser_changes_nothing():
    plain = GaussianDenoiser(SCHEDULE)(X, T, None)
    tiled = Tiled(GaussianDenoiser(SCHEDULE), window=(16, 16), stride=(8, 8))(X, T, None)
    torch.testing.assert_close(tiled.x0, plain.x0)
    torch.testing.assert_close(tiled.eps, plain.eps)


@pytest.mark.parametrize("cond", [None, Conditioning(crossattn=torch.randn(2, 3, 4))])
def test_other_conditions_go_to_every_window_unchanged(cond):
    seen = []

    def denoiser(x_t, t, given):
        seen.append(given)
        return Prediction(x_t, x_t)

    Tiled(denoiser, window=(16, 16), stride=(12, 12))(X, T, cond)
    assert len(seen) == 4
    assert all(given is cond for given in seen)


def test_a_concat_condition_is_cut_like_the_state():
    cond = Conditioning(concat=torch.randn(2, 3, 20, 28))
    tiled = Tiled(pointwise, window=(16, 16), stride=(8, 8))(X, T, cond)
    torch.testing.assert_close(tiled.eps, pointwise(X, T, cond).eps)


def test_guidance_goes_around_tiling():
    cond, null = (Conditioning(concat=torch.randn(n, 3, 20, 28)) for n in (2, 1))
    tiled = Tiled(pointwise, window=(16, 16), stride=(8, 8))
    guided = ClassifierFree(tiled, 3.0, null)(X, T, cond)
    torch.testing.assert_close(guided.eps, ClassifierFree(pointwise, 3.0, null)(X, T, cond).eps)


def test_patch_wise_denoising_matches_the_reference():
    case = Case("i_ldm_specifics", "split_input")
    split = case.spec["split_input_params"]
    denoiser = Tiled(
        ReferenceModel(case).denoiser, tuple(split["ks"]), tuple(split["stride"]),
        BorderWeights(split["clip_min_weight"], split["clip_max_weight"]),
    )  # fmt: skip
    with torch.no_grad():
        case.check("apply_model", denoiser(case.input("latent"), case.input("t"), None).eps)
