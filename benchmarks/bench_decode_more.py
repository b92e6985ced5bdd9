"""Whole generations on a GPU in other settings: a file of its own, to fit into one phase."""

import pytest
from decode_duel import duel_on_gpu
from roofline import BATCHES

SETTINGS = [("lpd-l-256", 32), ("lpd-xl-256", 32), ("lpd-l-512", 48)]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize(("model", "num_steps"), SETTINGS)
def test_decode_on_gpu(versus, device, model, num_steps, images):
    duel_on_gpu(versus, device, model, num_steps, images)
