"""What all tests share."""

import torch

# Networks as small as the tests' lose more to threads that wait for each other than they gain, and
# the test processes share the cores among themselves.
torch.set_num_threads(1)
