"""Configurations from names and shapes: all that is published, and a word where that is not all."""

import json
from dataclasses import replace

import pytest
from tiny_checkpoints import VQ_CONFIG

from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.config_of_weights import lpd_config_of, vq_config_of
from lpd_ext.models.vq import VQModel


@pytest.fixture(scope="module")
def published(golden_folder):
    keys = json.loads((golden_folder / "checkpoint_keys.json").read_text())
    return {
        model: {name: tuple(shape) for name, shape in shapes.items()}
        for model, shapes in keys.items()
    }


@pytest.mark.parametrize("size", ["l", "xl", "xxl"])
def test_published_transformers(published, size):
    assert lpd_config_of(published[f"lpd_{size}_256"]) == LPDConfig.named(f"lpd-{size}-256")


@pytest.mark.parametrize("size", ["l", "xl"])
def test_published_transformers_of_512_pixels(published, size):
    shapes = published[f"lpd_{size}_256"]
    shapes = shapes | {"pos_embed": (1, 1025, shapes["pos_embed"][2])}
    assert lpd_config_of(shapes) == LPDConfig.named(f"lpd-{size}-512")


def test_published_tokenizer(published):
    assert vq_config_of(published["vq_ds16_c2i"]) == VQConfig()


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 1},
        {"channels": 64, "channel_mult": (2,)},
        {"channel_mult": (1, 3, 2)},
        {"num_res_blocks": 3},
        {"z_channels": 12, "codebook_dim": 6},
        {"codebook_size": 5},
    ],
    ids=str,
)
def test_any_tokenizer_of_32_groups(changes):
    config = replace(VQ_CONFIG, **changes)
    shapes = {name: tuple(t.shape) for name, t in VQModel(config).state_dict().items()}
    assert vq_config_of(shapes) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": None}, r"no.* of an LPD: missing pos_embed; found blocks"),
        ({"pos_embed": None, "token_emb.weight": None}, "missing pos_embed, token_emb.weight;"),
        ({"pos_embed": (1, 251, 1024)}, "250 positions is of no square grid"),
        ({"pos_embed": (1, 257, 768)}, "num_heads is not in the weights.*width 768 and depth 24"),
        ({"pos_embed": (257, 1024)}, r"pos_embed: expected 3 dimensions, got shape \[257, 1024\]"),
        ({"pos_embed": (1, 0, 1024)}, "pos_embed: expected 3 dimensions"),
        ({"blocks.0.mlp.fc1.weight": (4096,)}, "fc1.weight: expected 2 dimensions"),
        ({"blocks.0.mlp.fc1.weight": (8, 1024)}, "mlp_ratio"),
        ({"blocks.24.norm1.weight": (1024,)}, "width 1024 and depth 25"),
    ],
    ids=str,
)
def test_transformers_that_say_too_little(published, changes, message):
    shapes = {**published["lpd_l_256"], **changes}
    with pytest.raises(ValueError, match=message):
        lpd_config_of({name: shape for name, shape in shapes.items() if shape is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_conv.weight": None}, "of a VQModel: missing quant_conv.weight"),
        ({"encoder.conv_in.weight": (48, 3, 3, 3)}, "divisible by `norm_groups`"),
        ({"encoder.conv_blocks.0.res.0.conv1.weight": None}, "res.0.conv1.weight: expected 4"),
    ],
    ids=str,
)
def test_tokenizers_that_say_too_little(published, changes, message):
    shapes = {**published["vq_ds16_c2i"], **changes}
    with pytest.raises(ValueError, match=message):
        vq_config_of({name: shape for name, shape in shapes.items() if shape is not None})


def test_the_other_model(published):
    with pytest.raises(ValueError, match="not a checkpoint of an LPD: missing pos_embed"):
        lpd_config_of(published["vq_ds16_c2i"])
    with pytest.raises(ValueError, match="not a checkpoint of a VQModel: missing encoder"):
        vq_config_of(published["lpd_l_256"])
