"""From the `data` block of a configuration to batches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from ldm.config import ConfigError, instantiate_from_config
from ldm.data.order import EpochSampler

__all__ = ["DataModuleFromConfig", "Keyed", "collate", "default_workers"]

_MAX_WORKERS = 8

# keys whose arrays may have another length in every sample, and so stay apart in a batch
RAGGED = frozenset({"boxes", "box_classes", "layout"})


class Keyed(Dataset[dict[str, Any]]):
    """A data set whose random choices depend on seed, epoch and sample alone.

    data: one that makes random choices offers `item(index, rng)` and draws them from `rng`; another
        is indexed.  rounds: of the `EpochSampler` whose keys it is read by.

    Each item gets `sample_id`: its index, plus the size of the set for each round before.
    """

    def __init__(self, data: Any, seed: int, rounds: int = 1) -> None:
        self.data, self.seed, self.rounds = data, seed, rounds

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int) -> dict[str, Any]:
        """The sample of a key, with the random choices of its epoch."""
        epoch, sample_id = divmod(key, len(self.data) * self.rounds)
        index = sample_id % len(self.data)
        if hasattr(self.data, "item"):
            rng = np.random.default_rng([self.seed, epoch, sample_id])
            return {**self.data.item(index, rng), "sample_id": sample_id}
        return {**self.data[index], "sample_id": sample_id}


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples as one batch, key by key.

    Arrays are stacked, uint8 staying uint8; those of `RAGGED` keys become a list of tensors.
    Numbers become a tensor (B,), except `sample_id`, which stays a list of int; everything else is
    a list.
    Raises ValueError when the samples have different keys, or arrays to stack different shapes.
    """
    names = samples[0].keys()
    for sample in samples:
        if sample.keys() != names:
            raise ValueError(f"samples with the keys {sorted(names)} and {sorted(sample.keys())}")
    return {name: _joined(name, [sample[name] for sample in samples]) for name in names}


def _joined(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray | torch.Tensor) and name not in RAGGED:
        _require_one_shape(name, values)
    if isinstance(first, np.ndarray):
        if name in RAGGED:
            return [torch.from_numpy(np.array(value)) for value in values]
        return torch.from_numpy(np.stack(values))
    if isinstance(first, torch.Tensor):
        return values if name in RAGGED else torch.stack(values)
    if isinstance(first, bool | int | float | np.number) and name != "sample_id":
        return torch.tensor(values)
    return values


def _require_one_shape(name: str, values: Sequence[Any]) -> None:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        found = ", ".join(map(str, shapes[:3])) + (", ..." if len(shapes) > 3 else "")
        raise ValueError(f"{name}: a batch holds shapes {found}; bring them to one size")


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


class _Loader(DataLoader[Any]):
    """A loader with the methods of one that can be resumed.

    Tells Lightning that it is resumable, without storing anything: `DataModuleFromConfig` keeps the
    position.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is restored."""


class DataModuleFromConfig(pl.LightningDataModule):
    """Loaders for the data sets of a configuration.

    batch_size: samples of one process in one batch.
    train, validation, test, predict: configurations of data sets, each `target` and `params`.
    num_workers: loader processes for each training process; by default a share of the cores.
    shuffle_val_dataloader, shuffle_test_loader: another order in each epoch.
    seed: of the order and of every random choice of the data sets.
    persistent_workers: keep the loader processes from one epoch to the next.
    pin_memory: by default where there is a CUDA device.

    wrap, use_worker_init_fn: accepted, without effect. Any object with a length and an index is
        a data set here, and no random choice depends on the workers.

    In training a batch that would be incomplete is left out, a different one in each epoch;
    elsewhere every sample is seen exactly once. A checkpoint holds the place in the epoch.

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
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{name}: {value}; expected {least} or more")
        splits = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.dataset_configs = {
            name: config for name, config in splits.items() if config is not None
        }
        if not self.dataset_configs:
            raise ConfigError(f"no data set; expected one of {', '.join(splits)}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.persistent_workers, self.pin_memory = persistent_workers, pin_memory
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
            self._tell_lightning(self._resume["epoch"], batches, self._limited(len(loader)))
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

    def _limited(self, batches: int) -> int:
        """Batches of an epoch that are trained on."""
        limit: Any = None if self.trainer is None else self.trainer.limit_train_batches
        if limit is None:
            return batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def _loader(self, name: str, accumulate: int = 1) -> _Loader:
        rank, world_size = self._rank()
        data = self.datasets[name]
        sampler = EpochSampler(
            len(data),
            self.batch_size,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            shuffle=self._shuffled.get(name, False),
            drop_last=name == "train",
            seed=self.seed,
        )
        workers = self.num_workers
        if workers is None:
            workers = default_workers(self.trainer.num_devices if self.trainer else 1)
        pin = torch.cuda.is_available() if self.pin_memory is None else self.pin_memory
        return _Loader(
            Keyed(data, self.seed, sampler.rounds),
            self.batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=workers > 0 and self.persistent_workers,
        )

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
