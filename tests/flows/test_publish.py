"""Cells are turned into what the Prefect UI can show."""

import json

import numpy as np
import pytest

from flows.publish import key, plain


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1, 1), (0.5, 0.5), (True, True), (None, None), ("a", "a"), (float("nan"), None), (float("inf"), "inf"),
        (float("-inf"), "-inf"), (np.int64(3), 3), (np.float32(0.5), 0.5), (np.float64("nan"), None),
        ([0.25, 1.0], "[0.25, 1]"), ([1, 2], "[1, 2]"),
    ],
)  # fmt: skip
def test_a_cell_is_a_finite_number_a_text_or_nothing(value, shown):
    assert plain(value) == shown
    json.dumps(plain(value), allow_nan=False)


def test_a_key_has_only_what_the_server_takes():
    assert key("evaluate direct_flops metrics") == "evaluate-direct-flops-metrics"
