"""Two processes on one machine that train together."""

import os
import socket

import torch.multiprocessing as mp


def in_two_processes(function, *arguments):
    """Run `function(rank, 2, *arguments)` in two processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_in_group, args=(port, function, arguments), nprocs=2, start_method="spawn")


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
