"""How a command ends: its exit code, and the one line that says what the user got wrong.

0                 done; also when there was nothing left to train
1                 an error of ours or of the machine, with its traceback; or weights that diverged
EXIT_CONFIG       what the user wrote is wrong; starting again would not help
74                the last checkpoint could not be written
EXIT_RESUME       stopped by SIGTERM, by the time limit or to be requeued: start it again to go on
EXIT_INTERRUPTED  Ctrl-C; whatever could be saved is
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ldm.callbacks.stopping import EXIT_INTERRUPTED, EXIT_RESUME
from ldm.config import ConfigError
from ldm.log import log

__all__ = ["EXIT_CONFIG", "EXIT_INTERRUPTED", "EXIT_RESUME", "exit_code"]

EXIT_CONFIG = 2  # what the user wrote is wrong; nothing was done


def exit_code(command: Callable[[Sequence[str]], object], argv: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line and exit code 2, Ctrl-C is 130.

    argv: its words, those of the process by default.
    Raises SystemExit for other ends that a training comes to, with their code.
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
