"""Every example in a docstring runs, and every public operation has one."""

import doctest
import importlib
import pkgutil

import pytest

import lpd_ext

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lpd_ext.__path__, "lpd_ext.")
    if not module.name.endswith(("._C", "._host"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize(
    "name",
    [
        "decode",
        "group_attention",
        "group_order",
        "masked_attention",
        "token_selection",
        "token_selection_",
        "LPD",
        "LPDPipeline",
        "DecodePlan",
        "ImagePlan",
        "ops.add_layer_norm",
        "ops.bias_gelu",
        "ops.fused_linear",
        "ops.group_embedding",
        "ops.group_norm_silu",
        "ops.linear_gelu",
        "ops.pack_linear",
    ],
)
def test_public_operations_show_an_example(name):
    thing = lpd_ext
    for part in name.split("."):
        thing = getattr(thing, part)
    assert ">>> " in thing.__doc__
