"""`group_attention` against torch's attention: LPD-L on the CPU, on a GPU all models at 256 px."""

import pytest
import torch
from attention_duel import BATCHES, SDPA, Case, duel, duel_on_gpu, gpu_numbers
from roofline import steps

from lpd_ext import group_sizes

HEADS, HEAD_DIM = 16, 64
SCHEDULES = {"256 px / 20": group_sizes(256, 20), "512 px / 48": group_sizes(1024, 48)}
STEPS = [("256 px / 20", 0), ("256 px / 20", 10), ("256 px / 20", 19), ("512 px / 48", 47)]


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize(("schedule", "number"), STEPS, ids=[f"{s[:3]}-{k}" for s, k in STEPS])
def test_group_attention(versus, device, schedule, number, batch, dtype):
    sizes = SCHEDULES[schedule]
    step = list(steps(sizes))[number]
    title = (
        f"{schedule} steps, step {number + 1}: {step.rows} rows x {step.keys} keys, "
        f"batch {batch}, {str(dtype).removeprefix('torch.')}"
    )
    case = Case(step, batch, HEADS, HEAD_DIM, sum(sizes) + 1, dtype, device)
    duel(versus, title, case, SDPA, {})


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("number", gpu_numbers(20), ids="step{}".format)
@pytest.mark.parametrize("model", ["lpd-l-256", "lpd-xl-256"])
def test_group_attention_on_gpu(versus, device, model, number, images):
    duel_on_gpu(versus, device, model, 20, number, images)
