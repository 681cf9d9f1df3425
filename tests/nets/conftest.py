"""What all tests of networks share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Networks this small lose more to the threads waiting for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
