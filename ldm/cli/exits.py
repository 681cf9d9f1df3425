"""How a command ends: its exit code, and the one line that says what the user got wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ldm.config import ConfigError
from ldm.log import log

__all__ = ["EXIT_CONFIG", "EXIT_INTERRUPTED", "exit_code"]

EXIT_CONFIG = 2  # what the user wrote is wrong; nothing was done
EXIT_INTERRUPTED = 130  # 128 + SIGINT


def exit_code(command: Callable[[Sequence[str]], object], argv: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line and exit code 2, Ctrl-C is 130.

    argv: its words, those of the process by default.
    """
    try:
        command(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        # one of a loader's process comes with the traceback of that, and itself at the end
        own = str(error).rpartition("BadSample: ")[2].rpartition("ConfigError: ")[2]
        log.error("error: %s", own.rstrip())
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as end:
        # Lightning ends the process with 1 when an interrupt reached it
        if isinstance(end.__context__, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        raise
    return 0
