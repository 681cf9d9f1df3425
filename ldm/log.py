"""The package's logger: every module logs through `log`, nothing prints.

Rank 0 speaks; other ranks only warn, each line with its rank.
"""

from __future__ import annotations

import logging
import os

__all__ = ["log", "rank"]


def rank() -> int:
    """Rank of this process, 0 when there is only one; read from the launcher's environment."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


class _RankFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        process_rank = rank()
        if process_rank:
            record.msg = f"[rank {process_rank}] {record.msg}"
        return process_rank == 0 or record.levelno >= logging.WARNING


def _logger() -> logging.Logger:
    logger = logging.getLogger("ldm")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(_RankFilter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


log = _logger()
