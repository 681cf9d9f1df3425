"""Small classifiers for the tests of their training and of guidance."""

from torch.utils.data import DataLoader

from ldm.data.module import collate
from ldm.models.classifier import LatentClassifier
from tests.models.diffusion_models import identity, kl, loader, trainer
from tests.reference import fill

__all__ = [
    "CLASSES",
    "PROCESS",
    "classifier",
    "encoder",
    "kl",
    "loader",
    "loader_of",
    "parameters",
    "trainer",
]

CLASSES = 4  # of `Pictures`
ENCODER = {
    "image_size": 4,
    "in_channels": 3,
    "out_channels": CLASSES,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_heads": 2,
    "pool": "adaptive",
}
PROCESS = {"timesteps": 20, "linear_start": 0.01, "linear_end": 0.3}


def encoder(**changes):
    return {"target": "ldm.nets.unet_encoder.EncoderUNetModel", "params": ENCODER | changes}


def parameters(**changes):
    """Parameters of a classifier of images of 4 x 4, in 20 steps."""
    return {
        "unet_config": encoder(),
        "num_classes": CLASSES,
        "label_key": "class",
        "first_stage_config": identity(),
        **PROCESS,
        **changes,
    }


def classifier(**changes):
    """A classifier with weights by rule; a head that starts at zero has some, too."""
    model = fill(LatentClassifier(**parameters(**changes)))
    if model.model_ema is not None:
        model.model_ema.module.load_state_dict(model.model.state_dict())
    return model


def loader_of(examples, batch_size, **options):
    """Batches of any list of examples."""
    return DataLoader(examples, batch_size, collate_fn=collate, **options)
