"""Use of a codebook, counted by hand."""

import pytest
import torch

from ldm.nets.codebook_window import (
    CodebookCounts,
    CodebookWindow,
    codebook_use_of,
    count_codes,
)


def codes(*values):
    return torch.tensor(values)


def test_use_of_counts_is_that_worked_out_by_hand():
    use = codebook_use_of(codes(2, 1, 1, 0))
    assert use.usage == 0.75
    # entropy of 1/2, 1/4, 1/4 is 3/2 log 2
    assert use.perplexity.item() == pytest.approx(2**1.5)
    assert use.num_counted == 4


@pytest.mark.parametrize("used", [1, 3, 8])
def test_perplexity_of_codes_used_alike_is_their_number(used):
    use = codebook_use_of(torch.tensor([5] * used + [0] * (8 - used)))
    assert use.perplexity.item() == pytest.approx(used)
    assert use.usage.item() == pytest.approx(used / 8)


def test_nothing_counted_has_no_use_and_is_finite():
    use = codebook_use_of(torch.zeros(4, dtype=torch.int64))
    assert [value.item() for value in use] == [0, 1, 0]


def test_numbers_that_are_no_codes_are_not_counted():
    assert count_codes(codes(0, 2, 2, -1, 3, 7), 3).tolist() == [1, 0, 2]


def test_counts_add_up_over_batches():
    counts = CodebookCounts(4)
    assert [value.item() for value in counts.use()] == [0, 1, 0]
    counts.add(codes(0, 0))
    counts.add(torch.tensor([[1, 2]]))
    use = counts.use()
    assert (use.usage.item(), use.num_counted.item()) == (0.75, 4)
    assert use.perplexity.item() == pytest.approx(2**1.5)


def test_window_keeps_the_last_codes():
    window = CodebookWindow(4, length=4)
    assert [value.item() for value in window.use()] == [0, 1, 0]
    window.add(codes(0, 1, 2))
    assert [value.item() for value in window.use()] == pytest.approx([0.75, 3.0, 3])
    window.add(codes(2, 2))  # 0 falls out: 1, 2, 2, 2
    use = window.use()
    assert (use.usage.item(), use.num_counted.item()) == (0.5, 4)
    # entropy of 1/4, 3/4
    assert use.perplexity.item() == pytest.approx(4 / 3**0.75)
    window.add(codes(3, 3, 3, 3, 0, 0))  # more than it holds: 3, 3, 0, 0
    assert [value.item() for value in window.use()] == pytest.approx([0.5, 2.0, 4])


def test_window_is_that_of_the_last_codes_of_any_division():
    stream = torch.randint(10, (97,), generator=torch.Generator().manual_seed(0))
    whole = CodebookWindow(10, length=13)
    whole.add(stream)
    for size in (1, 5, 13, 20):
        window = CodebookWindow(10, length=13)
        for part in stream.split(size):
            window.add(part)
        assert window.use() == whole.use() == codebook_use_of(count_codes(stream[-13:], 10))


@pytest.mark.parametrize("taken", [0, 3, 13, 30])
def test_window_goes_on_from_the_codes_it_gave(taken):
    stream = torch.randint(10, (47,), generator=torch.Generator().manual_seed(0))
    whole, half, other = (CodebookWindow(10, length=13) for _ in range(3))
    other.add(stream[40:])  # which is forgotten
    for part in stream[:taken].split(5):
        half.add(part)
    other.restore(half.codes())
    for part in stream[:taken].split(5):
        whole.add(part)
    for part in stream[taken:].split(5):
        whole.add(part)
        other.add(part)
        assert other.use() == whole.use()
    assert torch.equal(other.codes(), stream[-13:])
