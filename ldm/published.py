"""Published class paths that lie in someone else's namespace, and those that never existed.

Published paths inside `ldm` are ordinary modules (`ldm/modules` holds those that only import).
What the 2022 configurations name outside of it is renamed here, and what they name although it
was never released is explained.
"""

from __future__ import annotations

__all__ = ["NOT_RELEASED", "RENAMED", "advice", "current"]

# prefix of a published target -> where the same thing lives now; the longest prefix wins
RENAMED = {
    # the training script itself
    "main.DataModuleFromConfig": "ldm.data.module.DataModuleFromConfig",
    "main.ImageLogger": "ldm.callbacks.images.ImageLogger",
    # taming-transformers
    "taming.data.faceshq": "ldm.data.faces",
    "taming.models.vqgan.VQModel": "ldm.models.autoencoder.VQModel",
    "taming.modules.diffusionmodules.model": "ldm.nets.autoencoder",
    "taming.modules.discriminator.model": "ldm.nets.discriminator",
    "taming.modules.losses.lpips": "ldm.losses.perceptual",
    "taming.modules.losses.vqperceptual": "ldm.losses.autoencoder",
    "taming.modules.vqvae.quantize.VectorQuantizer2": "ldm.nets.quantizer.VectorQuantizer",
    # generative-models
    "sgm.lr_scheduler": "ldm.lr_scheduler",
    "sgm.models.autoencoder.AutoencoderKL": "ldm.models.autoencoder.AutoencoderKL",
    "sgm.models.autoencoder.IdentityFirstStage": "ldm.models.autoencoder.IdentityFirstStage",
    "sgm.modules.diffusionmodules.model": "ldm.nets.autoencoder",
    # a data set that the published configurations name twice, once where it never was
    "ldm.data.faceshq": "ldm.data.faces",
    # a logger that Lightning dropped
    "pytorch_lightning.loggers.TestTubeLogger": "pytorch_lightning.loggers.TensorBoardLogger",
}

_BOXES = (
    "use ldm.data.layouts.Layouts around ldm.data.coco.CocoBoxes, and in place of BERTEmbedder "
    "ldm.conditioning.layout.LayoutEmbedder with published: true (docs/data-boxes.md)"
)

_PAIRS = (
    "use ldm.data.superres.SuperResolution with method: bsr_light around ldm.data.folder."
    "ImageFolder (docs/data.md, Pairs for super-resolution)"
)

# prefix of a target that was published without its code -> what to use in its place
NOT_RELEASED = {
    "ldm.data.openimages.SuperresOpenImagesAdvancedTrain": _PAIRS,
    "ldm.data.openimages.SuperresOpenImagesAdvancedValidation": _PAIRS,
    "ldm.data.openimages.OpenImagesBBoxTrain": _BOXES,
    "ldm.data.openimages.OpenImagesBBoxValidation": _BOXES,
    "ldm.data.openimages": (
        "point ldm.data.folder.ImageFolder at your copy of the images "
        "(params: {root: DIR, size: 256})"
    ),
    "ldm.data.landscapes": (
        "point ldm.data.folder.ImageFolder at your landscape photographs "
        "(params: {root: DIR, size: 256})"
    ),
    "ldm.data.previews": (
        "use ldm.data.folder.ImageFolder with a caption in a .txt file beside each image "
        "(params: {root: DIR, size: 256})"
    ),
}


def current(target: str) -> str:
    """Where a published target lives now; a target that was not renamed is returned as it is."""
    prefix = _longest(target, RENAMED)
    return target if prefix is None else RENAMED[prefix] + target.removeprefix(prefix)


def advice(target: str) -> str | None:
    """What to use for a target that was named in configurations but never released."""
    prefix = _longest(target, NOT_RELEASED)
    return None if prefix is None else NOT_RELEASED[prefix]


def _longest(target: str, table: dict[str, str]) -> str | None:
    parts = target.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in table), None)
