"""A classifier and a diffusion model that do not belong together are told apart."""

import copy

import pytest
import torch

from tests.models.classifiers import PROCESS, classifier, kl
from tests.models.diffusion_models import identity, latent, pixel
from tests.models.diffusion_models import parameters as diffusion_parameters

SHARED = {"first_stage_config": kl(), "scale_factor": 0.5}


def pair(ours=(), theirs=()):
    """A classifier and a diffusion model with the same first stage, but for changes."""
    a, b = classifier(**SHARED | dict(ours)), latent(**SHARED | dict(theirs))
    if type(a.first_stage_model) is type(b.first_stage_model):
        a.first_stage_model.load_state_dict(b.first_stage_model.state_dict())
    return a, b


def test_models_of_one_space_belong_together():
    a, b = pair()
    a.require_same_space(b)
    a, b = pair({"scale_by_std": True, "scale_factor": 1.0})
    a.scale_factor.fill_(0.5)
    a.require_same_space(b)


def test_a_classifier_of_images_belongs_to_a_diffusion_model_of_images():
    for first_stage in (None, identity()):
        for diffusion in (pixel(), latent()):
            classifier(first_stage_config=first_stage).require_same_space(diffusion)


def test_decoders_may_differ():
    a, b = pair()
    with torch.no_grad():
        for parameter in b.first_stage_model.decoder.parameters():
            parameter.add_(1)
    a.require_same_space(b)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"timesteps": 40}, "num_timesteps: 20 in the LatentClassifier, 40 in the LatentDiffusion"),
        ({"linear_end": 0.2}, r"alpha at time 1: 0\.98\d* in the LatentClassifier, 0\.98"),
        ({"beta_schedule": "cosine"}, "alpha at time 0: "),
        (
            {"scale_factor": 0.6},
            r"scale_factor: 0\.5 in the LatentClassifier, 0\.6\d* in the Latent",
        ),
        ({"first_stage_config": identity()}, "first stage: AutoencoderKL in the .*, none in"),
    ],
)
def test_another_process_is_refused_with_both_values(theirs, message):
    a, b = pair(theirs=theirs)
    with pytest.raises(ValueError, match=message):
        a.require_same_space(b)


def test_a_schedule_of_another_kind_is_refused():
    rest = {key: value for key, value in diffusion_parameters().items() if key not in PROCESS}
    flow = {"schedule_config": {"target": "ldm.diffusion.schedule.RectifiedFlow"}}
    b = latent(rest | flow | {"parameterization": "flow"})
    with pytest.raises(ValueError, match=r"num_timesteps: 20 in the .*, None in"):
        classifier().require_same_space(b)


def test_another_first_stage_is_refused_with_the_hashes_of_both():
    a, b = pair()
    with torch.no_grad():
        next(b.first_stage_model.encoder.parameters()).flatten()[0] += 1e-3
    with pytest.raises(
        ValueError, match=r"weights of its encoder: .*sha256 (\w{12}) .* sha256 "
    ) as e:
        a.require_same_space(b)
    first, second = (part.split()[0] for part in str(e.value).split("sha256 ")[1:])
    assert first != second


def test_a_first_stage_of_other_dimensions_is_refused():
    a, b = pair()
    wider = copy.deepcopy(b.first_stage_model)
    wider.encoder.conv_out = torch.nn.Conv2d(64, 8, 3, padding=1)
    b.first_stage_model = wider
    with pytest.raises(ValueError, match="weights of its encoder"):
        a.require_same_space(b)


def test_a_scale_that_was_never_set_belongs_to_nothing():
    a, b = pair()
    a.scale_factor.fill_(float("nan"))
    with pytest.raises(ValueError, match="scale_factor: nan"):
        a.require_same_space(b)
