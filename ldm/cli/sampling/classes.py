"""scripts/sample.py: unconditional images, or those of classes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.cli.running import check_least
from ldm.cli.sampling.classifier import load_classifier
from ldm.cli.sampling.entries import Item, labelled
from ldm.cli.sampling.guiding import Guidance
from ldm.cli.sampling.options import sample_options
from ldm.cli.sampling.task import Given, Task
from ldm.config import ConfigError
from ldm.diffusion.denoiser import Denoiser
from ldm.guidance.gradient import ClassifierGuided
from ldm.types import Conditioning

__all__ = ["Sample"]


class Sample(Task):
    """Draws `--n` images, of each class if any are given."""

    name = "sample"
    description = """Draw images with a trained model: unconditional, or of given classes.

python scripts/sample.py logs/RUN --n 16
python scripts/sample.py logs/RUN --classes 3 17 --n 8 --scale 1.5
python scripts/sample.py logs/RUN --classes 3 --classifier logs/CLASSIFIER"""
    pixel_flags = ("classifier", "classifier_scale")

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Classes, how many of each, and a classifier for models that are told none."""
        add = parser.add_argument_group("what it draws").add_argument
        add("--n", "--n_samples", type=int, default=16, help="images; of each class, if any")
        add("--classes", type=int, nargs="+", metavar="LABEL", help="classes to draw")
        add("--classifier", metavar="RUN", help="guide towards the classes by its gradient")
        add("--classifier-scale", type=float, default=1.0, metavar="SCALE", help="1 as it says")

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Labels, or nothing."""
        if args.classifier is None:
            return labelled(model, args.classes, args.n)
        check_least(args, classifier_scale=0)
        if args.classes is None:
            raise ConfigError("--classes is needed: what the classifier is to see")
        args.classifier = str(args.classifier)
        self.classifier = load_classifier(args, model)
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
        if args.classifier is None:
            return given
        if not hasattr(self, "classifier"):  # a PNG is drawn again
            self.classifier = load_classifier(args, model)
        labels = torch.tensor([item["seen"] for item in items])

        def log_prob(x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
            return self.classifier.log_prob(x_t, t, labels)

        def gradient(denoiser: Denoiser) -> Denoiser:
            return ClassifierGuided(denoiser, model.schedule, log_prob, args.classifier_scale)

        guide = sample_options(args, model)["guide"] or Guidance(model.schedule, args.scale)
        assert isinstance(guide, Guidance)
        return replace(given, options={"guide": replace(guide, gradient=gradient)})
