import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from ldm.callbacks.images import ImageLogger, grid


class Painter(pl.LightningModule):
    """Learns nothing, shows what it is given, and notes how it was asked."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asked = []

    def training_step(self, batch, _):
        return self.weight.square().sum() + 0 * batch["image"].sum()

    def validation_step(self, batch, _): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def log_images(self, batch, split, **options):
        step = self.trainer.global_step
        self.asked.append((split, step, len(batch["image"]), self.training, options))
        assert not torch.is_grad_enabled()
        return {"inputs": batch["image"]}


def samples(count=24):
    values = torch.linspace(-1, 1, count)
    return [{"image": torch.full((3, 8, 8), value)} for value in values]


def fitted(tmp_path, callback, module=None, batch_size=2, **options):
    module = module or Painter()
    loader = DataLoader(samples(), batch_size=batch_size)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(save_dir=tmp_path, name="", version=""),
        default_root_dir=tmp_path,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        max_epochs=1,
        **options,
    )
    trainer.fit(module, loader, DataLoader(samples(4), batch_size=batch_size))
    return module


def steps_of(module, split="train"):
    return [step for which, step, *_ in module.asked if which == split]


def test_pictures_are_made_every_so_many_steps_and_at_powers_of_two_before(tmp_path):
    assert steps_of(fitted(tmp_path, ImageLogger(5))) == [1, 2, 4, 5, 10]
    assert steps_of(fitted(tmp_path, ImageLogger(5, increase_log_steps=False))) == [5, 10]


def test_steps_are_those_of_the_optimizer_unless_batches_are_asked_for(tmp_path):
    logger = ImageLogger(2, increase_log_steps=False)
    assert steps_of(fitted(tmp_path, logger, accumulate_grad_batches=3)) == [2, 4]
    logger = ImageLogger(5, increase_log_steps=False, log_on_batch_idx=True)
    assert steps_of(fitted(tmp_path, logger)) == [6, 11]  # after batches 5 and 10


def test_validation_shows_its_first_batch_once_and_not_in_the_sanity_check(tmp_path):
    assert steps_of(fitted(tmp_path, ImageLogger(100)), "val") == [12]


def test_a_disabled_logger_asks_for_nothing(tmp_path):
    assert fitted(tmp_path, ImageLogger(1, disabled=True)).asked == []


def test_the_model_is_asked_in_evaluation_mode_for_so_many_examples_with_the_options(tmp_path):
    logger = ImageLogger(12, max_images=3, log_images_kwargs={"steps": 7})
    module = fitted(tmp_path, logger, batch_size=4)
    assert {asked[2:4] for asked in module.asked} == {(3, False)}
    assert module.asked[0][4] == {"steps": 7}
    assert module.training


def test_grids_go_to_files_and_to_tensorboard(tmp_path):
    fitted(tmp_path, ImageLogger(6, increase_log_steps=False))
    directory = tmp_path / "images" / "train"
    names = ["inputs_gs-000006_e-000000_b-000005.png", "inputs_gs-000012_e-000000_b-000011.png"]
    assert sorted(path.name for path in directory.iterdir()) == names
    with Image.open(directory / names[0]) as image:
        written = np.asarray(image)
    assert written.shape == (12, 22, 3)  # two of 8 x 8 with margins of 2
    expected = [round((float(each["image"].mean()) + 1) * 127.5) for each in samples()[10:12]]
    assert [written[5, 5, 0], written[5, 15, 0]] == expected
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    shown = events.Images("train/inputs")
    assert [image.step for image in shown] == [6, 12]
    assert (shown[0].height, shown[0].width) == (12, 22)


class GreyPainter(Painter):
    """Shows middle grey, in [0, 1]."""

    def log_images(self, batch, split, **options):
        return {"inputs": torch.full((1, 1, 8, 8), 0.5)}


def test_images_from_zero_to_one_are_shown_as_such(tmp_path):
    fitted(tmp_path, ImageLogger(12, rescale=False, increase_log_steps=False), GreyPainter())
    (path,) = (tmp_path / "images" / "train").iterdir()
    with Image.open(path) as image:
        assert np.asarray(image)[5, 5].tolist() == [128] * 3


def test_a_grid_clips_rounds_and_shows_any_channels():
    images = torch.tensor([-2.0, 0.0, 2.0]).reshape(3, 1, 1, 1)
    assert grid(images, columns=3)[2, 2::3, 0].tolist() == [0, 128, 255]
    levels = torch.linspace(-1, 1, 5).reshape(1, 5, 1, 1).expand(2, 5, 4, 4)
    assert grid(levels).shape == (8, 14, 3)
    assert grid(levels)[4, 4].tolist() == [0, 64, 128]
    assert grid(levels[:, 3:])[4, 4].tolist() == [191, 191, 191]
    assert grid(torch.zeros(5, 3, 4, 4), columns=4).shape == (14, 26, 3)


def test_a_frequency_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_frequency is 0"):
        ImageLogger(0)


class Greedy(Painter):
    """Has memory for so many rows at once, or for none."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def log_images(self, batch, split, micro_batch):
        super().log_images(batch, split, rows=micro_batch)
        if micro_batch > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"inputs": batch["image"]}


def rows_of(module):
    return [options["rows"] for *_, options in module.asked]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_no_more_rows_are_asked_for_than_a_training_batch_has(tmp_path):
    module = fitted(tmp_path, ImageLogger(3, max_images=9), Greedy(8), batch_size=4)
    assert set(rows_of(module)) == {4}
    module = fitted(tmp_path, ImageLogger(3, micro_batch=3), Greedy(8), batch_size=4)
    assert set(rows_of(module)) == {3}


def test_without_memory_for_a_picture_training_goes_on_and_the_next_is_in_smaller_parts(
    tmp_path, caplog_ldm
):
    module = fitted(tmp_path, ImageLogger(1), Greedy(1), batch_size=4)
    assert rows_of(module)[:4] == [4, 2, 1, 1]
    assert module.trainer.global_step == 6
    assert module.training
    (said,) = warnings_of(caplog_ldm)
    assert "Tried to allocate 2.00 GiB" in said
    assert "lightning.callbacks.image_logger.params.micro_batch=2" in said
    names = [path.name for path in (tmp_path / "images" / "train").iterdir()]
    assert sorted(name[:16] for name in names) == [f"inputs_gs-00000{n}" for n in (3, 4, 5, 6)]


def test_without_memory_for_one_image_no_more_are_made(tmp_path, caplog_ldm):
    module = fitted(tmp_path, ImageLogger(1), Greedy(0), batch_size=4)
    assert rows_of(module) == [4, 2, 1]
    assert module.trainer.global_step == 6
    assert "disabled=true" in warnings_of(caplog_ldm)[-1]


class Faulty(Painter):
    def log_images(self, batch, split, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_another_error_of_a_picture_is_none_of_memory(tmp_path):
    with pytest.raises(RuntimeError, match="mat1"):
        fitted(tmp_path, ImageLogger(1), Faulty())
