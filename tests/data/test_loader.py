import multiprocessing
import os
import signal
import time

import pytest

from ldm.config import ConfigError
from ldm.data.module import DataModuleFromConfig
from tests.data.test_substitutes import Numbers


class Reading(Numbers):
    """Numbers, of which one is read in an unusual way."""

    def __init__(self, how, place="", at=5, length=12):
        super().__init__(length)
        self.how, self.place, self.at = how, place, at

    def item(self, index, rng):
        if self.how == "slow":
            time.sleep(0.25)
        elif index == self.at:
            if self.how == "pipe":
                with open(self.place) as file:  # which nobody writes to
                    file.read()
            elif self.how == "end":
                os._exit(3)
            else:
                os.kill(os.getpid(), getattr(signal, self.how))
        return super().item(index, rng)

    def name_of(self, index):
        return f"mount/{index}.jpg"


class Faulty:
    """A data set with a bug."""

    def __init__(self, text="a bug"):
        self.text = text

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise RuntimeError(self.text)


def module(how, workers=1, **params):
    reading = {"target": f"{__name__}.Reading", "params": {"how": how, **params.pop("reading", {})}}
    found = DataModuleFromConfig(4, predict=reading, num_workers=workers, **params)
    found.setup()
    return found


def read(found):
    return [batch["index"].tolist() for batch in found.predict_dataloader()]


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "5.jpg")
    return str(tmp_path / "5.jpg")


def test_a_read_that_never_returns_is_named_and_its_process_killed(pipe):
    began = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        read(module("pipe", timeout=0.4, reading={"place": pipe}))
    assert time.monotonic() - began < 10  # on an idle machine 1: twice the time, and a start
    said = str(raised.value)
    assert said.startswith("data.params.predict: has been reading mount/5.jpg for 0.")
    assert "longer than data.params.timeout, 0.4 s" in said
    pid = int(said.partition("pid ")[2].partition(")")[0])
    assert pid not in {process.pid for process in multiprocessing.active_children()}


def test_a_batch_may_take_longer_than_a_sample():
    found = module("slow", timeout=0.8, reading={"length": 4})
    assert read(found) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("how", "said"),
    [("SIGKILL", "was killed by SIGKILL"), ("SIGSEGV", "SIGSEGV"), ("end", "ended with 3")],
)
def test_a_process_that_dies_is_one_error_with_what_it_read_and_the_usual_causes(how, said):
    with pytest.raises(ConfigError) as raised:
        read(module(how))
    text = str(raised.value)
    assert text.startswith("data.params.predict: a loader process (pid ")
    assert f"{said} while it read mount/5.jpg; the usual causes are too little memory" in text
    assert "--shm-size" in text


def test_a_bug_of_a_data_set_keeps_its_own_error():
    found = DataModuleFromConfig(4, predict={"target": f"{__name__}.Faulty"}, num_workers=0)
    found.setup()
    with pytest.raises(RuntimeError, match=r"^a bug$") as raised:
        next(iter(found.predict_dataloader()))
    assert raised.traceback[-1].name == "__getitem__"


def test_an_epoch_that_is_over_stays_over():
    found = module("none", reading={"at": 99}, persistent_workers=False)
    batches = iter(found.predict_dataloader())
    assert len(list(batches)) == 3
    assert list(batches) == []


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device",
        "unable to write to file </torch_1_2_3>: No space left on device (28)",
    ],
)
def test_too_little_shared_memory_is_told_with_the_remedy(text):
    params = {"text": text}
    faulty = {"target": f"{__name__}.Faulty", "params": params}
    found = DataModuleFromConfig(4, predict=faulty, num_workers=0)
    found.setup()
    with pytest.raises(ConfigError, match=r"</torch_1_2_3>: No space .*--shm-size=8g"):
        next(iter(found.predict_dataloader()))


def test_a_death_interrupts_nothing_but_the_wait_for_the_next_batch():
    found = module("none", reading={"at": 99})
    loader = found.predict_dataloader()
    batches = iter(loader)
    next(batches)
    (process,) = loader.processes
    os.kill(process.pid, signal.SIGKILL)
    process.join(5)
    time.sleep(0.05)  # here torch's own answer would raise
    with pytest.raises(ConfigError, match="was killed by SIGKILL"):
        list(batches)


def test_an_error_of_a_loader_process_is_its_own_words():
    found = DataModuleFromConfig(
        4,
        predict={"target": "tests.data.test_substitutes.Numbers", "params": {"bad": [2]}},
        num_workers=1,
    )
    found.setup()
    with pytest.raises(ConfigError) as raised:
        next(iter(found.predict_dataloader()))
    assert str(raised.value).startswith("data.params.predict: 2.jpg: broken; nothing takes its")
    assert "Traceback" not in str(raised.value)
