"""Every target that the published configurations name resolves, or says why it cannot."""

import pytest

from ldm import published
from ldm.config import ConfigError, check, locate
from tests.reference_configs import NAMES, published_config, targets

# the 43 distinct targets of the published configurations, and where each lives now
RESOLVED = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": "ldm.models.diffusion.ddpm.LatentDiffusion",
    "ldm.models.autoencoder.AutoencoderKL": "ldm.models.autoencoder.AutoencoderKL",
    "ldm.models.autoencoder.VQModel": "ldm.models.autoencoder.VQModel",
    "ldm.models.autoencoder.VQModelInterface": "ldm.models.autoencoder.VQModelInterface",
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": "ldm.nets.unet.UNetModel",
    "ldm.modules.losses.LPIPSWithDiscriminator": "ldm.losses.autoencoder.LPIPSWithDiscriminator",
    "ldm.modules.losses.contperceptual.DummyLoss": "ldm.losses.autoencoder.DummyLoss",
    "ldm.modules.encoders.modules.ClassEmbedder": "ldm.conditioning.labels.ClassEmbedder",
    "ldm.modules.encoders.modules.BERTEmbedder": "ldm.conditioning.text.BERTEmbedder",
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": "ldm.conditioning.text.FrozenCLIPEmbedder",
    "ldm.modules.encoders.modules.SpatialRescaler": "ldm.conditioning.spatial.SpatialRescaler",
    "ldm.lr_scheduler.LambdaLinearScheduler": "ldm.lr_scheduler.LambdaLinearScheduler",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
    "ldm.data.imagenet.ImageNetTrain": "ldm.data.imagenet.ImageNetTrain",
    "ldm.data.imagenet.ImageNetValidation": "ldm.data.imagenet.ImageNetValidation",
    "ldm.data.imagenet.ImageNetSRTrain": "ldm.data.imagenet.ImageNetSRTrain",
    "ldm.data.imagenet.ImageNetSRValidation": "ldm.data.imagenet.ImageNetSRValidation",
    "ldm.data.lsun.LSUNBedroomsTrain": "ldm.data.lsun.LSUNBedroomsTrain",
    "ldm.data.lsun.LSUNBedroomsValidation": "ldm.data.lsun.LSUNBedroomsValidation",
    "ldm.data.lsun.LSUNChurchesTrain": "ldm.data.lsun.LSUNChurchesTrain",
    "ldm.data.lsun.LSUNChurchesValidation": "ldm.data.lsun.LSUNChurchesValidation",
    "ldm.data.faceshq.CelebAHQTrain": "ldm.data.faces.CelebAHQTrain",
    "ldm.data.faceshq.CelebAHQValidation": "ldm.data.faces.CelebAHQValidation",
    "ldm.data.faceshq.FFHQTrain": "ldm.data.faces.FFHQTrain",
    "ldm.data.faceshq.FFHQValidation": "ldm.data.faces.FFHQValidation",
    "taming.data.faceshq.CelebAHQTrain": "ldm.data.faces.CelebAHQTrain",
    "taming.data.faceshq.CelebAHQValidation": "ldm.data.faces.CelebAHQValidation",
    "taming.data.faceshq.FFHQTrain": "ldm.data.faces.FFHQTrain",
    "taming.data.faceshq.FFHQValidation": "ldm.data.faces.FFHQValidation",
    "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": (
        "ldm.losses.autoencoder.VQLPIPSWithDiscriminator"
    ),
    "main.DataModuleFromConfig": "ldm.data.module.DataModuleFromConfig",
    "main.ImageLogger": "ldm.callbacks.images.ImageLogger",
    "torch.nn.Identity": "torch.nn.modules.linear.Identity",
}
NEVER_RELEASED = [
    "ldm.data.landscapes.RFWTrain",
    "ldm.data.landscapes.RFWValidation",
    "ldm.data.openimages.FullOpenImagesTrain",
    "ldm.data.openimages.FullOpenImagesValidation",
    "ldm.data.openimages.OpenImagesBBoxTrain",
    "ldm.data.openimages.OpenImagesBBoxValidation",
    "ldm.data.openimages.SuperresOpenImagesAdvancedTrain",
    "ldm.data.openimages.SuperresOpenImagesAdvancedValidation",
    "ldm.data.previews.pytorch_dataset.PreviewsTrain",
    "ldm.data.previews.pytorch_dataset.PreviewsValidation",
]


def test_the_list_is_what_the_published_configurations_name():
    named = {target for name in NAMES for target in targets(published_config(name))}
    assert named == {*RESOLVED, *NEVER_RELEASED}
    assert len(named) == 43


@pytest.mark.parametrize(("target", "home"), RESOLVED.items(), ids=list(RESOLVED))
def test_a_published_target_finds_its_present_home(target, home):
    found = locate(target)
    assert f"{found.__module__}.{found.__qualname__}" == home


@pytest.mark.parametrize("target", NEVER_RELEASED)
def test_a_target_that_was_never_released_says_what_to_use(target):
    instead = r"ldm\.data\.coco\.CocoBoxes" if "BBox" in target else r"ldm\.data\.folder"
    with pytest.raises(ConfigError, match=rf"{target} was never released: .*{instead}"):
        locate(target)


@pytest.mark.parametrize("target", RESOLVED)
def test_only_targets_of_other_namespaces_and_one_misplaced_module_are_renamed(target):
    is_foreign = target.split(".")[0] in ("main", "taming") or "faceshq" in target
    assert (published.current(target) != target) == is_foreign


def test_the_longest_renamed_prefix_wins_and_only_whole_parts_match():
    assert published.current("taming.models.vqgan.VQModelling") == "taming.models.vqgan.VQModelling"
    assert published.current("main.DataModuleFromConfig") == "ldm.data.module.DataModuleFromConfig"
    assert published.current("mainly.Foo") == "mainly.Foo"


def test_no_row_leads_to_another_row():
    for home in published.RENAMED.values():
        assert published.current(home) == home
        assert published.advice(home) is None


# modules are renamed as a whole; one class of each stands for them
EXAMPLES = {
    "taming.data.faceshq": "FFHQTrain",
    "taming.modules.diffusionmodules.model": "Encoder",
    "taming.modules.discriminator.model": "NLayerDiscriminator",
    "taming.modules.losses.lpips": "LPIPS",
    "taming.modules.losses.vqperceptual": "VQLPIPSWithDiscriminator",
    "sgm.lr_scheduler": "LambdaLinearScheduler",
    "sgm.modules.diffusionmodules.model": "Decoder",
    "ldm.data.faceshq": "FFHQTrain",
}


@pytest.mark.parametrize("prefix", published.RENAMED)
def test_every_renamed_prefix_leads_to_something_that_exists(prefix):
    example = EXAMPLES.get(prefix)
    found = locate(f"{prefix}.{example}" if example else prefix)
    assert callable(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_configuration_is_sound_but_for_what_was_never_released(name):
    config = published_config(name)
    for split in ("train", "validation"):
        params = config.get("data", {}).get("params", {})
        if params.get(split, {}).get("target") in NEVER_RELEASED:
            params[split] = {"target": "ldm.data.folder.ImageFolder", "params": {"root": "."}}
    check(config)
