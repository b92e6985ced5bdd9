import importlib
import itertools
import json
import math
import random
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from cases import GRIDS
from hypothesis import given, settings
from hypothesis import strategies as st
from order_rules import RuleError, check_order

from lpd_ext import cpu_variant, group_order, group_sizes
from lpd_ext.checks import check_order_arguments
from lpd_ext.ops import reference

GOLDEN = json.loads((Path(__file__).parent / "golden" / "orders.json").read_text())
SIZES_20 = group_sizes(256, 20)


def rules_of(golden):
    thresholds = golden["proximity_threshold"], golden["repulsion_threshold"]
    return tuple(golden["grid"]), golden["group_sizes"], *thresholds


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['grid']}-{len(g['group_sizes'])}")
def test_checker_accepts_published_orders(golden):
    for order in golden["orders"]:
        check_order(order, *rules_of(golden))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['grid']}-{len(g['group_sizes'])}")
def test_settings_of_the_published_orders(device, golden):
    grid, sizes, proximity, repulsion = rules_of(golden)
    count = 16 if grid == (16, 16) else 2
    orders = group_order(
        torch.arange(count, device=device),
        grid,
        sizes,
        proximity_threshold=proximity,
        repulsion_threshold=repulsion,
    )
    assert len({tuple(order) for order in orders.tolist()}) == count
    for order in orders.tolist():
        check_order(order, *rules_of(golden))


def swap(order, i, j):
    order[i], order[j] = order[j], order[i]


def test_checker_rejects_broken_orders():
    rules = rules_of(GOLDEN[0])
    rng = random.Random(0)
    swaps = []
    for order in GOLDEN[0]["orders"][:25]:
        # Not a permutation.
        with pytest.raises(RuleError, match="permutation"):
            check_order([order[1], *order[1:]], *rules)
        # Two positions exchanged, anywhere or at the end of the last group, where none is chosen.
        pairs = [rng.sample(range(1, 256), 2) for _ in range(6)] + [(254, 255), (252, 255)]
        for i, j in pairs:
            mutated = list(order)
            swap(mutated, i, j)
            try:
                check_order(mutated, *rules)
            except RuleError as error:
                swaps.append(str(error))
            else:
                swaps.append("accepted")
    # Exchanges of equals are legal: few anywhere, more at the end.
    assert swaps.count("accepted") <= 0.15 * len(swaps)
    # Every kind of rule has been seen to bite.
    assert len(set(swaps) - {"accepted"}) == 5


def test_checker_knows_the_groups():
    # Orders drawn with other rules are no orders of these rules.
    for golden in GOLDEN[1:3]:
        grid, _, proximity, _ = rules_of(golden)
        for order in golden["orders"][:5]:
            with pytest.raises(RuleError):
                check_order(order, grid, SIZES_20, proximity, 2)


@st.composite
def requests(draw):
    grid = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    seq_len = grid[0] * grid[1]
    num_known = draw(st.one_of(st.just(0), st.integers(0, seq_len)))
    left, sizes = seq_len - num_known, []
    while left:
        sizes.append(draw(st.integers(1, left)))
        left -= sizes[-1]
    return {
        "seeds": draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=0, max_size=3)),
        "grid": grid,
        "group_sizes": sizes,
        # 0.7071067811865476 is the score of one diagonal neighbour; 9 is above every score.
        "proximity_threshold": draw(
            st.sampled_from([-1.0, 0.0, 0.5, 0.7071067811865476, 1, 1.5, 2.5, 9.0, float("inf")])
        ),
        "repulsion_threshold": draw(st.sampled_from([0, 1, 2, 3, 4, 2**40])),
        "num_known": num_known,
    }


def known_of(request, device):
    """A different set of the same size in every image, or None."""
    if request["num_known"] == 0:
        return None
    seq_len = request["grid"][0] * request["grid"][1]
    known = torch.zeros(len(request["seeds"]), seq_len, dtype=torch.bool)
    for row in known:
        row[torch.randperm(seq_len)[: request["num_known"]]] = True
    return known.to(device)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(request=requests())
def test_orders_follow_the_rules(request):
    known = known_of(request, "cpu")
    seeds = torch.tensor(request["seeds"], dtype=torch.int64)
    arguments = (request["grid"], request["group_sizes"])
    options = {name: request[name] for name in ("proximity_threshold", "repulsion_threshold")}
    orders = group_order(seeds, *arguments, **options, known=known)
    assert orders.dtype == torch.int64
    assert torch.equal(orders, reference.group_order(seeds, *arguments, **options, known=known))
    for image, order in enumerate(orders.tolist()):
        start = () if known is None else known[image].nonzero().flatten().tolist()
        check_order(order, *arguments, *options.values(), start)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_reference(device, grid):
    seq_len = grid[0] * grid[1]
    sizes = group_sizes(seq_len, min(32, seq_len))
    seeds = torch.tensor([-1], device=device)
    orders = group_order(seeds, grid, sizes)
    assert torch.equal(orders, reference.group_order(seeds, grid, sizes))


# Grids of every shape: registers half full, rows of more than 64 and of more than 128 cells, the
# largest and the next squared distance that 16 bits hold (1 x 256, 1 x 257).
VARIANT_GRIDS = ((1, 1), (5, 1), (7, 9), (16, 16), (3, 65), (130, 2), (1, 256), (1, 257), (12, 12))
PROXIMITIES = (-1.0, 0.7071067811865476, 1.0, 1.5, 9.0)
REPULSIONS = (0, 1, 2, 3, 64, 2**40)


@lru_cache
def variant_cases():
    """Arguments over seeds, grids, thresholds and known masks, with the order of the reference."""
    rng = random.Random(5)
    cases = []
    everything = list(itertools.product(VARIANT_GRIDS, PROXIMITIES, REPULSIONS))
    for grid, proximity, repulsion in rng.sample(everything, 90):  # the reference is slow
        seq_len = grid[0] * grid[1]
        num_known = rng.choice([0, 0, rng.randrange(seq_len + 1)])
        left = seq_len - num_known
        steps = rng.randrange(1, min(left, 12) + 1) if left else 0
        cuts = sorted(rng.sample(range(1, left), steps - 1)) if steps else []
        sizes = [b - a for a, b in itertools.pairwise([0, *cuts, left])] if steps else []
        known = None
        if num_known:
            known = torch.zeros(1, seq_len, dtype=torch.bool)
            known[0, rng.sample(range(seq_len), num_known)] = True
        seeds = torch.tensor([rng.randrange(-(2**63), 2**63)])
        options = {
            "proximity_threshold": proximity,
            "repulsion_threshold": repulsion,
            "known": known,
        }
        arguments = (seeds, grid, sizes)
        cases.append((arguments, options, reference.group_order(*arguments, **options)))
    return cases


def test_every_variant_draws_the_orders_of_the_reference(variant):
    for arguments, options, expected in variant_cases():
        assert torch.equal(group_order(*arguments, **options), expected), (arguments, options)


@lru_cache
def plain_orders(grid, num_steps, repulsion):
    cpu_variant.set_cpu_variant("plain")
    sizes = group_sizes(grid[0] * grid[1], num_steps)
    return group_order(torch.arange(500) - 250, grid, sizes, repulsion_threshold=repulsion)


@pytest.mark.parametrize(
    ("grid", "num_steps", "repulsion"), [((16, 16), 20, 2), ((16, 16), 20, 3), ((32, 32), 48, 4)]
)
def test_every_variant_draws_the_orders_of_plain(variant, grid, num_steps, repulsion):
    expected = plain_orders(grid, num_steps, repulsion)
    cpu_variant.set_cpu_variant(variant)
    sizes = group_sizes(grid[0] * grid[1], num_steps)
    orders = group_order(torch.arange(500) - 250, grid, sizes, repulsion_threshold=repulsion)
    assert torch.equal(orders, expected)


def test_distance_across_the_widest_grid_of_16_bits_and_the_next(variant):
    # Beside the known position 1 starts, some time, position 0: from there the last is farthest,
    # 256 or 255 cells away; 256 squared is 0 in 16 bits.
    for width in (256, 257):
        known = torch.zeros(16, width, dtype=torch.bool)
        known[:, 1] = True
        options = {"repulsion_threshold": 2, "known": known}
        orders = group_order(torch.arange(16), (1, width), [2, width - 3], **options)
        assert {0, 2} == set(orders[:, 1].tolist())
        assert set(orders[:, 2].tolist()) == {width - 1}


def test_distance_beyond_32_bits(variant):
    # From wherever the first position is, the other end is 50000 cells away or more: the square
    # is beyond 2^31.
    width = 100_000
    seeds = torch.tensor([0, 3])
    orders = group_order(seeds, (1, width), [3, width - 3], proximity_threshold=9.0)
    for first, second, third in orders[:, :3].tolist():
        ends = sorted((0, width - 1), key=lambda end: -abs(end - first))
        assert second == ends[0]
        gaps = {ends[1]: abs(ends[1] - first), (first + second) // 2: abs(second - first) // 2}
        assert third in {max(gaps, key=gaps.get), (first + second + 1) // 2}


def test_workspace_of_other_calls_leaves_no_trace(device):
    # The workspace of a thread is kept: a larger and a smaller grid, and one of wide numbers.
    calls = [((16, 16), SIZES_20), ((5, 6), [30]), ((1, 300), [100, 200]), ((24, 24), [76, 500])]
    seeds = torch.arange(3, device=device)
    expected = [group_order(seeds, *call) for call in calls]
    for i, j in itertools.permutations(range(len(calls)), 2):
        assert torch.equal(group_order(seeds, *calls[i]), expected[i])
        assert torch.equal(group_order(seeds, *calls[j]), expected[j])
    assert torch.equal(expected[0], reference.group_order(seeds, *calls[0]))


def test_threads_change_nothing(device):
    seeds = torch.arange(9, device=device)
    expected = group_order(seeds, (16, 16), SIZES_20)
    torch.set_num_threads(2)  # one_thread of conftest.py restores it
    assert torch.equal(group_order(seeds, (16, 16), SIZES_20), expected)


def test_known_positions_come_first(device):
    known = torch.zeros(2, 256, dtype=torch.bool, device=device)
    known[0, :64] = True  # the four top rows
    known[1, 100:164] = True
    sizes = group_sizes(192, 12)
    seeds = torch.tensor([3, 4], device=device)
    orders = group_order(seeds, (16, 16), sizes, known=known)
    for order, start in zip(orders.tolist(), (range(64), range(100, 164)), strict=True):
        check_order(order, (16, 16), sizes, 1.0, 2, list(start))
    # The first generated group touches the known region.
    assert set(orders[0, 64 : 64 + sizes[0]].tolist()) <= set(range(64, 80))


def test_nothing_known_is_no_known(device):
    seeds = torch.arange(3, device=device)
    none = torch.zeros(3, 256, dtype=torch.bool, device=device)
    expected = group_order(seeds, (16, 16), SIZES_20)
    assert torch.equal(group_order(seeds, (16, 16), SIZES_20, known=none), expected)


def test_known_is_any_byte_but_zero(device):
    known = torch.rand(2, 20, device=device).argsort(dim=1) < 5
    seeds = torch.arange(2, device=device)
    expected = group_order(seeds, (4, 5), [15], known=known)
    for byte in (2, 255):
        other = (known.to(torch.uint8) * byte).view(torch.bool)
        assert torch.equal(group_order(seeds, (4, 5), [15], known=other), expected)


def scores():
    return [o + d * 0.70710678118654752440 for o in range(5) for d in range(5)]


@pytest.mark.parametrize("proximity", scores())
def test_every_score_as_threshold(device, proximity):
    # A threshold is reached by the score that equals it and by no smaller one.
    seeds = torch.tensor([7], device=device)
    sizes = group_sizes(30, 6)
    for threshold in (proximity, math.nextafter(proximity, math.inf)):
        options = {"proximity_threshold": threshold, "repulsion_threshold": 1}
        expected = reference.group_order(seeds, (5, 6), sizes, **options)
        assert torch.equal(group_order(seeds, (5, 6), sizes, **options), expected)


def test_everything_known_is_raster(device):
    everything = torch.ones(2, 6, dtype=torch.bool, device=device)
    order = group_order(torch.arange(2, device=device), (2, 3), [], known=everything)
    assert order.tolist() == [list(range(6))] * 2


def test_depends_on_the_seed_alone(device):
    seeds = torch.arange(9, device=device)
    expected = group_order(seeds, (16, 16), SIZES_20)
    assert torch.equal(group_order(seeds[4:5], (16, 16), SIZES_20), expected[4:5])
    assert torch.equal(group_order(seeds.flip(0), (16, 16), SIZES_20), expected.flip(0))
    # Strided seeds and known.
    assert torch.equal(group_order(seeds[::2], (16, 16), SIZES_20), expected[::2])
    wide = torch.rand(256, 18, device=device).argsort(dim=0) < 64
    known = wide.T[::2]
    sizes = group_sizes(192, 20)
    assert torch.equal(
        group_order(seeds, (16, 16), sizes, known=known),
        group_order(seeds, (16, 16), sizes, known=known.contiguous()),
    )


def test_first_position_is_uniform(device):
    count = 4096
    orders = group_order(torch.arange(count, device=device), (4, 4), [1, 15])
    histogram = orders[:, 0].bincount(minlength=16)
    # Mean 256, standard deviation 15.5.
    assert (histogram - 256).abs().max() < 5 * 15.5


def test_empty_batch(device):
    seeds = torch.empty(0, dtype=torch.int64, device=device)
    assert group_order(seeds, (4, 4), [16]).shape == (0, 16)
    known = torch.zeros(0, 16, dtype=torch.bool, device=device)
    assert group_order(seeds, (4, 4), [3], known=known).shape == (0, 16)


@pytest.mark.parametrize("with_known", [False, True])
def test_opcheck(torch_device, with_known):
    known = torch.rand(2, 20, device=torch_device).argsort(dim=1) < 5 if with_known else None
    sizes = [1, 14] if with_known else [1, 19]
    sample = (torch.arange(2, device=torch_device), [4, 5], sizes, 1.0, 2, known)
    torch.library.opcheck(torch.ops.lpd_ext.group_order.default, sample)


def test_compiled(torch_device):
    compiled = torch.compile(group_order, fullgraph=True)
    seeds = torch.arange(3, device=torch_device)
    known = torch.rand(3, 256, device=torch_device).argsort(dim=1) < 64
    for sizes, options in (
        (SIZES_20, {}),
        (SIZES_20, {"proximity_threshold": 1.5, "repulsion_threshold": 3}),
        (group_sizes(192, 20), {"known": known}),
    ):
        out = compiled(seeds, (16, 16), sizes, **options)
        assert torch.equal(out, group_order(seeds, (16, 16), sizes, **options))
    # Contents are not read while compiling; the operator refuses at run time, but not on CUDA.
    if torch_device.type == "cpu":
        with pytest.raises(RuntimeError, match="group_sizes"):
            compiled(seeds, (16, 16), SIZES_20, known=known)
    else:
        assert (compiled(seeds, (16, 16), SIZES_20, known=known) == -1).all()


SEEDS = torch.arange(2)
UNEQUAL = torch.tensor([[True, False, False, False], [True, True, False, False]])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seeds": [1, 2]}, TypeError, "`seeds`: expected a tensor"),
        ({"seeds": SEEDS.int()}, TypeError, "`seeds`: expected int64, got int32"),
        ({"seeds": SEEDS[None]}, ValueError, "`seeds`.*got shape"),
        ({"seeds": SEEDS.to("meta")}, NotImplementedError, "`seeds`.*device .+, got meta"),
        ({"grid": 4}, TypeError, "`grid`: expected \\(height, width\\), got int"),
        ({"grid": (2, 2, 1)}, ValueError, "`grid`.*got 3 numbers"),
        ({"grid": (0, 4)}, ValueError, "`grid`: expected at least 1, got 0"),
        ({"grid": (2**16, 2**15)}, ValueError, "`grid`: .*2\\^31 cells, got 65536 x 32768"),
        ({"grid": (2**64, 1)}, ValueError, "`grid`: .*2\\^31 cells, got 18446744073709551616 x 1"),
        ({"grid": (2.0, 2)}, TypeError, "`grid`: expected an int, got float"),
        ({"group_sizes": 4}, TypeError, "`group_sizes`: expected a sequence of int"),
        ({"group_sizes": torch.tensor([4])}, TypeError, "`group_sizes`.*got Tensor"),
        ({"group_sizes": [1, 2]}, ValueError, "`group_sizes`.*= 4, got 3"),
        ({"group_sizes": [1, 0, 3]}, ValueError, "`group_sizes`: expected at least 1, got 0"),
        ({"group_sizes": [1.0, 3]}, TypeError, "`group_sizes`: expected an int, got float"),
        ({"proximity_threshold": "1"}, TypeError, "`proximity_threshold`: expected a number"),
        ({"proximity_threshold": float("nan")}, ValueError, "`proximity_threshold`.*got nan"),
        ({"repulsion_threshold": 1.5}, TypeError, "`repulsion_threshold`.*got float"),
        ({"repulsion_threshold": -1}, ValueError, "`repulsion_threshold`.*got -1"),
        ({"known": [[True]]}, TypeError, "`known`: expected a tensor"),
        ({"known": UNEQUAL.int()}, TypeError, "`known`: expected bool, got int32"),
        ({"known": UNEQUAL[:1]}, ValueError, "`known`.*got shape"),
        ({"known": UNEQUAL.to("meta")}, ValueError, "`known`.*device cpu, got meta"),
        ({"known": UNEQUAL}, ValueError, "`known`: expected the same number.*got 1 to 2"),
        ({"known": UNEQUAL[[0, 0]]}, ValueError, "`group_sizes`.*= 3, got 4"),
    ],
    ids=str,
)
def test_bad_input(changes, error, message):
    arguments = {"seeds": SEEDS, "grid": (2, 2), "group_sizes": [1, 3], **changes}
    with pytest.raises(error, match=f"^group_order: argument {message}"):
        group_order(**arguments)


@pytest.mark.parametrize(
    ("grid", "sizes", "known"),
    [
        ((2, 2), [1, 4], None),
        ((2, 2), [1, 2], None),
        ((2, 2), [5, -1], None),
        ((2, 2), [2**62, 2**62, 2**62, 2**62 + 4], None),
        ((0, 2), [], None),
        ((2**32, 2**32), [1], None),
        ((2, 2), [1, 4], UNEQUAL),
        ((2, 2), [3], UNEQUAL[:, :3]),
    ],
)
def test_the_operator_itself_refuses_what_is_unsafe(device, grid, sizes, known):
    known = None if known is None else known.to(device)
    with pytest.raises(RuntimeError, match="group_order: argument"):
        torch.ops.lpd_ext.group_order(SEEDS.to(device), grid, sizes, 1.0, 2, known)


def test_the_operator_itself_counts_what_is_known():
    with pytest.raises(RuntimeError, match=r"argument `group_sizes`.*, 2, got 3"):
        torch.ops.lpd_ext.group_order(SEEDS, (2, 2), [3], 1.0, 2, UNEQUAL)


def test_contents_of_known_are_not_read_where_that_would_wait():
    arguments = "group_order", SEEDS, (2, 2), UNEQUAL[[0, 0]]
    assert check_order_arguments(*arguments) == 1
    assert check_order_arguments(*arguments, unread=("cpu",)) is None


def test_more_cells_than_a_device_takes(monkeypatch):
    monkeypatch.setattr(
        importlib.import_module("lpd_ext.ops.group_order"), "MOST_CELLS", {"cpu": 4}
    )
    assert group_order(SEEDS, (2, 2), [4]).shape == (2, 4)
    with pytest.raises(NotImplementedError, match=r"`grid`: .* 4 cells on cpu, got 5 x 1"):
        group_order(SEEDS, (5, 1), [5])
