import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd_ext import group_sizes

GOLDEN = json.loads((Path(__file__).parent / "golden" / "group_sizes.json").read_text())
PUBLISHED = [
    ({"256 resolution": 256, "512 resolution": 1024}[resolution], int(steps.split()[0]), sizes)
    for resolution, tables in GOLDEN.items()
    for steps, sizes in tables.items()
]


@pytest.mark.parametrize(
    ("seq_len", "num_steps", "sizes"), PUBLISHED, ids=[f"{n}-{k}" for n, k, _ in PUBLISHED]
)
def test_published_tables(seq_len, num_steps, sizes):
    assert group_sizes(seq_len, num_steps) == sizes


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), seq_len=st.integers(1, 5000))
def test_any_schedule(data, seq_len):
    num_steps = data.draw(st.integers(1, seq_len))
    sizes = group_sizes(seq_len, num_steps)
    assert len(sizes) == num_steps
    assert sum(sizes) == seq_len
    assert min(sizes) >= 1
    assert sizes == sorted(sizes)


def test_every_schedule_of_short_sequences():
    # Where rounding moves most: the difference is as large as the groups.
    for seq_len in range(1, 65):
        for num_steps in range(1, seq_len + 1):
            sizes = group_sizes(seq_len, num_steps)
            assert (len(sizes), sum(sizes)) == (num_steps, seq_len)
            assert min(sizes) >= 1
            assert sizes == sorted(sizes)


def test_one_step_decodes_everything():
    assert group_sizes(256, 1) == [256]
    assert group_sizes(2**31 - 1, 1) == [2**31 - 1]


@pytest.mark.parametrize(
    ("seq_len", "num_steps", "error", "message"),
    [
        (256, 0, ValueError, "`num_steps`: expected at least 1, got 0"),
        (256, 257, ValueError, "`num_steps`: expected 1 to seq_len = 256, got 257"),
        (0, 1, ValueError, "`seq_len`: expected at least 1, got 0"),
        (-4, 1, ValueError, "`seq_len`: expected at least 1, got -4"),
        (2**31, 1, ValueError, "`seq_len`: expected 1 to 2147483647, got 2147483648"),
        (2**63, 1, ValueError, "`seq_len`: expected 1 to 2147483647, got 9223372036854775808"),
        (256, 2**63, ValueError, "`num_steps`: expected 1 to seq_len = 256, got 92233720368547"),
        (256, -(2**64), ValueError, "`num_steps`: expected at least 1, got -18446744"),
        (256.0, 20, TypeError, "`seq_len`: expected an int, got float"),
        (256, "20", TypeError, "`num_steps`: expected an int, got str"),
        (256, True, TypeError, "`num_steps`: expected an int, got bool"),
    ],
)
def test_bad_input(seq_len, num_steps, error, message):
    with pytest.raises(error, match=f"^group_sizes: argument {message}"):
        group_sizes(seq_len, num_steps)
