"""The command line in children of one process that has already imported everything.

An import of torch and Lightning takes longer than a tiny training, so whoever starts hundreds of
trainings starts them as forks. The process that is forked has run nothing and has one thread. It
runs as `python -m tests.forked`, reads an order a line and answers with a line.

    with ForkServer() as server:
        child = server.start(Order(["-b", "config.yaml", "-t"], directory, f"{directory}/said"))
        code = child.wait(timeout=30)
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Self

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # also keeps the imports from starting threads
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "LDM_TRUST": "tests",
}
IMPORTED = (
    "ldm.cli.train",
    "ldm.cli.preflight",
    "ldm.cli.trainer",
    "ldm.conditioning.labels",
    "ldm.data.module",
    "ldm.data.shapes",
    "ldm.losses.autoencoder",
    "ldm.models.autoencoder",
    "ldm.models.diffusion.ddpm",
    "pytorch_lightning",
)
_POLLED = 0.005  # s


@dataclass(frozen=True)
class Order:
    """What a child does.

    argv: words of the command line.  directory: to work in.  said: file for what it prints.
    before: calls made first, each a dotted function and its arguments.
    environment: beside that of the server.
    """

    argv: Sequence[str]
    directory: str
    said: str
    before: Sequence[tuple[str, Sequence[Any]]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A child of the server, in a process group of its own."""

    def __init__(self, pid: int, ask: Callable[[Any], Any]) -> None:
        self.pid, self._ask = pid, ask
        self.code: int | None = None

    def wait(self, timeout: float) -> int | None:
        """Its exit code, minus the number of the signal that ended it; None while it runs.

        timeout: seconds to wait at most.
        """
        if self.code is None:
            self.code = self._ask({"pid": self.pid, "timeout": timeout})
        return self.code

    def kill(self) -> None:
        """SIGKILL; nothing happens if it has ended."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)

    def kill_group(self) -> None:
        """SIGKILL to it and whatever it has started."""
        for pid in group(self.pid):
            os.kill(pid, signal.SIGKILL)


class ForkServer:
    """Starts the process that is forked; a context, at whose end it is gone."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, order: Order) -> Child:
        """A child that carries out an order."""
        return Child(self._ask(vars(order)), self._ask)

    def _ask(self, what: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(what) + "\n")
        stdin.flush()
        if not (answer := stdout.readline()):
            raise RuntimeError("the process that is forked has ended")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def group(leader: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(") ")
        except OSError:  # it has ended
            continue
        state, _, number = rest.split()[:3]
        if int(number) == leader and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def fresh(order: Order) -> list[str]:
    """Words that carry out an order in a process of its own, which imports everything itself."""
    return [sys.executable, "-m", "tests.forked", json.dumps(vars(order))]


def carry_out(order: Order) -> NoReturn:
    """Become the child of an order, to the end of the process."""
    os.setsid()
    os.environ.update(order.environment)
    os.chdir(order.directory)
    said = os.open(order.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, said, said)):
        os.dup2(file, number)
    sys.argv = [str(ROOT / "main.py"), *order.argv]
    sys.modules["__main__"].__spec__ = None  # or Lightning would start this module for more devices
    for name, arguments in order.before:
        module, _, function = name.rpartition(".")
        getattr(import_module(module), function)(*arguments)
    from ldm.cli.train import main

    try:
        code = main(order.argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    # past the interpreter's end: it takes longer than a tiny training, and gloo now and then aborts
    # there a process that has done its work
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> Order:
    """Answer until the input ends; in a child, what is to be done there."""
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # what is imported is not looked through, and so not copied, in each child
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    for line in sys.stdin:
        asked = json.loads(line)
        if "pid" in asked:
            print(json.dumps(_code(asked["pid"], asked["timeout"])), flush=True)
            continue
        pid = os.fork()
        if not pid:
            return Order(**asked)
        print(pid, flush=True)
    sys.exit(0)


def _code(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(_POLLED)


if __name__ == "__main__":
    carry_out(Order(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else _serve())
