"""Whole generations to the last pixel, on a GPU: the published VQ-16 decodes what LPD-L drew."""

import pytest
from image_duel import image_duel_on_gpu


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("images", [1, 64])
def test_decode_images_on_gpu(versus, device, images):
    image_duel_on_gpu(versus, device, "lpd-l-256", 20, images)
