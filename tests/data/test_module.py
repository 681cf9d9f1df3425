import contextlib
import os

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ldm.config import ConfigError
from ldm.data.module import DataModuleFromConfig, Keyed, collate, default_workers


class Draws:
    """A data set that makes a random choice for each item, and knows its process."""

    def __init__(self, length=9):
        self.length = length

    def __len__(self):
        return self.length

    def item(self, index, rng):
        return {"image": np.full((2, 2, 3), index, np.uint8), "draw": float(rng.random())}


def config(length=9):
    return {"target": f"{__name__}.Draws", "params": {"length": length}}


def shapes(length, split="train", **params):
    params = {"size": 16, "length": length, "split": split, **params}
    return {"target": "ldm.data.shapes.ShapesDataset", "params": params}


def epoch_of(module, epoch=0):
    """(sample_id, draw) of every training sample of an epoch."""
    module.setup("fit")
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [
        pair
        for batch in loader
        for pair in zip(batch["sample_id"], batch["draw"].tolist(), strict=True)
    ]


def test_an_item_knows_its_sample_and_its_draws_depend_on_seed_epoch_and_sample():
    draws = {
        (seed, epoch, index): Keyed(Draws(), seed)[epoch * 9 + index]["draw"]
        for seed in (0, 1)
        for epoch in (0, 1)
        for index in (0, 8)
    }
    assert len(set(draws.values())) == len(draws)
    assert Keyed(Draws(), 1)[9 + 8]["draw"] == draws[1, 1, 8]
    assert Keyed(Draws(), 1)[9 + 8]["sample_id"] == 8


def test_a_sample_taken_twice_in_a_step_has_another_number_and_other_draws():
    module = DataModuleFromConfig(8, train=config(3), num_workers=0)
    for epoch in range(2):
        pairs = epoch_of(module, epoch)
        assert sorted(sample_id for sample_id, _ in pairs)[:6] == list(range(6))
        assert len({draw for _, draw in pairs}) == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_and_draws_do_not_depend_on_the_number_of_workers(workers):
    alone, helped = (
        DataModuleFromConfig(2, train=config(), num_workers=count) for count in (0, workers)
    )
    for epoch in range(2):
        assert epoch_of(helped, epoch) == epoch_of(alone, epoch)
    assert epoch_of(alone, 0) != epoch_of(alone, 1)


class Placed(DataModuleFromConfig):
    """A data module of one of two processes."""

    def __init__(self, rank, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rank = rank

    def _rank(self):
        return self.rank, 2


def test_two_processes_see_what_one_sees_with_twice_the_batch():
    alone = epoch_of(DataModuleFromConfig(4, train=config(13), num_workers=0))
    ranks = [epoch_of(Placed(rank, 2, train=config(13), num_workers=0)) for rank in range(2)]
    for step in range(3):
        together = [pair for rank in ranks for pair in rank[2 * step : 2 * step + 2]]
        assert sorted(together) == sorted(alone[4 * step : 4 * step + 4])


def test_validation_sees_every_sample_once_in_order_with_the_same_draws():
    module = DataModuleFromConfig(4, validation=config(), num_workers=0)
    module.setup("fit")
    loader = module.val_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([(batch["sample_id"], batch["draw"].tolist()) for batch in loader])
    assert [i for ids, _ in epochs[0] for i in ids] == list(range(9))
    assert epochs[0] == epochs[1]


def test_shuffled_validation_sees_every_sample_in_another_order():
    module = DataModuleFromConfig(
        4, validation=config(), num_workers=0, shuffle_val_dataloader=True
    )
    module.setup("fit")
    ids = [i for batch in module.val_dataloader() for i in batch["sample_id"]]
    assert sorted(ids) == list(range(9)) != ids


def test_collate_joins_each_kind_of_value():
    samples = [
        {
            "image": np.full((2, 3, 3), i, np.uint8),
            "tensor": torch.full((2,), float(i)),
            "caption": "a dog",
            "class_label": i,
            "weight": 0.5,
            "boxes": np.zeros((2, 4), np.float32),
            "box_classes": np.zeros(1 + i, np.int64),
            "points": [0.5] * (1 + i),
            "sample_id": i,
        }
        for i in range(2)
    ]
    batch = collate(samples)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (2, 2, 3, 3)
    assert batch["tensor"].tolist() == [[0, 0], [1, 1]]
    assert batch["caption"] == ["a dog", "a dog"]
    assert batch["class_label"].tolist() == [0, 1]
    assert batch["class_label"].dtype == torch.int64
    assert batch["weight"].dtype == torch.float32
    assert [boxes.shape for boxes in batch["boxes"]] == [(2, 4), (2, 4)]
    assert [len(each) for each in batch["box_classes"]] == [1, 2]
    assert batch["points"] == [[0.5], [0.5, 0.5]]
    assert batch["sample_id"] == [0, 1]
    assert {type(i) for i in batch["sample_id"]} == {int}


def test_collate_takes_read_only_arrays():
    image = np.zeros((2, 2, 3), np.uint8)
    image.setflags(write=False)
    batch = collate([{"image": image, "boxes": image}])
    batch["image"].add_(1)
    batch["boxes"][0].add_(1)
    assert image.sum() == 0


@pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
def test_collate_refuses_arrays_of_different_shapes(kind):
    sizes = [(8, 6, 3), (8, 8, 3), (8, 6, 3)]
    expected = r"^image: a batch holds shapes \(8, 6, 3\), \(8, 8, 3\); bring them to one size$"
    with pytest.raises(ValueError, match=expected):
        collate([{"image": kind(size), "boxes": kind((1, 4))} for size in sizes])


def test_collate_refuses_samples_with_other_keys():
    with pytest.raises(ValueError, match=r"\['a'\] and \['b'\]"):
        collate([{"a": 1}, {"b": 1}])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"batch_size": -1, "train": config()}, "batch_size: -1; expected 1 or more"),
        ({"batch_size": 2, "train": config(), "num_workers": -2}, "num_workers: -2"),
        ({"batch_size": 2, "train": config(), "seed": -3}, "seed: -3"),
        ({"batch_size": 2}, "no data set; expected one of train"),
    ],
)
def test_parameter_out_of_range_is_named(parameters, named):
    with pytest.raises(ConfigError, match=named):
        DataModuleFromConfig(**parameters)


def test_an_error_of_a_data_set_has_its_path_in_the_configuration(tmp_path):
    folder = {"target": "ldm.data.folder.ImageFolder", "params": {"root": str(tmp_path)}}
    module = DataModuleFromConfig(2, train=folder)
    with pytest.raises(ConfigError, match=r"data\.params\.train.*holds no images"):
        module.setup()


def test_published_parameters_are_accepted():
    module = DataModuleFromConfig(2, None, None, config(), None, True, 0, True, True, False)
    module.setup("test")
    assert module.has_test
    assert not module.has_validation
    assert sum(len(batch["sample_id"]) for batch in module.test_dataloader()) == 9


def test_number_of_classes_is_that_of_the_training_set():
    module = DataModuleFromConfig(2, train=shapes(4))
    assert module.num_classes is None
    module.setup()
    assert module.num_classes == 24


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 0), (2, 1, 0), (4, 1, 4), (64, 1, 8), (8, 4, 0)]
)
def test_workers_share_the_cores(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert default_workers(processes) == expected


class Recorder(pl.LightningModule):
    """A model that writes down which samples it was given."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.weight, self.seen, self.fails_at = nn.Parameter(torch.zeros(1)), [], fails_at

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.fails_at:
            raise RuntimeError("interrupted")
        self.seen.append(batch["sample_id"])
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


class Save(pl.Callback):
    """Saves after every batch, epoch and validation, and at an exception."""

    def __init__(self, directory):
        self.directory, self.saved = directory, []

    def save(self, trainer, model):
        path = self.directory / f"{len(self.saved)}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append((path, len(model.seen)))

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.save(trainer, pl_module)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.save(trainer, pl_module)

    def on_exception(self, trainer, pl_module, exception):
        self.save(trainer, pl_module)


def fit(module, *, callbacks=(), resume=None, fails_at=None, **options):
    """Train for two epochs; the samples of every step."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    model = Recorder(fails_at)
    interruption = contextlib.nullcontext()
    if fails_at is not None:
        interruption = pytest.raises(RuntimeError, match="interrupted")
    with interruption:
        trainer.fit(model, datamodule=module, ckpt_path=resume, weights_only=True)
    return model.seen


def both_splits(workers=0):
    return DataModuleFromConfig(2, shapes(9), shapes(3, "validation"), num_workers=workers)


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"limit_train_batches": 3}])
def test_a_run_resumed_anywhere_sees_what_it_would_have_seen(tmp_path, options):
    save = Save(tmp_path)
    whole = fit(both_splits(), callbacks=[save], **options)
    assert len(whole) == (6 if "limit_train_batches" in options else 8)
    for path, steps in save.saved:
        assert whole[:steps] + fit(both_splits(), resume=path, **options) == whole


@pytest.mark.parametrize("fails_at", [2, 4])
def test_a_run_resumed_after_an_exception_repeats_the_interrupted_step(tmp_path, fails_at):
    save = Save(tmp_path)
    whole = fit(both_splits())
    part = fit(both_splits(), callbacks=[save], fails_at=fails_at)
    path, steps = save.saved[-1]
    assert part == whole[:fails_at]
    assert steps == fails_at
    assert part + fit(both_splits(), resume=path) == whole


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_run_resumed_with_another_batch_size_sees_each_sample_once(tmp_path, batch_size):
    def split(size):
        return DataModuleFromConfig(size, shapes(24), num_workers=0)

    def in_order(batches):
        return [sample_id for batch in batches for sample_id in batch]

    first, second = Save(tmp_path / "first"), Save(tmp_path / "second")
    whole = in_order(fit(split(2), callbacks=[first]))
    path, steps = first.saved[3]
    rest = in_order(fit(split(batch_size), callbacks=[second], resume=path))
    assert rest == whole[2 * steps :]
    path, more = second.saved[1]
    again = in_order(fit(split(batch_size), resume=path))
    assert again == whole[2 * steps + batch_size * more :]


def test_a_run_resumed_within_an_optimizer_step_repeats_the_whole_step(tmp_path):
    def steps_of(**options):
        """Batches between two steps of the optimizer, over two epochs of eight batches."""
        save = Save(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        data = DataModuleFromConfig(1, shapes(8), num_workers=0)
        seen = fit(data, callbacks=[save], accumulate_grad_batches=2, **options)
        return seen, save.saved

    whole, _ = steps_of()
    part, saved = steps_of(fails_at=5)
    path, _ = saved[-1]
    rest, ends = steps_of(resume=path)
    assert part == whole[:5]
    assert rest == whole[4:]
    states = [torch.load(end, weights_only=True)["global_step"] for end, _ in ends]
    assert states[:4] == [2, 3, 3, 4]


def test_a_run_resumed_with_workers_sees_what_it_would_have_seen(tmp_path):
    save = Save(tmp_path)
    whole = fit(both_splits(), callbacks=[save])
    path, steps = save.saved[2]
    assert whole[:steps] + fit(both_splits(workers=2), resume=path) == whole


def test_a_place_holds_for_another_number_of_processes():
    module = DataModuleFromConfig(4, train=config(24), num_workers=0)
    module.load_state_dict({"epoch": 1, "samples": 8})
    rest = epoch_of(module, 1)
    halves = []
    for rank in range(2):
        part = Placed(rank, 2, train=config(24), num_workers=0)
        part.load_state_dict({"epoch": 1, "samples": 8})
        halves += epoch_of(part, 1)
    assert len(rest) == 16
    assert sorted(halves) == sorted(rest)


def test_training_without_a_validation_set_runs():
    assert len(fit(DataModuleFromConfig(2, shapes(5), num_workers=0))) == 4


def test_place_is_kept_when_there_is_no_trainer():
    module = DataModuleFromConfig(2, train=config())
    module.load_state_dict({"epoch": 1, "samples": 4})
    assert module.state_dict() == {"epoch": 1, "samples": 4}
