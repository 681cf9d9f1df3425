"""Memory that is kept, and memory that is not there.

What the allocator keeps is seen in glibc's own books, in a process of its own.
"""

import ctypes
import subprocess
import sys
import weakref

import pytest
import torch

from ldm.memory import in_parts, is_out_of_memory, release_memory

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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_an_error_of_memory_is_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_refusal_of_the_cpu_is_one():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    assert is_out_of_memory(refused.value)


def test_what_an_error_holds_is_let_go():
    held = []

    def step():
        activation = torch.ones(4)
        held.append(weakref.ref(activation))
        try:
            raise torch.OutOfMemoryError("inner")
        except torch.OutOfMemoryError as inner:
            raise RuntimeError("outer") from inner

    try:
        step()
    except RuntimeError as error:
        assert held[0]() is not None
        release_memory(error)
        assert held[0]() is None


def test_parts_are_as_large_as_they_may_be_and_join_to_the_whole():
    x, seen = torch.arange(10.0).view(5, 2), []

    def function(part):
        seen.append(len(part))
        return part * 2

    assert torch.equal(in_parts(function, x, 2), x * 2)
    assert torch.equal(in_parts(function, x, None), x * 2)
    assert seen == [2, 2, 1, 5]
