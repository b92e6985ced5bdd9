"""A plan in bfloat16 is as near to the truth as the same loop in torch, layer by layer."""

import pytest
import torch
from test_decode import SIZES
from test_plan import FORCED, call
from tiny_pipeline import tiny_pipeline

from lpd_ext import DecodePlan, LPDPipeline, decode, group_order, group_sizes
from lpd_ext.kernels import REFERENCE


def errors(logits, truth):
    error = (logits.double() - truth).abs()
    return float(error.max()), float(error.mean())


def compare(make_model, sizes, arguments):
    """Errors of the plan and of `decode` in bfloat16, against `decode` in float64."""
    arguments = arguments | {"return_logits": True}
    model = make_model()
    in_plan = DecodePlan(model, len(arguments["order"]), sizes, dtype=torch.bfloat16)
    planned = in_plan(**arguments)[1]
    narrow = make_model().to(torch.bfloat16)
    unplanned = decode(narrow, group_sizes=sizes, **arguments, kernels=REFERENCE)[1]
    wide = make_model().double()
    truth = decode(wide, group_sizes=sizes, **arguments, kernels=REFERENCE)[1]
    return errors(planned, truth), errors(unplanned, truth)


@pytest.mark.parametrize("scale", [1.0, 3.0, torch.tensor([1.0, 2.0, 4.0, 6.0])], ids=str)
def test_tiny_model(variant, scale):
    arguments = call(forced_tokens=FORCED, cfg_scale=scale)
    planned, unplanned = compare(lambda: tiny_pipeline().model, SIZES, arguments)
    assert planned[0] <= 2 * unplanned[0]
    assert planned[1] <= 1.5 * unplanned[1]
    assert unplanned[0] > 1e-4  # bfloat16 indeed


def test_packaged_model(variant):
    # Trained weights, and features beyond one block of any kernel.
    def packaged():
        return LPDPipeline.from_pretrained("fashion-mnist").model

    config, seeds = packaged().config, torch.arange(3)
    sizes = group_sizes(config.seq_len, 8)
    generator = torch.Generator().manual_seed(0)
    arguments = {
        "class_labels": torch.tensor([0, 7, 9]),
        "order": group_order(seeds, config.grid, sizes),
        "temperature": 0,
        "cfg_scale": 3.0,
        "forced_tokens": torch.randint(config.vocab_size, (3, config.seq_len), generator=generator),
    }
    planned, unplanned = compare(packaged, sizes, arguments)
    assert planned[0] <= 2 * unplanned[0]
    assert planned[1] <= 1.5 * unplanned[1]
    assert unplanned[0] > 1e-3


def test_a_bfloat16_model_is_planned_in_bfloat16():
    model = tiny_pipeline().model.to(torch.bfloat16)
    plan = DecodePlan(model, 4, SIZES)
    assert plan.shape.dtype == torch.bfloat16
    arguments = call(forced_tokens=FORCED, return_logits=True)
    logits = plan(**arguments)[1]
    assert logits.dtype == torch.float32
    unplanned = decode(model, group_sizes=SIZES, **arguments)[1]
    assert float((logits - unplanned).abs().max()) < 0.1 * float(unplanned.abs().max())
