"""The training command: configuration -> data, model, trainer -> fit, in a straight line."""

from __future__ import annotations

import pdb
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ldm.cli.arguments import Arguments, parse
from ldm.cli.rundir import new_run, resume_run
from ldm.config import ConfigError, check, instantiate_from_config, load, to_plain, trust
from ldm.log import log

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = ["main", "train"]

EXIT_CONFIG = 2  # what the user wrote is wrong; nothing was done
HIGH_RATE = 1e-3  # learning rates above it get a warning


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training command; returns the process's exit code."""
    try:
        train(parse(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        log.error("error: %s", error)
        return EXIT_CONFIG
    return 0


def train(args: Arguments) -> None:
    """Train (and test) what the configuration describes.

    Everything that can be checked is checked before anything heavy is built.
    Raises ConfigError for what the user got wrong.
    """
    run = (
        resume_run(args.resume)
        if args.resume
        else new_run(args.logdir, args.name, args.base, args.postfix)
    )
    for package in args.trust:
        trust(package)
    config = to_plain(load([*run.config_files(), *args.base], args.overrides))
    _require_blocks(config, args)
    check(config)

    import pytorch_lightning as pl  # seconds to import: only after the quick checks

    from ldm.callbacks.run import RunRecord
    from ldm.cli.preflight import preflight
    from ldm.cli.trainer import build_trainer, trainer_options

    lightning = config.get("lightning") or {}
    options = trainer_options(lightning.get("trainer") or {}, args)
    pl.seed_everything(args.seed, workers=True, verbose=False)
    data = instantiate_from_config(config["data"], path="data", given={"seed": args.seed})
    data.setup("fit")
    preflight(config["model"], data.datasets["train"][0], data.num_classes)
    model = _model(config["model"], options, args)
    record = RunRecord(run.configs, run.now, config)
    monitor = model.monitor if data.has_validation else None
    trainer = build_trainer(options, lightning, run, monitor=monitor, record=record)
    model.learning_rate = _learning_rate(config["model"], data.batch_size, trainer, args, model)
    log.info("run directory: %s", run.path)
    _fit(trainer, model, data, args, resume_from=args.trainer.get("ckpt_path") or run.resume_from)


def _require_blocks(config: Mapping[str, Any], args: Arguments) -> None:
    if not config:
        raise ConfigError("no configuration: give --base CONFIG.yaml, or --resume RUN")
    missing = [block for block in ("model", "data") if block not in config]
    if missing:
        raise ConfigError(f"{', '.join(args.base)}: there is no `{missing[0]}:` block")
    model = config["model"]
    rates = [key for key in ("base_learning_rate", "learning_rate") if key in model]
    if len(rates) != 1:
        raise ConfigError(
            "model: give one of base_learning_rate (scaled by devices x batch size x accumulation) "
            f"and learning_rate (used as it is), found {rates or 'neither'}"
        )


def _model(block: Mapping[str, Any], options: dict[str, Any], args: Arguments) -> Any:
    """The model, told what the command line knows; takes from `options` what is its own doing."""
    model = instantiate_from_config(
        {key: block[key] for key in ("target", "params") if key in block}, path="model"
    )
    model.seed = args.seed
    if not model.automatic_optimization:
        # several optimizers: Lightning leaves these to the model
        for name in ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"):
            if name in options:
                setattr(model, name, options.pop(name))
    if args.compile:
        model.compile_networks()
    return model


def _learning_rate(
    model: Mapping[str, Any], batch_size: int, trainer: pl.Trainer, args: Arguments, module: Any
) -> float:
    """The rate per optimizer step; its equation is shown."""
    from ldm.models.optim import scaled_learning_rate

    base = float(model.get("base_learning_rate", model.get("learning_rate")))
    if "learning_rate" in model or not args.scale_lr:
        log.info("lr = %g (as given)", base)
        return base
    accumulate = getattr(module, "accumulate_grad_batches", trainer.accumulate_grad_batches)
    rate, equation = scaled_learning_rate(
        base, batch_size=batch_size, devices=trainer.world_size, accumulate=accumulate
    )
    log.info("%s", equation)
    if rate > HIGH_RATE:
        log.warning(
            "lr = %g is far above what Adam takes; if base_learning_rate is meant as it stands, "
            "add --scale_lr false or name it learning_rate",
            rate,
        )
    return rate


def _fit(trainer: pl.Trainer, model: Any, data: Any, args: Arguments, resume_from: Any) -> None:
    try:
        if args.train:
            path = None if resume_from is None else str(resume_from)
            trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        if data.has_test and not args.no_test:
            trainer.test(model, datamodule=data)
    except Exception:
        if args.debug:
            traceback.print_exc()
            pdb.post_mortem()
        raise
