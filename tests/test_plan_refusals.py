"""What a plan refuses, in planning and in a call, and that a refusal spoils nothing."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from test_decode import NOT_A_PERMUTATION, SIZES
from test_plan import call
from tiny_pipeline import tiny_pipeline

from lpd_ext import DecodePlan, decode
from lpd_ext.packed_model import PackedModel


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline().model


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size`: expected at least 1, got 0"),
        ({"batch_size": -1}, ValueError, "`batch_size`: expected at least 1, got -1"),
        ({"batch_size": True}, TypeError, "`batch_size`: expected an int, got bool"),
        ({"batch_size": 2.0}, TypeError, "`batch_size`: expected an int, got float"),
        ({"group_sizes": []}, ValueError, "`group_sizes`"),
        ({"group_sizes": [1, 3, 5, 8]}, ValueError, "`group_sizes`: .*16 or less, got .*sum 17"),
        ({"group_sizes": [17, -1]}, ValueError, "`group_sizes`: expected positive sizes"),
        ({"group_sizes": [0, 16]}, ValueError, "`group_sizes`: expected positive sizes"),
        ({"group_sizes": [1, 3.5]}, TypeError, "`group_sizes`: expected a sequence of ints"),
        ({"group_sizes": 16}, TypeError, "`group_sizes`: expected a sequence of ints"),
        ({"guided": 1}, TypeError, "`guided`: expected a bool, got int"),
        ({"guided": None}, TypeError, "`guided`: expected a bool, got NoneType"),
        ({"dtype": torch.float16}, TypeError, r"`dtype`: .*got torch\.float16"),
        ({"dtype": torch.float64}, TypeError, r"`dtype`: .*got torch\.float64"),
        ({"dtype": torch.int64}, TypeError, r"`dtype`: .*got torch\.int64"),
        ({"dtype": "float32"}, TypeError, "`dtype`: .*got float32"),
        ({"model": None}, TypeError, "`model`: expected an LPD, got NoneType"),
    ],
    ids=str,
)
def test_bad_plans(model, change, error, match):
    arguments = {"model": model, "batch_size": 4, "group_sizes": SIZES} | change
    with pytest.raises(error, match=f"^DecodePlan: argument {match}"):
        DecodePlan(**arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_of_the_model_is_the_default_and_must_fit(dtype):
    with pytest.raises(TypeError, match=f"^DecodePlan: argument `dtype`: .*got {dtype}"):
        DecodePlan(tiny_pipeline().model.to(dtype), 4, SIZES)


def test_weights_of_another_model_or_dtype(model):
    others = PackedModel(tiny_pipeline().model, torch.float32)
    with pytest.raises(ValueError, match="`packed`: expected weights of this model"):
        DecodePlan(model, 4, SIZES, packed=others)
    narrow = PackedModel(model, torch.bfloat16)
    with pytest.raises(ValueError, match=r"`packed`: .*in torch\.float32, got .*bfloat16"):
        DecodePlan(model, 4, SIZES, packed=narrow)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"class_labels": torch.empty(0, dtype=torch.int64)}, ValueError, "at least one image"),
        ({"class_labels": torch.tensor([0, 1, 2, 3])}, ValueError, "`class_labels`: .*3"),
        ({"class_labels": [0, 1, 2, 0]}, TypeError, "`class_labels`: .*list"),
        (
            {"class_labels": torch.zeros(4, device="meta").long()},
            ValueError,
            "`class_labels`: .*me",
        ),
        ({"order": NOT_A_PERMUTATION}, ValueError, "`order`: .*permutation"),
        ({"order": torch.arange(16)[None]}, ValueError, "`order`"),
        ({"uniform": None}, ValueError, "`uniform`"),
        ({"uniform": torch.ones(4, 16, dtype=torch.float64)}, ValueError, "`uniform`"),
        ({"cfg_scale": float("nan")}, ValueError, "`cfg_scale`"),
        ({"cfg_scale": torch.ones(3)}, ValueError, "`cfg_scale`"),
        ({"cfg_schedule": "cosine"}, ValueError, "`cfg_schedule`: .*cosine"),
        ({"temperature": torch.tensor([1, 1, 1, -1.0])}, ValueError, "`temperature`"),
        ({"temperature": torch.ones(4, device="meta")}, ValueError, "`temperature`: .*device"),
        ({"top_k": 2.0}, TypeError, "`top_k`"),
        ({"top_p": 1.5}, ValueError, "`top_p`"),
        ({"forced_tokens": torch.full((4, 16), 19)}, ValueError, "`forced_tokens`"),
        ({"known_tokens": torch.eye(4, 16).long() - 1}, ValueError, "`order`: .*known"),
    ],
    ids=str,
)
def test_bad_calls_spoil_nothing(model, change, error, match):
    plan = DecodePlan(model, 4, SIZES)
    with pytest.raises(error, match=match):
        plan(**call(**change))
    assert plan(**call()).equal(decode(model, group_sizes=SIZES, **call()))


def test_more_images_than_planned(model):
    plan = DecodePlan(model, 3, SIZES)
    with pytest.raises(ValueError, match=r"`class_labels`: expected at most the 3 images .*got 4"):
        plan(**call())


@pytest.mark.parametrize("scale", [2.0, torch.ones(4)], ids=["number", "tensor"])
def test_guidance_without_a_plan_for_it(model, scale):
    plan = DecodePlan(model, 4, SIZES, guided=False)
    with pytest.raises(ValueError, match=r"`cfg_scale`: expected the number 1 .*without guidance"):
        plan(**call(cfg_scale=scale))


class TestKnown:
    """The number of known positions is planned."""

    def test_none_given(self, model):
        plan = DecodePlan(model, 4, [3, 8])
        with pytest.raises(ValueError, match=r"`known_tokens`: expected 5 known .*planned, got 0"):
            plan(**call())

    @pytest.mark.parametrize("count", [4, 6])
    def test_another_count(self, model, count):
        plan = DecodePlan(model, 4, [3, 8])
        known = torch.full((4, 16), -1)
        known[:, :count] = 1
        arguments = call(known_tokens=known, order=torch.arange(16).repeat(4, 1))
        with pytest.raises(ValueError, match=f"`known_tokens`: expected 5 known .*got {count}"):
            plan(**arguments)

    def test_known_ones_where_none_were_planned(self, model):
        known = torch.full((4, 16), -1)
        known[:, 0] = 1
        arguments = call(known_tokens=known, order=torch.arange(16).repeat(4, 1))
        with pytest.raises(ValueError, match=r"`known_tokens`: expected 0 known .*got 1"):
            DecodePlan(model, 4, SIZES)(**arguments)


class TestRelease:
    def test_a_released_plan_says_so(self, model):
        plan = DecodePlan(model, 4, SIZES)
        assert not plan.released
        plan.release()
        plan.release()  # once more is once
        assert plan.released
        assert plan.nbytes == {}
        with pytest.raises(RuntimeError, match=r"^DecodePlan: the plan was released"):
            plan(**call())

    def test_others_keep_the_weights_they_share(self, model):
        packed = PackedModel(model, torch.float32)
        first, second = (DecodePlan(model, 4, SIZES, packed=packed) for _ in range(2))
        expected = first(**call())
        first.release()
        assert second(**call()).equal(expected)


class TestOneCallAtATime:
    def test_a_call_from_its_own_progress(self, model):
        # It would overwrite the buffers of the call that is running.
        plan = DecodePlan(model, 4, SIZES)
        with pytest.raises(RuntimeError, match="called from its own `progress`"):
            plan(**call(), progress=lambda *a: plan(**call(seed=1)))
        assert plan(**call()).equal(decode(model, group_sizes=SIZES, **call()))

    def test_an_exception_in_progress(self, model):
        plan = DecodePlan(model, 4, SIZES)
        with pytest.raises(KeyboardInterrupt):
            plan(**call(), progress=stop)
        assert plan(**call()).equal(decode(model, group_sizes=SIZES, **call()))

    def test_threads_wait_for_each_other(self, model):
        # The second call begins in the middle of the first.
        plan = DecodePlan(model, 4, SIZES)
        expected = [decode(model, group_sizes=SIZES, **call(seed=seed)) for seed in range(2)]
        calls = []

        def begin_another(done, *args):
            if done == 2:
                calls.append(pool.submit(plan, **call(seed=1)))
                assert not wait(calls, timeout=0.1).done

        with ThreadPoolExecutor(1) as pool:
            first = plan(**call(), progress=begin_another)
            second = calls[0].result()
        assert first.equal(expected[0])
        assert second.equal(expected[1])

    def test_release_waits_for_a_call(self, model):
        plan = DecodePlan(model, 4, SIZES)
        releases = []
        with ThreadPoolExecutor(1) as pool:
            tokens = plan(**call(), progress=lambda *a: releases.append(pool.submit(plan.release)))
        assert tokens.equal(decode(model, group_sizes=SIZES, **call()))
        assert plan.released
        assert all(release.exception() is None for release in releases)


def stop(*args):
    raise KeyboardInterrupt
