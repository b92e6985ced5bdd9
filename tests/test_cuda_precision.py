"""Settings of torch's CUDA libraries: off inside a block, afterwards as they were."""

import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from test_decode import SIZES
from test_image_plan import GRID, some_codes
from test_plan import call
from tiny_pipeline import tiny_pipeline

from lpd_ext import DecodePlan, ImagePlan
from lpd_ext.cuda_precision import float32_convolutions, float32_sums

GPU = torch.device("cuda", 0)
CONVOLUTIONS, PRODUCTS = torch.backends.cudnn.conv, torch.backends.cuda.matmul


def settings():
    return (
        CONVOLUTIONS.fp32_precision,
        PRODUCTS.allow_bf16_reduced_precision_reduction,
        PRODUCTS.allow_bf16_reduced_precision_reduction_split_k,
    )


@pytest.fixture(autouse=True)
def defaults():
    """As torch has them; whatever a test leaves behind is seen by the next one."""
    assert settings() == ("tf32", True, True)
    yield
    assert settings() == ("tf32", True, True)


def test_convolutions_of_float32_are_not_rounded_to_tf32():
    with float32_convolutions(GPU):
        assert settings() == ("ieee", True, True)


def test_sums_of_bfloat16_products_are_not_rounded():
    with float32_sums(GPU):
        assert settings() == ("tf32", False, True)


def test_what_was_set_before_comes_back():
    CONVOLUTIONS.fp32_precision = "ieee"
    PRODUCTS.allow_bf16_reduced_precision_reduction = (False, False)
    with float32_sums(GPU), float32_convolutions(GPU):
        assert settings() == ("ieee", False, False)
    assert settings() == ("ieee", False, False)
    CONVOLUTIONS.fp32_precision = "tf32"
    PRODUCTS.allow_bf16_reduced_precision_reduction = (True, True)


def test_torch_still_answers_what_it_allows():
    # Its older name for the setting must agree with the newer one afterwards, or it refuses.
    with float32_convolutions(GPU):
        pass
    assert torch.backends.cudnn.allow_tf32


def test_an_error_puts_them_back():
    with pytest.raises(ValueError, match="midway"), float32_convolutions(GPU):
        raise ValueError("midway")


def test_nothing_changes_for_a_cpu():
    cpu = torch.device("cpu")
    with float32_convolutions(cpu), float32_sums(cpu):
        assert settings() == ("tf32", True, True)


def test_the_last_of_several_blocks_puts_them_back():
    # Otherwise the second would find them changed, and leave them so.
    entered, leave = threading.Event(), threading.Event()

    def longer():
        with float32_convolutions(GPU):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=longer)
    with float32_convolutions(GPU):
        thread.start()
        assert entered.wait(10)
    assert settings() == ("ieee", True, True)
    leave.set()
    thread.join()


@pytest.fixture
def blocks(monkeypatch):
    """Names of the blocks that are open."""
    names = []

    def block(name):
        @contextmanager
        def opened(device):
            names.append(name)
            yield
            names.remove(name)

        return opened

    for module in ("plan", "image_plan", "pipeline"):
        for name in ("float32_convolutions", "float32_sums"):
            monkeypatch.setattr(sys.modules[f"lpd_ext.{module}"], name, block(name), raising=False)
    return names


def spy(monkeypatch, place, name, blocks):
    """Return the list of what was open at each call of a function."""
    function, seen = getattr(place, name), []

    def called(*args, **kwargs):
        seen.append(set(blocks))
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, called)
    return seen


def test_a_decode_plan_launches_inside(blocks, monkeypatch):
    captures = spy(monkeypatch, sys.modules["lpd_ext.plan"], "captured", blocks)
    plan = DecodePlan(tiny_pipeline().model, 4, SIZES)
    step = plan._steps[0]
    seen = []
    monkeypatch.setattr(
        plan, "_steps", [type(step)(**vars(step) | {"select": lambda: seen.append(set(blocks))})]
    )
    plan._buffers.tokens.zero_()
    monkeypatch.setattr("lpd_ext.plan.raise_for_invalid", lambda *args: None)
    plan(**call())
    assert captures == seen == [{"float32_sums"}]
    assert not blocks


def test_an_image_plan_launches_inside(blocks, monkeypatch):
    plan = ImagePlan(tiny_pipeline().vq, 4, GRID)
    seen = spy(monkeypatch, plan._own, "image_of", blocks)
    plan(some_codes())
    assert seen == [{"float32_convolutions", "float32_sums"}]
    assert not blocks


def test_a_pipeline_decodes_pictures_inside(blocks, monkeypatch):
    pipeline = tiny_pipeline()
    seen = spy(monkeypatch, pipeline.vq, "decode", blocks)
    pipeline([0], num_steps=2)
    assert seen == [{"float32_convolutions"}]
