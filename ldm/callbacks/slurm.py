"""What SLURM says of the job that a training runs in, and how the job is queued again."""

from __future__ import annotations

import os
import subprocess
from subprocess import SubprocessError

from ldm.log import log

__all__ = ["is_batch_job", "job_end", "requeue"]

_INTERACTIVE = ("bash", "interactive")  # names of jobs that belong to somebody's terminal
_SECONDS = 60  # that `scontrol` may take


def is_batch_job() -> bool:
    """Whether this process belongs to a job that SLURM could start again by itself."""
    is_interactive = os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE
    return bool(os.environ.get("SLURM_JOB_ID")) and not is_interactive


def job_end() -> float | None:
    """When SLURM will end the job, in seconds since 1970; None where it has not said so."""
    text = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdigit() and int(text) else None


def requeue() -> bool:
    """Ask SLURM to put the job back into the queue; whether it will. A failure is only shown.

    SLURM starts the job's script again then, from its first line, with SLURM_RESTART_COUNT one
    higher. It is not asked where the job was submitted with SBATCH_NO_REQUEUE.
    """
    job = os.environ["SLURM_JOB_ID"]
    if "SBATCH_NO_REQUEUE" in os.environ:
        log.info("job %s is not put back into the queue: SBATCH_NO_REQUEUE is set", job)
        return False
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        problem = (done.stderr or done.stdout).strip() if done.returncode else None
    except (OSError, SubprocessError) as error:
        problem = str(error)
    if problem is None:
        log.info("job %s is back in the queue", job)
    else:
        log.warning("`%s` failed, so start the job again by hand: %s", " ".join(command), problem)
    return problem is None
