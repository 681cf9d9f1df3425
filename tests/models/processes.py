"""Two processes on one machine that train together."""

import os
import socket
import sys
import time

import torch.multiprocessing as mp

LIMIT = 300  # s, many times what they take


def in_two_processes(function, *arguments):
    """Run `function(rank, 2, *arguments)` in two processes that find each other.

    Raises what either raised, and TimeoutError, having ended both, if they take longer than LIMIT.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = mp.start_processes(
        _in_group, args=(port, function, arguments), nprocs=2, join=False, start_method="spawn"
    )
    give_up = time.monotonic() + LIMIT
    while not group.join(timeout=1):
        if time.monotonic() > give_up:
            for process in group.processes:
                process.kill()
            raise TimeoutError(f"two processes were not done after {LIMIT} s")


def _in_group(rank, port, function, arguments):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",  # tells Lightning that the processes are there
    }
    function(rank, 2, *arguments)
    # past the interpreter's end, at which gloo now and then aborts a process that has done its work
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
