import pytest
import pytorch_lightning as pl
from torch import distributed

from ldm.config import ConfigError
from ldm.data.module import DataModuleFromConfig
from ldm.data.tally import Tally
from tests.data.test_module import Recorder
from tests.data.test_substitutes import config


def one(name, why="is empty"):
    return [(name, why)]


def test_each_bad_sample_is_written_once_whoever_met_it(tmp_path):
    path = tmp_path / "run/bad_samples.log"
    first, second = Tally(1, path), Tally(1, path)
    first.count(8, [one("a.jpg"), one("b.jpg", "truncated\n(9 bytes)")])
    second.count(8, [one("b.jpg"), one("c.jpg")])
    first.count(8, [one("c.jpg"), one("a.jpg")])
    assert path.read_text() == "a.jpg\tis empty\nb.jpg\ttruncated (9 bytes)\nc.jpg\tis empty\n"
    Tally(1, path).count(8, [one("a.jpg")])  # the run goes on
    assert path.read_text().count("\n") == 3
    assert (first.seen, first.bad) == (16, 4)


def test_too_many_end_with_their_names_and_counts(tmp_path):
    path = tmp_path / "bad.log"
    tally = Tally(0.01, path)
    for number in range(10):
        tally.count(1, [one(f"{number}.jpg", f"image file is truncated ({number} bytes)")])
    with pytest.raises(ConfigError) as raised:
        tally.count(90, [one("10.jpg")])
    said = str(raised.value)
    assert said.startswith("11 of 100 samples cannot be read, more than data.params.max_bad_rate")
    assert "10 x image file is truncated (N bytes), 1 x is empty: 0.jpg (image file" in said
    assert f"9.jpg (image file is truncated (9 bytes)), and 1 more; all are named in {path}" in said


@pytest.mark.parametrize(("rate", "bad", "is_over"), [(0, 0, False), (0, 1, True), (1, 64, False)])
def test_a_rate_of_zero_stops_at_the_first_and_one_never(rate, bad, is_over):
    tally = Tally(rate)
    faults = [one(f"{number}.jpg") for number in range(bad)]
    if is_over:
        with pytest.raises(ConfigError, match=r"1 of 64 samples .* 1 x is empty: 0\.jpg"):
            tally.count(64, faults)
    else:
        tally.count(64, faults)


def test_a_disk_that_fails_late_is_noticed_though_most_was_good():
    tally = Tally(0.01)
    for _ in range(500):
        tally.count(100_000, [])
    with pytest.raises(ConfigError, match="more than"):
        tally.count(6000, [one("a.jpg")] * 3000)


def test_processes_that_train_together_end_behind_the_same_batch():
    store = distributed.HashStore()
    tallies = [Tally(0, store=store), Tally(0.5, store=store), Tally(0, store=store)]
    ends = {}
    for batch in range(200):
        for rank, tally in enumerate(tallies):
            if rank in ends:
                continue
            met = [one(f"{batch}.jpg")] if (batch, rank) in ((7, 1), (9, 0), (10, 2)) else []
            try:
                tally.count(8, met)
            except ConfigError as error:
                ends[rank] = batch, str(error)
    assert [ends[rank][0] for rank in range(3)] == [9 + 50] * 3
    for rank, number in ((0, 9), (2, 10)):
        assert f"1 x is empty: {number}.jpg" in ends[rank][1]
    assert ends[1][1] == "data.params.max_bad_rate: another process met too many bad samples"


def test_a_share_below_the_rate_never_ends_a_run():
    tally = Tally(0.01)
    for _ in range(1000):
        tally.count(1000, [one("a.jpg")] * 9)
    assert tally.bad == 9000


def test_few_are_named_on_the_terminal_and_the_sum_is_told(tmp_path, caplog_ldm):
    tally = Tally(1, tmp_path / "bad.log")
    tally.count(64, [one(f"{number}.jpg") for number in range(30)])
    assert "9.jpg (is empty) is bad" in caplog_ldm.text
    assert "10.jpg" not in caplog_ldm.text
    tally.tell()
    assert "30 of 64 samples that this process read were bad" in caplog_ldm.text
    assert f"30 x is empty; all are named in {tmp_path}/bad.log" in caplog_ldm.text


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog_ldm):
    (tmp_path / "taken").write_text("")
    tally = Tally(1, tmp_path / "taken/bad.log")
    tally.count(8, [one("a.jpg")])
    tally.count(8, [one("b.jpg")])
    assert caplog_ldm.text.count("cannot be written") == 1


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": True}])
def test_a_run_trains_on_and_leaves_its_list_where_it_is_no_trial(tmp_path, options, caplog_ldm):
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, **options}
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = DataModuleFromConfig(4, config(bad=range(5)), num_workers=0)
    model = Recorder()
    trainer.fit(model, datamodule=data)
    is_trial = "fast_dev_run" in options
    assert len(model.seen) == (1 if is_trial else 5)
    assert (tmp_path / "bad_samples.log").exists() is not is_trial
    if not is_trial:
        assert "5 of 20 samples that this process read were bad" in caplog_ldm.text


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"max_bad_rate": 1.5}, "max_bad_rate: 1.5; expected a share, 0 to 1"),
        ({"max_bad_rate": -0.1}, "max_bad_rate: -0.1"),
        ({"max_bad_rate": float("nan")}, "max_bad_rate: nan"),
        ({"timeout": -1}, "timeout: -1; expected 0 or more"),
    ],
)
def test_a_parameter_out_of_range_is_named(parameters, named):
    with pytest.raises(ConfigError, match=named):
        DataModuleFromConfig(2, config(), **parameters)
