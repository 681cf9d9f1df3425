"""The published import paths: they only import, and lead to the real thing; we do not use them."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FACADES = sorted([*(ROOT / "ldm" / "modules").rglob("*.py"), ROOT / "ldm" / "util.py"])

# what the 2022 release offered under each path, and where the same thing is defined now
PUBLISHED = {
    "ldm.modules.attention": {
        "BasicTransformerBlock": "ldm.nets.transformer",
        "CrossAttention": "ldm.nets.attention",
        "FeedForward": "ldm.nets.transformer",
        "GEGLU": "ldm.nets.transformer",
        "LinearAttention": "ldm.nets.attention",
        "SpatialTransformer": "ldm.nets.transformer",
    },
    "ldm.modules.diffusionmodules.model": {
        "AttnBlock": "ldm.nets.autoencoder_blocks",
        "Decoder": "ldm.nets.autoencoder",
        "Downsample": "ldm.nets.autoencoder_blocks",
        "Encoder": "ldm.nets.autoencoder",
        "LatentRescaler": "ldm.nets.rescaler",
        "LinAttnBlock": "ldm.nets.autoencoder_blocks",
        "Model": "ldm.nets.ddpm_unet",
        "ResnetBlock": "ldm.nets.autoencoder_blocks",
        "Upsample": "ldm.nets.autoencoder_blocks",
        "UpsampleDecoder": "ldm.nets.rescaler",
    },
    "ldm.modules.diffusionmodules.openaimodel": {
        "AttentionBlock": "ldm.nets.attention",
        "AttentionPool2d": "ldm.nets.attention",
        "Downsample": "ldm.nets.blocks",
        "EncoderUNetModel": "ldm.nets.unet_encoder",
        "ResBlock": "ldm.nets.blocks",
        "TimestepEmbedSequential": "ldm.nets.blocks",
        "UNetModel": "ldm.nets.unet",
        "Upsample": "ldm.nets.blocks",
    },
    "ldm.modules.diffusionmodules.util": {
        "HybridConditioner": "ldm.conditioning.hybrid",
        "timestep_embedding": "ldm.nets.embeddings",
    },
    "ldm.modules.distributions.distributions": {
        "DiagonalGaussianDistribution": "ldm.autoencoders.posterior",
    },
    "ldm.modules.ema": {"LitEma": "ldm.models.ema"},
    "ldm.modules.encoders.modules": {
        "BERTEmbedder": "ldm.conditioning.text",
        "BERTTokenizer": "ldm.conditioning.text",
        "ClassEmbedder": "ldm.conditioning.labels",
        "FrozenCLIPEmbedder": "ldm.conditioning.text",
        "FrozenCLIPTextEmbedder": "ldm.conditioning.clip",
        "FrozenClipImageEmbedder": "ldm.conditioning.clip",
        "FrozenT5Embedder": "ldm.conditioning.t5",
        "SpatialRescaler": "ldm.conditioning.spatial",
        "TransformerEmbedder": "ldm.conditioning.text",
    },
    "ldm.modules.losses": {"LPIPSWithDiscriminator": "ldm.losses.autoencoder"},
    "ldm.modules.losses.contperceptual": {
        "DummyLoss": "ldm.losses.autoencoder",
        "LPIPSWithDiscriminator": "ldm.losses.autoencoder",
    },
    "ldm.modules.losses.vqperceptual": {
        "VQLPIPSWithDiscriminator": "ldm.losses.autoencoder",
        "adopt_weight": "ldm.losses.adversarial",
        "hinge_d_loss": "ldm.losses.adversarial",
        "vanilla_d_loss": "ldm.losses.adversarial",
    },
    "ldm.modules.x_transformer": {
        "Encoder": "ldm.nets.text",
        "TransformerWrapper": "ldm.nets.text",
    },
    "ldm.util": {
        "count_params": "ldm.tensor",
        "get_obj_from_str": "ldm.config.targets",
        "instantiate_from_config": "ldm.config.construct",
        "mean_flat": "ldm.tensor",
    },
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FACADES, ids=module_name)
def test_a_facade_holds_a_docstring_and_imports_alone(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for statement in tree.body[1:]:
        is_listing = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == (
            "__all__"
        )
        assert isinstance(statement, ast.ImportFrom) or is_listing, ast.unparse(statement)


@pytest.mark.parametrize("path", FACADES, ids=module_name)
def test_a_facade_imports_real_homes_by_name(path):
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.ImportFrom):
            assert statement.level == 0
            assert statement.module.startswith("ldm.")
            assert not statement.module.startswith(("ldm.modules", "ldm.util"))
            assert all(name.asname for name in statement.names), "`as` marks what is re-exported"


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [(module, name, home) for module, names in PUBLISHED.items() for name, home in names.items()],
)
def test_a_published_import_leads_to_the_real_thing(module, name, home):
    found = getattr(importlib.import_module(module), name)
    assert found.__module__ == home


def test_every_facade_and_every_name_in_it_is_tested():
    for path in FACADES:
        imports = [node for node in ast.parse(path.read_text()).body[1:]]
        offered = {alias.asname for node in imports for alias in node.names}
        assert offered == set(PUBLISHED.get(module_name(path), {})), module_name(path)


def test_no_module_of_ours_imports_a_published_path():
    for path in set((ROOT / "ldm").rglob("*.py")) - set(FACADES):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(("ldm.modules", "ldm.util"))]


def test_our_own_configurations_name_real_homes():
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert "ldm.modules" not in path.read_text(), path
        assert "ldm.util" not in path.read_text(), path
