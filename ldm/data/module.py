"""From the `data` block of a configuration to batches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.config import ConfigError, instantiate_from_config
from ldm.data.loader import Loader, collate
from ldm.data.order import EpochSampler
from ldm.data.substitutes import Keyed, known_bad
from ldm.data.tally import LOG, Tally, shared_store
from ldm.data.watch import Watch

__all__ = ["DataModuleFromConfig", "Keyed", "collate", "default_workers"]

_MAX_WORKERS = 8
_NAMED = 10  # bad files that one message names


def default_workers(processes: int = 1) -> int:
    """Loader processes for each training process of this machine.

    Two cores or less are left to the training itself.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = (cores or 1) // processes
    return min(share, _MAX_WORKERS) if share > 2 else 0


def _adopt_classes(data: Any, classes: Sequence[str], *, path: str) -> None:
    if not hasattr(data, "adopt_classes"):
        raise ConfigError(
            f"{path}: its classes ({', '.join(data.class_names)}) are not those of the training "
            f"set ({', '.join(classes)}), so a label would mean two things"
        )
    try:
        data.adopt_classes(classes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _require_readable(data: Any, origin: str) -> None:
    """Raise ConfigError for samples that are known to be bad, where nothing is replaced."""
    if bad := known_bad(data):
        named = ", ".join(f"{name} ({why})" for name, why in bad[:_NAMED])
        more = f", and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise ConfigError(
            f"{origin}: {len(bad)} of its {len(data)} samples cannot be read: {named}{more}; "
            "nothing takes their place here, as the results would be of other images: repair the "
            "files, or remove them"
        )


class DataModuleFromConfig(pl.LightningDataModule):
    """Loaders for the data sets of a configuration.

    batch_size: samples of one process in one batch.
    train, validation, test, predict: configurations of data sets, each `target` and `params`.
    num_workers: loader processes for each training process; by default a share of the cores.
    shuffle_val_dataloader, shuffle_test_loader: another order in each epoch.
    seed: of the order and of every random choice of the data sets.
    persistent_workers: keep the loader processes from one epoch to the next.
    pin_memory: by default where there is a CUDA device.
    max_bad_rate: share of the training samples, 0 to 1, that may be unreadable. Each of these is
        replaced by another one, counted, and named in `bad_samples.log` of the run's directory;
        with more than that the training ends, with 0 at the first. The processes count apart.
    timeout: seconds that a loader process may take to read one sample; 0 waits for ever. Without
        loader processes nothing is timed.

    wrap, use_worker_init_fn: accepted, without effect. Any object with a length and an index is
        a data set here, and no random choice depends on the workers.

    In training a batch that would be incomplete is left out, a different one in each epoch;
    elsewhere every sample is seen exactly once, and one that cannot be read is an error. A
    checkpoint holds the place in the epoch.

    Raises ConfigError for a number out of range or when there is no data set at all.
    """

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        predict: Mapping[str, Any] | None = None,
        wrap: bool = False,
        num_workers: int | None = None,
        shuffle_test_loader: bool = False,
        use_worker_init_fn: bool = False,
        shuffle_val_dataloader: bool = False,
        *,
        seed: int = 23,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        max_bad_rate: float = 0.01,
        timeout: float = 300.0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("timeout", timeout, 0),
        ):
            if value is not None and not value >= least:
                raise ConfigError(f"{name}: {value}; expected {least} or more")
        if not 0 <= max_bad_rate <= 1:
            raise ConfigError(f"max_bad_rate: {max_bad_rate}; expected a share, 0 to 1")
        splits = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.dataset_configs = {
            name: config for name, config in splits.items() if config is not None
        }
        if not self.dataset_configs:
            raise ConfigError(f"no data set; expected one of {', '.join(splits)}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.persistent_workers, self.pin_memory = persistent_workers, pin_memory
        self.timeout, self.tally = timeout, Tally(max_bad_rate)
        self._shuffled = {
            "train": True,
            "validation": shuffle_val_dataloader,
            "test": shuffle_test_loader,
        }
        self.datasets: dict[str, Any] = {}
        self._resume: dict[str, int] = {}
        if not self.has_validation:  # Lightning then skips it, as it does where there is no method
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation set."""
        return "validation" in self.dataset_configs

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return "test" in self.dataset_configs

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the training set, None when it has none; after `setup`."""
        names = getattr(self.datasets.get("train"), "class_names", None)
        return len(names) if names else None

    def setup(self, stage: str | None = None) -> None:
        """Builds every data set that is not built yet; all number their classes as training does.

        Raises ConfigError for a class that the training set does not have.
        """
        for name, config in self.dataset_configs.items():
            if name not in self.datasets:
                self.datasets[name] = instantiate_from_config(config, path=f"data.params.{name}")
        classes = getattr(self.datasets.get("train"), "class_names", None)
        for name, data in self.datasets.items():
            own = getattr(data, "class_names", None)
            if classes and own and list(own) != list(classes):
                _adopt_classes(data, classes, path=f"data.params.{name}")

    def train_dataloader(self) -> DataLoader[Any]:
        """Whole batches, from where a checkpoint left off."""
        loader = self._loader("train", accumulate=self._accumulate())
        sampler = loader.sampler
        assert isinstance(sampler, EpochSampler)
        # the loader's processes may start to read before Lightning names the epoch
        sampler.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        if self._resume:
            batches = self._resume["samples"] // (self.batch_size * self._rank()[1])
            sampler.set_epoch(self._resume["epoch"])
            sampler.set_start(batches)
            self._tell_lightning(self._resume["epoch"], batches, len(loader))
            self._resume = {}
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation sample once."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test sample once."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every sample to predict once."""
        return self._loader("predict")

    def teardown(self, stage: str) -> None:
        """Says how many samples could not be read."""
        if stage == "fit":
            self.tally.tell()

    def state_dict(self) -> dict[str, int]:
        """The place in training: the epoch, and samples of it that all processes have done with.

        Batches of an optimizer step that is not complete count as not done.
        """
        if self.trainer is None:
            return dict(self._resume)
        loop = self.trainer.fit_loop
        progress: Any = loop.epoch_loop.batch_progress.current
        epoch, batches = max(loop.epoch_progress.current.ready - 1, 0), progress.processed
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        batches -= batches % self._accumulate()
        return {"epoch": epoch, "samples": batches * self.batch_size * self._rank()[1]}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Takes up the place of `state_dict`; the number of processes may have changed."""
        self._resume = dict(state_dict)

    def _tell_lightning(self, epoch: int, batches: int, in_epoch: int) -> None:
        """Count the batches of the epoch that is taken up as this run does.

        Lightning's own count is in batches of the run that saved, and has those of an optimizer
        step that was not complete; it would end the epoch early or late and shift the accumulation.

        in_epoch: batches of an epoch.
        """
        if self.trainer is None:
            return
        loop = self.trainer.fit_loop
        progress: Any = loop.epoch_loop.batch_progress.current
        if epoch != loop.epoch_progress.current.ready - 1:
            if not progress.processed:
                return
            batches = in_epoch  # the epoch before was done; ending it is left to Lightning
        # 1 where the checkpoint was saved at the end of a batch, which Lightning then completes
        to_complete = progress.processed - progress.completed
        progress.ready = progress.started = progress.processed = batches
        progress.completed = batches - to_complete

    def _loader(self, name: str, accumulate: int = 1) -> Loader:
        rank, world_size = self._rank()
        data, is_training = self.datasets[name], name == "train"
        origin = f"data.params.{name}"
        if not is_training:
            _require_readable(data, origin)
        sampler = EpochSampler(
            len(data),
            self.batch_size,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            shuffle=self._shuffled.get(name, False),
            drop_last=is_training,
            seed=self.seed,
        )
        workers = self.num_workers
        if workers is None:
            workers = default_workers(self.trainer.num_devices if self.trainer else 1)
        pin = torch.cuda.is_available() if self.pin_memory is None else self.pin_memory
        watch = Watch(workers) if workers else None
        loader = Loader(
            Keyed(data, self.seed, sampler.rounds, replaces=is_training, reading=watch),
            self.batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=workers > 0 and self.persistent_workers,
            timeout=self.timeout if workers else 0,
        )
        loader.origin, loader.watch = origin, watch
        if is_training:
            self.tally.path, self.tally.store = self._bad_samples_log(), shared_store()
            loader.tally = self.tally
        return loader

    def _bad_samples_log(self) -> Path | None:
        """The file that names bad samples; None in a trial, and where there is no run."""
        trainer = self.trainer
        if trainer is None or getattr(trainer, "fast_dev_run", False) or trainer.barebones:
            return None
        return Path(trainer.default_root_dir) / LOG

    def _rank(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return 0, 1

    def _accumulate(self) -> int:
        """Batches to one optimizer step; a model with several optimizers counts them itself."""
        if self.trainer is None:
            return 1
        model = self.trainer.lightning_module
        return int(getattr(model, "accumulate_grad_batches", self.trainer.accumulate_grad_batches))
