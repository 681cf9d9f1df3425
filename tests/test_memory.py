"""What the allocator keeps is seen in glibc's own books, in a process of its own."""

import ctypes
import subprocess
import sys

import pytest

BOOKS = """
import ctypes
import torch
from ldm.memory import keep_freed_memory

class Books(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

books = ctypes.CDLL(None).mallinfo2
books.restype = Books
if {is_kept}:
    keep_freed_memory()
before = books().fordblks
activation = torch.ones(2**24)  # 64 MiB
del activation
print(books().fordblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer")
@pytest.mark.parametrize("is_kept", [True, False])
def test_freed_memory_is_kept_where_it_was_asked_for(is_kept):
    code = BOOKS.replace("{is_kept}", str(is_kept))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # what was free before may have served the activation's own bookkeeping: some kilobytes
    assert (int(done.stdout) > 0.99 * 2**26) is is_kept
