import multiprocessing
import os
import signal
import subprocess
import sys
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


@pytest.mark.parametrize("answer", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_read_that_never_returns_is_named_and_its_process_killed(pipe, answer):
    before = signal.signal(signal.SIGTERM, answer)  # a loader process may not listen to this
    try:
        began = time.monotonic()
        with pytest.raises(ConfigError) as raised:
            read(module("pipe", timeout=0.4, reading={"place": pipe}))
        assert time.monotonic() - began < 10  # twice the time, and the start of a process
    finally:
        signal.signal(signal.SIGTERM, before)
    said = str(raised.value)
    assert said.startswith("data.params.predict: has been reading mount/5.jpg for 0.")
    assert "longer than data.params.timeout, 0.4 s" in said
    pid = int(said.partition("pid ")[2].partition(")")[0])
    assert pid not in {process.pid for process in multiprocessing.active_children()}


HANGING = """
import os, signal, sys
from torch.utils.data import _utils
from tests.data.test_loader import module

_utils.MP_STATUS_CHECK_INTERVAL = 0.1  # seconds that torch gives its processes to end
signal.signal(signal.SIGTERM, lambda *_: None)  # which they inherit, from a run that answers it
batches = iter(module("pipe", reading={"place": sys.argv[1]}).predict_dataloader())
print(next(batches)["index"].tolist())
"""


@pytest.mark.slow
def test_a_program_that_ends_while_a_process_hangs_does_end(pipe):
    words = [sys.executable, "-c", HANGING, pipe]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == "[0, 1, 2, 3]\n"


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
