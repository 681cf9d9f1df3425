"""Package metadata. Tool settings are in pyproject.toml; environment.yaml is for conda."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

REQUIRES = [
    "torch>=2.10",
    "torchvision>=0.25",
    "pytorch-lightning>=2.6.4",
    "omegaconf>=2.3",
    "einops>=0.8",
    "transformers>=5.3",
    "lpips>=0.1.4",
    "torchmetrics>=1.8",
    "webdataset>=1.0",
    "tensorboard>=2.18",
    "safetensors>=0.5",
    "pillow>=11.3",  # whose wheels read AVIF
    "numpy>=2",
    "tqdm>=4.66",
]

EXTRAS = {
    # what the checks, the tests and the benchmark need
    "dev": [
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "mypy>=1.14",
        "import-linter>=2.1",
        "codespell>=2.3",
        "pre-commit>=4",
        "diffusers>=0.35",
        "lmdb>=1.4",
        "pyarrow>=18",
    ],
    # published metrics
    "eval": ["torch-fidelity>=0.4", "scipy>=1.14"],
    # the plots of the quickstart
    "demo": ["matplotlib>=3.9"],
    # data sets as their owners publish them: LSUN's databases, tables of captions
    "prepare": ["lmdb>=1.4", "pyarrow>=18"],
}

setup(
    name="ldm",
    version="0.1.0",
    description="Training latent diffusion models, from your own images to a published number",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["ldm", "ldm.*"]),
    package_data={"ldm": ["py.typed"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
