"""Pytest plugin: what of the tests can be judged in a CUDA build where there is no GPU.

`make cuda-build` loads it. It keeps the tests of what was built and captured, every test that
expects an error or a warning, and the first case of each other test marked cuda. What is marked
cuda runs on fake CUDA tensors, which have shapes, dtypes and devices, but no values. A test that
expects an error must get it; another one may stop where it looks at a value or asks for the GPU
itself, and must have mixed no devices by then.
"""

import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch._subclasses import fake_tensor

import lpd_ext

ROOT = Path(__file__).parent.parent
ABOUT_THE_BUILD = re.compile(r"device_types|build_info|[^_]cuda_variant")
ONLY_HERE = {"test_capture", "test_fake_cuda"}
OF_OTHER_THINGS = {"test_cuda_static", "test_fashion_mnist"}  # sources, examples
EXPECTS_AN_ERROR = re.compile(r"\b(raises|warns|refuse)\(")
# Hypothesis takes a look at a value for a failure and shrinks it, files hold no fake tensors, and
# the tests' own checker of orders needs no build.
UNSUITED = re.compile(r"@given|load_state_dict|from_pretrained|check_order\(")

_OPERATOR = "a fake kernel stands in the operator's place, without its checks"
_ADDRESSES = "fake tensors have no addresses"
_VALUES = "on a GPU it expects no error, but values"
_GPU = "it asks for the GPU itself"
NO_GPU = "Found no NVIDIA driver|CUDA driver version is insufficient"
NOT_JUDGED = {  # tests that expect an error; one that passes all the same fails
    "test_arrays.py::TestCuPy::test_arrays_of_two_devices": _GPU,
    "test_group_attention.py::test_the_operator_itself_refuses_one_cache_for_both": _OPERATOR,
    "test_group_attention.py::test_the_operator_itself_refuses_what_is_unsafe": _OPERATOR,
    "test_group_attention_out.py::test_out_may_overlap_nothing": _ADDRESSES,
    "test_group_attention_out.py::test_the_operator_itself_refuses_a_head_dim_that_fills_no_register"
    "": _OPERATOR,
    "test_group_attention_out.py::test_the_operator_itself_refuses_a_wrong_out": _OPERATOR,
    "test_group_attention_ragged.py::test_the_operator_itself_refuses_wrong_lengths": _OPERATOR,
    "test_group_embedding_arguments.py::test_what_is_outside_the_tables": _VALUES,
    "test_group_order.py::test_the_operator_itself_refuses_what_is_unsafe": _OPERATOR,
    "test_group_order_cuda.py::test_a_grid_that_is_too_large": _OPERATOR,
    "test_image_plan.py::TestOnAGpu::test_short_of_memory_a_plan_runs_uncaptured": _GPU,
    "test_masked_attention_arguments.py::test_out_may_overlap_nothing": _ADDRESSES,
    "test_masked_attention_arguments.py::test_the_operator_itself_refuses_what_is_unsafe": (
        _OPERATOR
    ),
    "test_plan_products.py::TestOnAGpu::test_short_of_memory_a_plan_runs_uncaptured": _GPU,
    "test_token_selection_inplace.py::test_a_position_out_of_range_writes_nothing": _VALUES,
}


def pytest_configure():
    assert torch.version.cuda, f"torch {torch.__version__} is no CUDA build"
    imported = Path(lpd_ext.__file__)
    assert not imported.is_relative_to(ROOT / "lpd_ext"), f"{imported} is the source tree's"


def pytest_collection_modifyitems(config, items):
    unused, seen, kept = set(NOT_JUDGED), set(), []
    for item in items:
        name = name_of(item)
        if is_worth_running(item, name not in seen):
            kept.append(item)
            if is_for_cuda(item) and name in NOT_JUDGED:
                item.add_marker(pytest.mark.xfail(reason=NOT_JUDGED[name], strict=True))
                unused.discard(name)
        if is_for_cuda(item):
            seen.add(name)
    if unused and config.args_source is not config.ArgsSource.ARGS:
        raise pytest.UsageError(f"NOT_JUDGED: no such tests: {sorted(unused)}")
    items[:] = kept


def is_worth_running(item, is_first_case):
    if "simt" in item.name or item.module.__name__ in OF_OTHER_THINGS:
        return False
    if item.get_closest_marker("compiles"):  # a compiler asks for the GPU itself
        return False
    if item.module.__name__ in ONLY_HERE or (is_for_cuda(item) and expects_an_error(item)):
        return True
    if UNSUITED.search(source_of(item)):
        return False
    if is_for_cuda(item):
        return is_first_case
    return expects_an_error(item) or ABOUT_THE_BUILD.search(source_of(item)) is not None


def name_of(item):
    """The file of a test, its class and its function."""
    return item.nodeid.rpartition("/")[2].partition("[")[0]


def is_for_cuda(item):
    return item.get_closest_marker("cuda") is not None


def expects_an_error(item):
    return EXPECTS_AN_ERROR.search(source_of(item)) is not None


def source_of(item):
    return source_of_function(item.function)


@cache
def source_of_function(function):
    function = inspect.unwrap(function)
    given = getattr(function, "hypothesis", None)
    return inspect.getsource(function if given is None else given.inner_test)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    try:
        return (yield)
    except RuntimeError as error:
        if not is_for_cuda(item) or expects_an_error(item) or not needs_a_gpu(error):
            raise
        pytest.skip("its fixtures ask for the GPU itself")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not is_for_cuda(item):
        return (yield)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        try:
            return (yield)
        except Exception as error:
            if expects_an_error(item) or not needs_a_gpu(error):
                raise


def needs_a_gpu(error):
    """Whether torch refuses to show a value or finds no GPU, perhaps reported by an assertion."""
    values = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
    while error is not None:
        if isinstance(error, values) or re.search(NO_GPU, str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
