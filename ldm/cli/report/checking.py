"""A check from end to end: everything that can be found before a training, in one report."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from omegaconf import MISSING

from ldm.cli.arguments import Arguments
from ldm.cli.preflight import checks, shape_of
from ldm.cli.preflight_encoders import encoder_path
from ldm.cli.report.batches import entries_made_up
from ldm.cli.report.collector import Collector
from ldm.cli.report.costing import cost_tables, rate_table
from ldm.cli.report.costs import accept_any_lpips
from ldm.cli.report.places import split_path
from ldm.cli.report.reading import nothing_for_missing, places_of, read, without
from ldm.cli.report.sections import Report, Section
from ldm.cli.report.setting import Setting
from ldm.cli.report.shapes import parameter_table, sample_table, shape_table
from ldm.cli.report.standing_in import Completed, stand_in
from ldm.cli.report.suspicions import check_monitor, unreached_steps, unused_attention
from ldm.cli.report.tokenizers import check_tokenizer
from ldm.cli.rundir import RunDir
from ldm.cli.settings import completed
from ldm.cli.trainer import callback_configs, make_quiet, trainer_options
from ldm.config import (
    instantiate_from_config,
    problems_of,
    without_checkpoints,
)
from ldm.config.errors import value_needed

__all__ = ["check_everything"]

_SPLITS = ("train", "validation", "test", "predict")
_SIZE = 256  # pixels, of pictures that stand in where nothing says how large they are
_RATE = 1e-4  # where the configuration's cannot be told
_NO_DATA = {
    "target": "ldm.data.module.DataModuleFromConfig",
    "params": {
        "batch_size": 1,
        "train": {"target": "ldm.data.folder.ImageFolder", "params": {"root": MISSING}},
    },
}


def check_everything(args: Arguments, run: RunDir, *, with_costs: bool = True) -> Report:
    """Check what a command line describes; nothing is built in full, and nothing is written.

    with_costs: trace a step, for memory and operations, and look at the disk.
    """
    make_quiet()
    findings = Collector(places_of(args, run))
    sections: list[Section] = []
    config = _configuration(args, run, findings)
    if config is None:
        return Report.of(findings.findings, sections)
    options = _options(config, run, findings)
    data, datasets, made = _data(config, findings)
    model = _model(config, findings)
    samples = _samples(datasets, findings)
    tables = [
        sample_table(split, datasets[split], sample, is_made=split in made)
        for split, sample in samples.items()
    ]
    if model is not None:
        usable = {
            split: Completed(datasets[split], entries_made_up(model, sample))
            if split in made
            else datasets[split]
            for split, sample in samples.items()
            if split not in made or not _is_repeated(split, samples, made)
        }
        setting = Setting(args, run, config, options, usable, made)
        _hold(model, setting, findings, classes=_classes(data, made))
        told = {split: {**entries_made_up(model, each), **each} for split, each in samples.items()}
        sections += _model_tables(model, setting, told, findings)
        if with_costs and told:
            sections += cost_tables(model, next(iter(told.values())), setting, findings)
    return Report.of(findings.findings, [*sections[:1], *tables, *sections[1:]])


def _configuration(args: Arguments, run: RunDir, findings: Collector) -> dict[str, Any] | None:
    """The configuration, without what is wrong in it as far as the rest can do without that."""
    found = findings.attempt(lambda: read(args, run))
    if found is None:
        return None
    config, missing = found
    for path in missing:
        findings.add("error", path, value_needed(path).partition(": ")[2])
    completed_config = findings.attempt(lambda: completed(copy.deepcopy(config), args))
    if completed_config is None:
        if not isinstance(config.get("model"), dict):
            return None
        for name in ("base_learning_rate", "learning_rate"):
            config["model"].pop(name, None)
        config["model"]["learning_rate"] = _RATE
        if config.get("data") is None:
            config["data"] = copy.deepcopy(_NO_DATA)
        completed_config = findings.attempt(lambda: completed(config, args))
    if completed_config is None:
        return None
    for problem in problems_of(completed_config):
        findings.say(problem)
        without(completed_config, split_path(problem)[0])  # its default will do for the rest
    return completed_config


def _options(config: dict[str, Any], run: RunDir, findings: Collector) -> dict[str, Any]:
    """Arguments of the trainer; those of a CPU where they are wrong."""
    lightning = config.get("lightning") or {}
    block = lightning.get("trainer") or {}
    callbacks = lightning.get("callbacks") or {}
    findings.attempt(lambda: callback_configs(callbacks, run))
    options = findings.attempt(lambda: trainer_options(block))
    if options is None:
        kept = {
            key: block[key]
            for key in ("max_steps", "max_epochs", "precision", "val_check_interval")
            if isinstance(block.get(key), int | str) and block[key]
        }
        options = trainer_options({"accelerator": "cpu", **kept})
    return options


def _data(
    config: Mapping[str, Any], findings: Collector
) -> tuple[Any, dict[str, Any], frozenset[str]]:
    """The data module, its sets by split, and which of these are made up."""
    block = config["data"]
    params = block.get("params") or {}
    blocks = {split: params[split] for split in _SPLITS if isinstance(params.get(split), Mapping)}
    datasets, made, size = {}, set(), _size(config["model"])
    for split, each in blocks.items():
        path = f"data.params.{split}"
        found = None
        if not _has_missing(each):
            found = findings.attempt(_instantiate(each, path), path)
        if found is None:
            found = findings.attempt(lambda each=each: stand_in(each, size), path)  # type: ignore[misc]
            made.add(split)
        if found is not None:
            datasets[split] = found
    plain = {**block, "params": nothing_for_missing(params)}
    module = findings.attempt(lambda: instantiate_from_config(plain, path="data"), "data")
    if module is not None and not made:
        findings.attempt(lambda: _set_up(module, datasets), "data")
    return module, datasets, frozenset(made)


def _size(block: Mapping[str, Any]) -> int:
    """Side in pixels of the images that a model is written for."""
    params = block.get("params") or {}
    inside = (params.get("first_stage_config") or {}).get("params") or {}
    for holder, name in (
        (params.get("ddconfig"), "resolution"),
        (inside.get("ddconfig"), "resolution"),
        (params, "image_size"),
    ):
        if isinstance(holder, Mapping) and isinstance(holder.get(name), int):
            return int(holder[name])
    return _SIZE


def _samples(datasets: Mapping[str, Any], findings: Collector) -> dict[str, Mapping[str, Any]]:
    """The first example of each set that has one."""
    samples: dict[str, Mapping[str, Any]] = {}
    for split, data in datasets.items():
        path = f"data.params.{split}"
        sample = findings.attempt(partial(operator.getitem, data, 0), path)
        if isinstance(sample, Mapping):
            samples[split] = sample
        elif sample is not None:
            kind = type(sample).__name__
            message = f"an example is of type {kind}; expected a mapping of names to values"
            findings.add("error", path, message)
    return samples


def _is_repeated(split: str, samples: Mapping[str, Any], made: frozenset[str]) -> bool:
    """Whether an earlier set stands in with examples of the same shapes."""

    def shapes(name: str) -> dict[str, Any]:
        entries = samples[name].items()
        return {key: getattr(value, "shape", None) for key, value in entries if key != "boxes"}

    before = [*samples][: [*samples].index(split)]
    return any(name in made and shapes(name) == shapes(split) for name in before)


def _instantiate(block: Mapping[str, Any], path: str) -> Callable[[], Any]:
    return lambda: instantiate_from_config(block, path=path)


def _set_up(module: Any, datasets: Mapping[str, Any]) -> None:
    """Have the module agree on classes, with the sets that are built already."""
    if hasattr(module, "datasets"):
        module.datasets.update(datasets)
    module.setup()


def _classes(module: Any, made: frozenset[str]) -> int | None:
    return None if made or module is None else getattr(module, "num_classes", None)


def _has_missing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_missing, value.values()))
    return any(map(_has_missing, value)) if isinstance(value, list) else value == MISSING


def _model(config: Mapping[str, Any], findings: Collector) -> Any:
    """The model on the meta device; without its checkpoints where they are what is wrong."""
    block = nothing_for_missing(config["model"])
    if without_checkpoints(block) != block:
        before = len(findings.findings)
        model = findings.attempt(lambda: shape_of(block), "model")
        if model is not None:
            return model
        bare = findings.attempt(lambda: shape_of(without_checkpoints(block)), "model")
        if bare is None and len(findings.findings) > before:
            _drop_repeated(findings, before)
        return bare
    return findings.attempt(lambda: shape_of(block), "model")


def _drop_repeated(findings: Collector, first: int) -> None:
    """Keep each of the last findings once."""
    findings.findings[first:] = dict.fromkeys(findings.findings[first:])


def _hold(model: Any, setting: Setting, findings: Collector, *, classes: int | None) -> None:
    """Hold the model against its data, its checkpoint and what it is asked to log."""
    block, lightning = setting.config["model"], setting.lightning
    for check in checks(
        model,
        block,
        setting.datasets,
        setting.run.resume_from,
        classes=classes,
        callbacks=lightning.get("callbacks"),
        precision=setting.options["precision"],
    ):
        findings.attempt(check, "model")
    for part in getattr(getattr(model, "conditioner", None), "parts", ()):
        check_tokenizer(part.embedder, encoder_path(model, part), findings)
    for path, message in unused_attention(model, block):
        findings.add("warning", path, message)
    for severity, path, message in unreached_steps(model, block, setting.options):
        findings.add(severity, path, message)


def _model_tables(
    model: Any, setting: Setting, samples: Mapping[str, Any], findings: Collector
) -> list[Section]:
    """Tables about the model: shapes first."""
    accept_any_lpips(model)  # whether it has weights has been said
    sample = next(iter(samples.values()), None)
    if not isinstance(sample, Mapping):
        return [Section("shapes"), parameter_table(model)]
    shapes = findings.attempt(lambda: shape_table(model, sample), "model")
    if "validation" in setting.datasets:
        said = findings.attempt(lambda: list(check_monitor(model, sample, setting.lightning)))
        for path, message in said or ():
            findings.add("error", path, message)
    return [
        shapes or Section("shapes"),
        parameter_table(model),
        rate_table(setting, findings),
    ]
