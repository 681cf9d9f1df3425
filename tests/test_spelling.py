"""Names that a user may have misspelt."""

import pytest

from ldm.spelling import require_known


def test_a_known_name_passes():
    require_known("norm", "l2", ["l1", "l2"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("l22", "norm: 'l22'; expected one of l1, l2; did you mean 'l2'?"),
        (None, "norm: None; expected one of l1, l2"),
        (["l2"], "norm: ['l2']; expected one of l1, l2"),
    ],
)
def test_another_value_names_parameter_choices_and_the_nearest(value, message):
    with pytest.raises(ValueError, match="norm") as caught:
        require_known("norm", value, ["l1", "l2"])
    assert str(caught.value) == message
