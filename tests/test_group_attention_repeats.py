"""`group_attention` gives the same bits every time, whatever the threads do meanwhile."""

import emulator
import pytest
import torch
from cases import AttentionCase
from test_group_attention import make_inputs, run

from lpd_ext import group_attention

REPEATS = {"cpu": 25, "simt": 6, "cuda": 250}
CASES = [
    # One CTA a pair and share of the rows: only warps and stages of copies can race.
    AttentionCase("unsplit", 2, 40, 3, 64, 100, 20, 257),
    # Keys split over CTAs, merged by a second launch.
    AttentionCase("split", 1, 21, 2, 64, 900, 5, 1025),
]


@pytest.fixture
def reschedule(runs_on):
    """Give the emulator another order of threads and blocks."""
    if runs_on.kind != "simt":
        yield lambda seed: None
        return
    yield lambda seed: emulator.configure(seed=seed)
    emulator.configure()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_repeats_are_bitwise_equal(device, variant, runs_on, reschedule, case):
    inputs = make_inputs(case, torch.bfloat16, device)
    expected = run(group_attention, case, *inputs)
    caches = [cache.clone() for cache in inputs[1:]]
    assert not expected.isnan().any()
    for repeat in range(REPEATS[runs_on.kind]):
        reschedule(seed=repeat + 2)
        assert torch.equal(run(group_attention, case, *inputs), expected)
    for cache, before in zip(inputs[1:], caches, strict=True):
        # Appended again to where it was, the same; NaN elsewhere.
        torch.testing.assert_close(cache, before, rtol=0, atol=0, equal_nan=True)
