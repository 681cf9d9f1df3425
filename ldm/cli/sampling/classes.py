"""scripts/sample.py: unconditional images, or those of classes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.cli.running import check_least
from ldm.cli.sampling.between import going_between
from ldm.cli.sampling.classifier import load_classifier
from ldm.cli.sampling.entries import Item, labelled, require_script
from ldm.cli.sampling.from_noise import FromNoise
from ldm.cli.sampling.published import add_vanilla, take_every_level
from ldm.cli.sampling.task import Given
from ldm.config import ConfigError
from ldm.diffusion.denoiser import Denoiser
from ldm.guidance.gradient import ClassifierGuided
from ldm.models.classifier import LatentClassifier
from ldm.types import Conditioning

__all__ = ["Sample"]


class Sample(FromNoise):
    """Draws `--n` images, of each class if any are given."""

    name = "sample"
    description = """Draw images with a trained model: unconditional, or of given classes.

python scripts/sample.py logs/RUN --n 16
python scripts/sample.py logs/RUN --classes 3 17 --n 8 --scale 1.5
python scripts/sample.py logs/RUN --classes 3 --classifier logs/CLASSIFIER
python scripts/sample.py logs/RUN --between 3 17 --n 8
python scripts/sample.py logs/RUN --clip DIR --clip-prompt 'a red circle'"""
    pixel_flags = (
        *FromNoise.pixel_flags,
        *("classifier", "classifier_scale", "classifier_sha256"),
    )
    classifier: LatentClassifier | None = None

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Classes, how many of each, and a classifier for models that are told none."""
        add = parser.add_argument_group("what it draws").add_argument
        add("--n", "-n", "--n_samples", type=int, default=16, help="images; of each class, if any")
        add("--classes", type=int, nargs="+", metavar="LABEL", help="classes to draw")
        add("--classifier", metavar="RUN", help="guide towards the classes by its gradient")
        add("--classifier-scale", type=float, default=1.0, metavar="SCALE", help="1 as it says")
        add_vanilla(parser)
        parser.set_defaults(classifier_sha256=None)
        super().add_flags(parser)

    def prepare(self, model: Any, args: argparse.Namespace) -> None:
        """Load the classifier, and CLIP; ConfigError for what does not fit the model."""
        take_every_level(args, model)
        super().prepare(model, args)
        if args.classifier is not None:
            check_least(args, classifier_scale=0)
            self.classifier, args.classifier_sha256 = load_classifier(args, model)

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Labels, or nothing."""
        require_script("scripts/sample.py", model)
        return going_between(args, self._entries(model, args))

    def _entries(self, model: Any, args: argparse.Namespace) -> list[Item]:
        if self.classifier is None:
            return labelled(model, args.classes, args.n)
        if args.classes is None:
            raise ConfigError("--classes is needed: what the classifier is to see")
        if not all(0 <= label < self.classifier.num_classes for label in args.classes):
            last = self.classifier.num_classes - 1
            raise ConfigError(f"--classes: the classifier knows labels 0 to {last}")
        told = labelled(model, args.classes if model.conditioner.parts else None, args.n)
        return [
            {**told[index % len(told)], "seen": label}
            for index, label in enumerate(label for label in args.classes for _ in range(args.n))
        ]

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """Labels for the model, and for the classifier."""
        given = super().given(model, args, items)
        if (classifier := self.classifier) is None:
            return given
        labels = torch.tensor([item["seen"] for item in items])

        def log_prob(x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
            return classifier.log_prob(x_t, t, labels)

        def gradient(denoiser: Denoiser) -> Denoiser:
            scale = args.classifier_scale
            guided = ClassifierGuided(denoiser, model.schedule, log_prob, scale)
            return guided if given.gradient is None else given.gradient(guided)

        return replace(given, gradient=gradient)
