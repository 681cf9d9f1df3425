"""Tables of what a training takes: its rate, memory, operations, disk, and time if measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.cli.report.collector import Collector
from ldm.cli.report.costs import Costs, training_costs
from ldm.cli.report.sections import Section, amount
from ldm.cli.report.setting import Setting
from ldm.cli.report.storage import disk_table
from ldm.cli.train import HIGH_RATE
from ldm.models.first_stage_module import FirstStageModule
from ldm.models.optim import scaled_learning_rate

__all__ = ["cost_tables", "rate_table"]

_USUAL = 0.92  # share of a GPU's memory that PyTorch's tensors can have


def cost_tables(
    model: Any, sample: Mapping[str, Any], setting: Setting, findings: Collector
) -> list[Section]:
    """Memory and operations, disk, and measured time if that is asked for.

    The model is on the meta device and not to be used afterwards.
    """
    tables: list[Section] = []
    if findings.has_model_errors:
        findings.add("note", "", "costs are not told while the model has errors")
        return tables
    _say_of_data(setting, findings)
    is_first_stage = isinstance(model, FirstStageModule)
    first_stage = getattr(model, "first_stage_model", None)
    frozen = sum(p.nbytes for p in first_stage.parameters()) if first_stage is not None else 0
    try:
        costs = training_costs(model, sample, setting.plan, setting.pictures)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        findings.add("note", "model", f"a step could not be traced, so costs are not told: {said}")
        return tables
    tables += [_cost_table(costs, setting, findings, is_first_stage=is_first_stage)]
    tables += [
        disk_table(
            costs.weights + costs.optimizer,
            costs.weights,
            frozen,
            setting.lightning,
            setting.options,
            directory=Path(setting.run.path),
            keeps_best="validation" in setting.datasets,
            findings=findings,
        )
    ]
    if setting.args.profile:
        tables.append(_profiled(setting, costs, findings))
    return tables


def _profiled(setting: Setting, costs: Costs, findings: Collector) -> Section:
    """Real steps, where there is nothing in their way."""
    if findings.has_errors or "train" in setting.made or "train" not in setting.datasets:
        findings.add("note", "", "no steps were measured: there are errors, or no training data")
        return Section("measured")
    from ldm.cli.report.profiling import profile_table

    return profile_table(setting, costs, findings)


def rate_table(setting: Setting, findings: Collector) -> Section:
    """The learning rate and the equation that it comes from."""
    table, block = Section("learning rate"), setting.config["model"]
    path = "model.learning_rate"
    if (rate := block.get("learning_rate")) is not None:
        table.add("lr", f"{rate:g}, as given", rate)
    elif (base := block.get("base_learning_rate")) is not None:
        path = "model.base_learning_rate"
        rate, equation = scaled_learning_rate(
            float(base),
            batch_size=setting.batch_size,
            devices=setting.num_devices,
            accumulate=setting.accumulate,
        )
        table.add("lr", equation.removeprefix("lr = "), rate)
    if rate is not None and rate > HIGH_RATE and path.endswith("base_learning_rate"):
        hint = "if it is meant as it stands, add --scale_lr false or name it learning_rate"
        findings.add("warning", path, f"lr = {rate:g} is far above what Adam takes", hint)
    return table


def _say_of_data(setting: Setting, findings: Collector) -> None:
    """A training set must fill a step."""
    data = setting.datasets.get("train")
    if data is None or "train" in setting.made:
        return
    needed = setting.batch_size * setting.num_devices * setting.accumulate
    if len(data) < needed:
        message = f"{len(data)} examples, fewer than the {needed} of an optimizer step"
        findings.add("warning", "data.params.train", message)


def _cost_table(
    costs: Costs, setting: Setting, findings: Collector, *, is_first_stage: bool
) -> Section:
    table = Section("costs, estimated")
    plan = setting.plan
    images = plan.batch_size * plan.accumulate
    table.add(
        "a step",
        f"{amount(costs.flops, 'FLOP')} on each device, {amount(costs.flops / images, 'FLOP')} "
        f"for an image, {images} of them",
        costs.flops,
    )
    rest = costs.peak - costs.weights - costs.optimizer - costs.gradients
    table.add("weights and averages", amount(costs.weights, "B"), costs.weights)
    table.add("gradients", amount(costs.gradients, "B"), costs.gradients)
    table.add("optimizer", amount(costs.optimizer, "B"), costs.optimizer)
    table.add("activations", amount(max(rest, 0), "B"), max(rest, 0))
    where = "on each GPU" if plan.device == "cuda" else "beside the program itself"
    told = f"{amount(costs.peak, 'B')} {where}, in {plan.precision}"
    table.add("training, at most", told, costs.peak)
    if costs.sampling is not None and not is_first_stage:
        told = f"{amount(costs.sampling, 'B')}, {setting.pictures} pictures at once, with guidance"
        table.add("sampling, at most", told, costs.sampling)
    there = _memory(plan.device)
    if there is not None:
        table.add("there is", amount(there, "B"), there)
    if there is not None and costs.peak > there * _USUAL:
        message = (
            f"{plan.batch_size}, with which a step takes {amount(costs.peak, 'B')}, and "
            f"there are {amount(there, 'B')}"
        )
        hint = (
            "a smaller batch_size with more accumulate_grad_batches takes the same steps; "
            "use_checkpoint: true of the UNet keeps fewer activations"
        )
        findings.add("warning", "data.params.batch_size", message, hint)
    return table


def _memory(device: str) -> int | None:
    """Bytes of a GPU, or those of the machine that are free; None where nothing says so."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found.split()[1]) * 1024
