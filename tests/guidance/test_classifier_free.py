"""Classifier-free guidance: its ends, its linearity, one batch."""

import pytest
import torch

from ldm.guidance.classifier_free import ClassifierFree
from ldm.types import Conditioning, Prediction

X = torch.randn(3, 2, 4, 4, dtype=torch.float64)
T = torch.tensor([1, 5, 9])
COND = Conditioning(
    crossattn=torch.randn(3, 5, 6, dtype=torch.float64),
    concat=torch.randn(3, 2, 4, 4, dtype=torch.float64),
)
NULL = Conditioning(
    crossattn=torch.zeros(1, 5, 6, dtype=torch.float64),
    concat=torch.zeros(1, 2, 4, 4, dtype=torch.float64),
)


class Belief:
    """A prediction that depends on everything; x_t = x0 + 2 eps.  Records its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, x_t, t, cond):
        self.batches.append((x_t, t, cond))
        eps = x_t.sin() * t[:, None, None, None] + cond.concat
        eps = eps + cond.crossattn.mean(dim=(1, 2))[:, None, None, None]
        return Prediction(x0=x_t - 2 * eps, eps=eps)


def guided(scale, null=NULL):
    return ClassifierFree(Belief(), scale, null)(X, T, COND)


def test_scale_1_is_the_condition_alone_in_one_pass():
    belief = Belief()
    got = ClassifierFree(belief, 1.0, NULL)(X, T, COND)
    assert torch.equal(got.eps, Belief()(X, T, COND).eps)
    assert len(belief.batches[0][0]) == 3


def test_scale_0_is_no_condition_in_one_pass():
    belief = Belief()
    got = ClassifierFree(belief, 0, NULL)(X, T, COND)
    null = Conditioning(**{k: v.expand(3, *v.shape[1:]) for k, v in NULL.slots().items()})
    assert torch.equal(got.eps, Belief()(X, T, null).eps)
    assert len(belief.batches[0][0]) == 3


@pytest.mark.parametrize("scale", [-1.0, 0.3, 1.5, 7.5])
def test_guidance_is_linear_in_the_scale(scale):
    without, with_condition = guided(0), guided(1)
    for name in ("x0", "eps"):
        u, c = getattr(without, name), getattr(with_condition, name)
        torch.testing.assert_close(getattr(guided(scale), name), u + scale * (c - u))


def test_a_guided_prediction_still_agrees_with_x_t():
    prediction = guided(5.0)
    torch.testing.assert_close(prediction.x0 + 2 * prediction.eps, X)


def test_one_batch_holds_the_unconditional_half_first():
    belief = Belief()
    ClassifierFree(belief, 3.0, NULL)(X, T, COND)
    assert len(belief.batches) == 1
    x, t, cond = belief.batches[0]
    assert torch.equal(x, torch.cat([X, X]))
    assert torch.equal(t, torch.cat([T, T]))
    assert cond.crossattn[:3].abs().max() == 0
    assert torch.equal(cond.crossattn[3:], COND.crossattn)
    assert torch.equal(cond.concat[3:], COND.concat)


def test_each_example_may_have_its_own_scale():
    scales = torch.tensor([0.0, 1.0, 4.0])
    got = guided(scales)
    for i, scale in enumerate(scales):
        torch.testing.assert_close(got.eps[i], guided(scale.item()).eps[i])


def test_null_may_be_given_for_the_whole_batch():
    whole = Conditioning(**{k: v.repeat(3, 1, 1, 1)[:3] if v.ndim == 4 else v.repeat(3, 1, 1)
                            for k, v in NULL.slots().items()})  # fmt: skip
    assert torch.equal(guided(4.0, whole).eps, guided(4.0).eps)


def test_a_null_of_another_size_is_refused():
    with pytest.raises(ValueError, match="null is for 2 examples, expected 1 or 3"):
        guided(4.0, COND[:2])


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(ValueError, match="needs a condition"):
        ClassifierFree(Belief(), 4.0, NULL)(X, T, None)
