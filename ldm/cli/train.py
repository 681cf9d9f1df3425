"""The training command: configuration -> data, model, trainer -> fit, in a straight line."""

from __future__ import annotations

import pdb
import signal
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm.callbacks.stopping import Stopped, answer_at_once, signals_restored
from ldm.cli.arguments import Arguments, parse
from ldm.cli.exits import exit_code
from ldm.cli.launch import agreed, process_count
from ldm.cli.restarts import hold, require_same_model, run_dir, set_aside, shared_directory
from ldm.cli.rundir import RunDir, taken_back_on_error
from ldm.cli.settings import settings
from ldm.config import ConfigError, check, instantiate_from_config, instantiate_model, trust
from ldm.log import log, rank
from ldm.memory import keep_freed_memory

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = ["main", "train"]

HIGH_RATE = 1e-3  # learning rates above it get a warning


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training command; returns the process's exit code."""
    try:
        return exit_code(train, argv)
    except Stopped:
        if argv is None:
            # what remains is to end with a code that says what to do, and none of a signal
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
        raise


def train(argv: Sequence[str]) -> RunDir:
    """Train (and test) what the command line describes; returns the run's directory.

    Everything that can be checked is checked before anything heavy is built or written. Without
    `-t` and without a test set nothing more is done.

    Raises ConfigError for what the user got wrong; a new run's directory is gone again then.
    Raises Stopped when it was asked to stop, by a signal or the time limit.
    """
    args = parse(argv)
    for package in args.trust:
        trust(package)
    if args.check:
        return _checked(args)
    with signals_restored(), ExitStack() as holding:
        answer_at_once()
        run = agreed(lambda: run_dir(args, holding), shared_directory(args))
        _train(args, run, holding)
    return run


def _checked(args: Arguments) -> RunDir:
    """Report what would be trained; nothing is held or written."""
    from ldm.cli.report.command import report

    with ExitStack() as holding:
        return report(args, run_dir(replace(args, train=False), holding))


def _train(args: Arguments, run: RunDir, holding: ExitStack) -> None:
    config = settings(args, run)
    if args.auto_resume and run.config_files():
        require_same_model(args, run)
    check(config)

    from ldm.cli.preflight import preflight  # seconds to import: only after the quick checks
    from ldm.cli.trainer import callback_configs, is_trial, make_quiet, trainer_options

    make_quiet()
    options = trainer_options(config["lightning"]["trainer"])
    callbacks = config["lightning"].get("callbacks") or {}
    callback_configs(callbacks, run)
    data = _data(config, args)
    is_tested = data.has_test and args.test is not False
    preflight(
        config["model"],
        data,
        run.resume_from,
        callbacks=callbacks,
        precision=options["precision"] if args.train or not is_tested else None,
    )
    if not (args.train or is_tested):
        log.info("the configuration can be trained; add -t to do so")
        return
    with taken_back_on_error(run):
        if args.train and not rank() and not is_trial(options):
            _claim(run, holding)
        _run(args, run, config, options, data, is_tested=is_tested)


def _claim(run: RunDir, holding: ExitStack) -> None:
    """Make the directory of a new run, which nothing else trains then; clear one to start anew."""
    if not run.path.exists():
        run.path.mkdir(parents=True)
        hold(run.path, holding)
    if run.is_anew:
        set_aside(run)


def _data(config: Mapping[str, Any], args: Arguments) -> Any:
    """The data module, its data sets built."""
    data = instantiate_from_config(config["data"], path="data")
    for split, is_needed in (("train", args.train), ("test", args.test)):
        if is_needed and split not in data.dataset_configs:
            raise ConfigError(f"--{split}: data.params has no `{split}:` set")
    data.setup()
    return data


def _run(
    args: Arguments,
    run: RunDir,
    config: Mapping[str, Any],
    options: dict[str, Any],
    data: Any,
    *,
    is_tested: bool,
) -> None:
    """Build the model and the trainer; train, test."""
    import pytorch_lightning as pl

    from ldm.callbacks.run import RunRecord
    from ldm.cli.out_of_memory import advised_training
    from ldm.cli.trainer import build_trainer, is_trial

    seed = config["data"]["params"]["seed"]
    pl.seed_everything(seed, workers=True, verbose=False)
    model = _model(config["model"], options, seed)
    record = RunRecord(run.configs, run.now, config)
    monitor = model.monitor if data.has_validation else None
    trainer = build_trainer(options, config["lightning"], run, monitor=monitor, record=record)
    _check_processes(trainer.world_size)
    accumulate = getattr(model, "accumulate_grad_batches", trainer.accumulate_grad_batches)
    _check_validation(options, data, trainer, accumulate)
    model.learning_rate = _learning_rate(
        config["model"], data.batch_size, trainer.world_size, accumulate
    )
    if args.compile:
        model.compile_networks()
    where, count = trainer.accelerator.name(), trainer.world_size
    log.info("%d x %s, precision %s", count, where, trainer.precision)
    if not is_trial(options):
        log.info("run directory: %s", run.path)
    try:
        with advised_training(trainer, model, data, config["model"], is_debugged=args.debug):
            _fit(trainer, model, data, run, is_trained=args.train, is_tested=is_tested)
        is_resumed = run.resume_from is not None and args.train and not is_trial(options)
        if is_resumed and not record.has_begun:
            _say_finished(run, trainer.global_step, is_expected=args.auto_resume)
    except Exception:
        if args.debug:
            traceback.print_exc()
            pdb.post_mortem()
        raise


def _say_finished(run: RunDir, step: int, *, is_expected: bool) -> None:
    if is_expected:
        log.info(
            "%s is finished: step %d was its last, and nothing is left to train", run.path, step
        )
    else:
        log.warning("nothing was left to train; give a higher --max_steps or --max_epochs")


def _check_processes(world_size: int) -> None:
    """Processes that a launcher started must be those that Lightning counts on."""
    if (started := process_count()) not in (1, world_size):
        raise ConfigError(
            f"{started} processes were started to train together, but lightning.trainer.devices x "
            f"num_nodes is {world_size}; give --devices and --num_nodes whose product is {started}"
        )


def _check_validation(
    options: Mapping[str, Any], data: Any, trainer: pl.Trainer, accumulate: int
) -> None:
    """A count of batches between validations within an epoch must be one that an epoch has."""
    every = options.get("val_check_interval")
    if not isinstance(every, int) or isinstance(every, bool) or "train" not in data.datasets:
        return
    if every < 1:
        raise ConfigError(f"lightning.trainer.val_check_interval: {every}; expected 1 or more")
    counts_over_epochs = options.get("check_val_every_n_epoch", 1) is None
    is_validated = data.has_validation and trainer.limit_val_batches > 0
    if not is_validated or counts_over_epochs or options.get("fast_dev_run"):
        return
    batches = _epoch_batches(data, trainer, accumulate)
    if every > batches:
        raise ConfigError(
            f"lightning.trainer.val_check_interval: {every}, but an epoch has {batches} batches; "
            "expected at most these, or check_val_every_n_epoch: null, with which they are counted "
            "over epochs"
        )


def _epoch_batches(data: Any, trainer: pl.Trainer, accumulate: int) -> int:
    """Batches that one process trains on in an epoch."""
    from ldm.data.order import EpochSampler

    sampler = EpochSampler(
        len(data.datasets["train"]),
        data.batch_size,
        world_size=trainer.world_size,
        accumulate=accumulate,
    )
    batches, limit = len(sampler) // data.batch_size, trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _model(block: Mapping[str, Any], options: dict[str, Any], seed: int) -> Any:
    """The model, told what the command line knows; takes from `options` what is its own doing."""
    import torch

    model = instantiate_model(block)
    model.seed = seed
    if not model.automatic_optimization:
        # several optimizers: Lightning leaves these to the model
        for name in ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"):
            if name in options:
                setattr(model, name, options.pop(name))
    if options["accelerator"] != "cpu" and torch.cuda.is_available():
        # what convolutions want there; images come in this order, too
        model = model.to(memory_format=torch.channels_last)
    else:
        keep_freed_memory()
    return model


def _learning_rate(
    block: Mapping[str, Any], batch_size: int, devices: int, accumulate: int
) -> float:
    """The rate per optimizer step; its equation is shown."""
    from ldm.models.optim import scaled_learning_rate

    if block.get("learning_rate") is not None:
        log.info("lr = %g (as given)", block["learning_rate"])
        return float(block["learning_rate"])
    rate, equation = scaled_learning_rate(
        float(block["base_learning_rate"]),
        batch_size=batch_size,
        devices=devices,
        accumulate=accumulate,
    )
    log.info("%s", equation)
    if rate > HIGH_RATE:
        log.warning(
            "lr = %g is far above what Adam takes; if base_learning_rate is meant as it stands, "
            "add --scale_lr false or name it learning_rate",
            rate,
        )
    return rate


def _fit(
    trainer: pl.Trainer, model: Any, data: Any, run: RunDir, *, is_trained: bool, is_tested: bool
) -> None:
    path = None if run.resume_from is None else str(run.resume_from)
    if is_trained:
        try:
            trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        except Stopped as stopped:
            stopped.wait_for_others()
            raise
        answer_at_once()
        written = f": {run.path}" if run.path.exists() else ""  # a trial writes nothing
        log.info("trained to step %d%s", trainer.global_step, written)
        path = None  # the test is of what has been trained
    if is_tested:
        trainer.test(model, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
        for name, value in sorted(trainer.callback_metrics.items()):
            log.info("%s = %.5g", name, value)
