"""The tokenizer against the published one, and its refusals."""

import json

import numpy as np
import pytest
import torch
from golden_weights import golden_state_dict

from lpd_ext import VQModel
from lpd_ext.models.config import VQConfig

TINY = VQConfig(
    in_channels=1, channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=8,
    codebook_size=16, codebook_dim=4, norm_groups=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def golden(golden_folder):
    return np.load(golden_folder / "vq_ds16.npz")


@pytest.fixture(scope="module")
def published(golden, golden_folder):
    """The full-size tokenizer under the golden weights, loaded by the published keys."""
    model = VQModel().eval()
    keys = json.loads((golden_folder / "checkpoint_keys.json").read_text())["vq_ds16_c2i"]
    state = golden_state_dict(model.state_dict(), int(golden["seed"]), float(golden["scale"]))
    state["quantize.codebook_used"] = torch.zeros(keys["quantize.codebook_used"])
    assert {k: list(v.shape) for k, v in state.items()} == keys
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return VQModel(TINY).eval()


@torch.no_grad()
def test_decode_matches_published(published, golden):
    image = published.decode(torch.from_numpy(golden["codes"]).long())
    torch.testing.assert_close(image, torch.from_numpy(golden["image"]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_encode_matches_published(published, golden):
    codes = published.encode(torch.from_numpy(golden["encode_input"]))
    assert codes.flatten().tolist() == golden["encode_indices"].tolist()


@torch.no_grad()
def test_encode_gives_raster_order(tiny):
    # On a grid that is not square a transposed order would show.
    image = torch.rand(1, 1, 8, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = tiny.quant_conv(tiny.encoder(image))
    assert z.shape[2:] == (4, 8)
    for row, column in [(0, 0), (0, 7), (3, 2)]:
        latent = torch.nn.functional.normalize(z[0, :, row, column], dim=0)
        torch.testing.assert_close(tiny.latents(image)[0, row * 8 + column], latent)
    assert tiny.encode(image).shape == (1, 4 * 8)


@torch.no_grad()
def test_decode_reads_raster_order(tiny):
    codes = torch.randint(16, (1, 4 * 8), generator=torch.Generator().manual_seed(1))
    z = torch.empty(1, 4, 4, 8)
    for place, code in enumerate(codes[0].tolist()):
        z[0, :, place // 8, place % 8] = tiny.quantize.normalised()[code]
    expected = tiny.decoder(tiny.post_quant_conv(z))
    torch.testing.assert_close(tiny.decode(codes, grid=(4, 8)), expected)


def test_codes_of_a_code_vector_are_itself(tiny):
    weight = torch.nn.functional.normalize(tiny.quantize.embedding.weight, dim=-1)
    assert tiny.quantize.nearest(weight[None]).tolist() == [list(range(16))]


def test_latents_are_what_encode_compares(tiny):
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = tiny.latents(image)
    torch.testing.assert_close(latents.norm(dim=-1), torch.ones(2, 16))
    assert torch.equal((latents @ tiny.quantize.normalised().T).argmax(-1), tiny.encode(image))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m.encode(torch.zeros(1, 3, 8, 8)), ValueError, r"expected \[batch, 1"),
        (lambda m: m.encode(torch.zeros(1, 1, 9, 8)), ValueError, "multiples of 2"),
        (lambda m: m.encode(torch.zeros(1, 8, 8)), ValueError, "image"),
        (lambda m: m.decode(torch.zeros(1, 15, dtype=torch.int64)), ValueError, "seq_len"),
        (lambda m: m.decode(torch.zeros(16, dtype=torch.int64)), ValueError, "codes"),
        (lambda m: m.decode(torch.zeros(1, 16)), TypeError, "int64"),
        (lambda m: m.decode(torch.full((1, 16), 16)), ValueError, r"\[0, 16\)"),
        (lambda m: m.decode(torch.full((1, 16), -1)), ValueError, r"\[0, 16\)"),
    ],
)
def test_bad_input_is_refused(tiny, call, error, match):
    with pytest.raises(error, match=match):
        call(tiny)


def test_config_needs_whole_norm_groups():
    with pytest.raises(ValueError, match="norm_groups"):
        VQConfig(channels=20, norm_groups=8)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"channels": 0}, ValueError),
        ({"codebook_size": 0}, ValueError),
        ({"num_res_blocks": 0}, ValueError),
        ({"channel_mult": (1, 0)}, ValueError),
        ({"channel_mult": ()}, ValueError),
        ({"channel_mult": 2}, TypeError),
        ({"channel_mult": (1, 1.5)}, TypeError),
        ({"channels": 128.0}, TypeError),
        ({"codebook_dim": None}, TypeError),
    ],
    ids=str,
)
def test_config_refuses(change, error):
    with pytest.raises(error, match=f"VQConfig: .*{next(iter(change))}"):
        VQConfig(**change)
