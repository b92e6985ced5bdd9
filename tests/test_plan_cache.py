"""Which plans a cache keeps, and what they share."""

import copy
import pickle
import weakref

import pytest
import torch
from test_decode import SIZES
from test_plan import call
from tiny_pipeline import tiny_pipeline

from lpd_ext import DecodePlan, PlanCache, decode
from lpd_ext.packed_model import PackedModel


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline().model


@pytest.fixture
def plans(model):
    return PlanCache(model)


def size_of(plan):
    return plan.shape.nbytes


def test_a_plan_is_made_once(model, plans):
    plan = plans.get(4, SIZES)
    assert isinstance(plan, DecodePlan)
    assert plans.get(4, tuple(SIZES), True, torch.float32) is plan
    assert plans.get(4, torch.tensor(SIZES)) is plan
    assert plan(**call()).equal(decode(model, group_sizes=SIZES, **call()))


def test_what_tells_plans_apart(plans):
    asked = [(4, SIZES), (5, SIZES), (4, [16]), (4, SIZES, False)]
    asked += [(4, SIZES, True, torch.bfloat16)]
    assert len({id(plans.get(*arguments)) for arguments in asked}) == len(plans) == 5


def test_plans_of_one_dtype_share_their_weights(plans):
    wide = [plans.get(batch_size, SIZES) for batch_size in (1, 2)]
    narrow = [plans.get(batch_size, SIZES, True, torch.bfloat16) for batch_size in (1, 2)]
    assert wide[0].packed is wide[1].packed
    assert narrow[0].packed is narrow[1].packed
    assert wide[0].packed is not narrow[0].packed
    expected = sum(size_of(plan) for plan in wide + narrow)
    expected += wide[0].packed.nbytes + narrow[0].packed.nbytes  # each once
    assert plans.nbytes == expected


def test_the_plan_used_least_recently_goes_first(model):
    sizes = [size_of(DecodePlan(model, batch_size, SIZES)) for batch_size in (1, 2, 3, 4)]
    weights = PackedModel(model, torch.float32).nbytes
    plans = PlanCache(model, weights + sum(sizes[:3]) + sizes[3] - sizes[1])  # all but the second
    first, second, third = (plans.get(batch_size, SIZES) for batch_size in (1, 2, 3))
    plans.get(1, SIZES)
    fourth = plans.get(4, SIZES)
    assert plans.nbytes == plans.max_bytes
    assert plans.get(1, SIZES) is first
    assert plans.get(3, SIZES) is third
    assert plans.get(4, SIZES) is fourth
    assert plans.get(2, SIZES) is not second
    assert second(**call() | one_image()).equal(first(**one_image()))  # dropped, not released


def one_image():
    return {k: v[:1] if torch.is_tensor(v) else v for k, v in call().items()}


def test_the_bound_holds_for_all_but_the_plan_asked_for(model):
    weights = PackedModel(model, torch.float32).nbytes
    bound = weights + 3 * size_of(DecodePlan(model, 2, SIZES))
    plans = PlanCache(model, bound)
    for batch_size in (2, 1, 3, 2, 4, 1, 5, 2):
        for dtype in (torch.float32, torch.bfloat16):
            plan = plans.get(batch_size, SIZES, True, dtype)
            alone = size_of(plan) + plan.packed.nbytes
            assert plans.nbytes <= max(bound, alone)
            assert plans.get(batch_size, SIZES, True, dtype) is plan
    none = PlanCache(model, 0)
    plan = none.get(2, SIZES)
    assert none.get(2, SIZES) is plan
    assert none.get(3, SIZES) is not plan
    assert len(none) == 1


def test_weights_no_plan_uses_are_dropped(model):
    plans = PlanCache(model, 0)
    weights = weakref.ref(plans.get(2, SIZES).packed)
    plans.get(2, SIZES, True, torch.bfloat16)
    assert weights() is None


def test_weights_outlive_the_plan_that_packed_them(model):
    # Packing again would cost a pass over the model each time the bound is met.
    plans = PlanCache(model, 0)
    weights = weakref.ref(plans.get(2, SIZES).packed)
    assert plans.get(3, SIZES).packed is weights()


def test_release_gives_all_back(plans):
    plan = plans.get(4, SIZES)
    gone = [weakref.ref(plan), weakref.ref(plan.packed), weakref.ref(plan._buffers)]
    del plan
    assert plans.nbytes > 0
    plans.release()
    assert (plans.nbytes, len(plans)) == (0, 0)
    assert [ref() for ref in gone] == [None] * 3  # without waiting for the garbage collector
    assert plans.get(4, SIZES)(**call()).shape == (4, 16)


def test_a_released_plan_is_made_anew(plans):
    plan = plans.get(4, SIZES)
    other = plans.get(2, SIZES)
    plan.release()
    assert plans.nbytes == size_of(other) + other.packed.nbytes
    again = plans.get(4, SIZES)
    assert again is not plan
    assert again.packed is other.packed
    assert again(**call()).shape == (4, 16)


def test_a_dropped_plan_that_is_held_still_shares_its_weights(model):
    plans = PlanCache(model, 0)
    held = plans.get(4, SIZES)
    plans.release()
    assert plans.get(2, SIZES).packed is held.packed


def test_copies_begin_empty(plans):
    plans.get(4, SIZES)
    for other in (copy.deepcopy(plans), pickle.loads(pickle.dumps(plans))):
        assert (len(other), other.max_bytes) == (0, plans.max_bytes)
        assert other.model is not plans.model
        assert other.get(4, SIZES)(**call()).equal(plans.get(4, SIZES)(**call()))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((True, SIZES), TypeError, "`batch_size`"),
        ((1.0, SIZES), TypeError, "`batch_size`"),
        ((1, 16), TypeError, "`group_sizes`"),
        ((1, [17]), ValueError, "`group_sizes`"),
        ((1, SIZES, 1), TypeError, "`guided`"),
        ((1, SIZES, True, torch.float16), TypeError, "`dtype`"),
    ],
    ids=str,
)
def test_equal_is_not_enough_to_be_found(plans, arguments, error, match):
    # True == 1 == 1.0: a look-up before the checks would find the plan for one image.
    plans.get(1, SIZES)
    with pytest.raises(error, match=match):
        plans.get(*arguments)
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("bound", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)]
)
def test_bad_bounds(model, bound, error):
    with pytest.raises(error, match=r"^PlanCache: argument `max_bytes`"):
        PlanCache(model, bound)


class TestOutOfMemory:
    """Allocations that fail on demand, as those of torch do."""

    @pytest.fixture
    def memory(self, monkeypatch):
        return Memory(monkeypatch)

    def test_other_plans_make_way(self, plans, memory):
        kept = [weakref.ref(plans.get(batch_size, SIZES)) for batch_size in (2, 3)]
        memory.fails_while(lambda: any(ref() for ref in kept))
        assert plans.get(4, SIZES)(**call()).shape == (4, 16)
        assert len(plans) == 1
        assert memory.failed == 1

    @pytest.mark.parametrize("others", [0, 2])
    def test_it_gives_up_and_works_on(self, model, plans, memory, others):
        for batch_size in range(1, 1 + others):
            plans.get(batch_size, SIZES)
        held = DecodePlan(model, 4, SIZES)
        expected = held(**call())
        memory.fails_while(lambda: True)
        with pytest.raises(MemoryError, match=r"^DecodePlan: .*batch_size 4.*caches \d"):
            plans.get(4, SIZES)
        assert memory.failed == (2 if others else 1)
        assert (len(plans), plans.nbytes) == (0, 0)
        assert held(**call()).equal(expected)
        memory.fails_while(lambda: False)
        assert plans.get(4, SIZES)(**call()).equal(expected)

    def test_weights_that_do_not_fit(self, plans, memory, monkeypatch):
        plans.get(2, SIZES)
        with monkeypatch.context() as patch:
            patch.setattr(PackedModel, "_pack", lambda *args: refuse_memory())
            with pytest.raises(MemoryError, match=r"^PackedModel: .*bfloat16 of about \d"):
                plans.get(2, SIZES, True, torch.bfloat16)
        assert plans.get(2, SIZES, True, torch.bfloat16)(**one_image()).shape == (1, 16)

    def test_other_errors_are_no_lack_of_memory(self, plans, monkeypatch):
        plans.get(2, SIZES)
        monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: fail("no such memory format"))
        with pytest.raises(RuntimeError, match=r"^no such memory format$"):
            plans.get(4, SIZES)
        assert len(plans) == 1


class Memory:
    """Lets `torch.empty` of the buffers fail while there is a reason to."""

    def __init__(self, monkeypatch):
        self.failed = 0
        self._reason = lambda: False
        empty = torch.empty

        def scarce(*args, **kwargs):
            if self._reason():
                self.failed += 1
                refuse_memory()
            return empty(*args, **kwargs)

        monkeypatch.setattr(torch, "empty", scarce)

    def fails_while(self, reason):
        self._reason = reason


def refuse_memory():
    fail("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def fail(message):
    raise RuntimeError(message)
