"""A run that goes on trains with the learning rate that it is given."""

import pytest
import pytorch_lightning as pl
import torch

from ldm.callbacks.rate import GivenRate

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Line(pl.LightningModule):
    def __init__(self, rate, is_scheduled):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.rate, self.is_scheduled = rate, is_scheduled
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        if not self.is_scheduled:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def trained(directory, rate, steps, *, is_scheduled, path=None):
    model = Line(rate, is_scheduled)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[GivenRate()],
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(1, 1)), ckpt_path=path)
    trainer.save_checkpoint(directory / f"{steps}.ckpt")
    return model


@pytest.mark.parametrize("is_scheduled", [False, True])
@pytest.mark.parametrize("rate", [0.5, 0.125])
def test_given_rate_takes_the_place_of_the_saved_one(tmp_path, caplog_ldm, is_scheduled, rate):
    trained(tmp_path, 0.5, 2, is_scheduled=is_scheduled)
    model = trained(tmp_path, rate, 5, is_scheduled=is_scheduled, path=tmp_path / "2.ckpt")
    factors = [1 / 3, 1 / 4, 1 / 5] if is_scheduled else [1.0] * 3
    assert model.rates == pytest.approx([rate * factor for factor in factors])
    said = "lr = 0.125 takes the place of the checkpoint's 0.5" in caplog_ldm.text
    assert said == (rate != 0.5)


@pytest.mark.parametrize("is_scheduled", [False, True])
def test_the_same_rate_changes_nothing(tmp_path, is_scheduled):
    whole = trained(tmp_path, 0.3, 5, is_scheduled=is_scheduled)
    trained(tmp_path, 0.3, 2, is_scheduled=is_scheduled)
    rest = trained(tmp_path, 0.3, 5, is_scheduled=is_scheduled, path=tmp_path / "2.ckpt")
    assert rest.rates == whole.rates[2:]
