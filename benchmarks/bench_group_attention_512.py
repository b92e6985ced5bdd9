"""`group_attention` on a GPU at 512 px: a file of its own, so that it fits into one phase."""

import pytest
from attention_duel import BATCHES, duel_on_gpu, gpu_numbers


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("number", gpu_numbers(48), ids="step{}".format)
@pytest.mark.parametrize("model", ["lpd-l-512", "lpd-xl-512"])
def test_group_attention_on_gpu(versus, device, model, number, images):
    duel_on_gpu(versus, device, model, 48, number, images)
