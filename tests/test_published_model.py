"""Which modules are taken for the published LPD."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_pipeline import tiny_pipeline
from torch import nn

import lpd_ext
from lpd_ext import LPDConfig
from lpd_ext.models.published import published_config

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from published_model import published_model


def test_the_configuration_is_read_off():
    model = published_model(seq_len=36, dim=96, depth=3, num_heads=3, vocab=11, classes=5)
    assert published_config("test", model) == LPDConfig(
        grid=(6, 6), dim=96, depth=3, num_heads=3, vocab_size=11, num_classes=5
    )


def randar(model):
    model.pos_instruct_embeddings = nn.Parameter(torch.zeros(1, 64))


def arpg(model):
    model.none_token_id = 7


def without_a_head(model):
    del model.head


def without_blocks(model):
    model.blocks = nn.ModuleList()


def other_blocks(model):
    model.blocks[0] = nn.TransformerEncoderLayer(64, 2)


def heads_unlike_dim(model):
    for block in model.blocks:
        block.attn.num_heads = 5


def tanh_gelu(model):
    model.blocks[1].mlp.act = nn.GELU(approximate="tanh")


def other_eps(model):
    model.blocks[1].norm2.eps = 1e-5


def query_norm(model):
    model.blocks[0].attn.q_norm = nn.LayerNorm(32)


def scale_without_weights(model):
    model.blocks[0].ls1 = nn.Dropout(0.5)


def wrong_vocabulary(model):
    model.head = nn.Linear(64, 20, bias=False)


def no_bias(model):
    model.blocks[0].attn.qkv = nn.Linear(64, 192, bias=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (randar, "LPD: with `pos_instruct_embeddings` it is like RandAR"),
        (arpg, "LPD: with `none_token_id` it is like ARPG"),
        (without_a_head, "LPD without head"),
        (without_blocks, "without a list of `blocks`"),
        (other_blocks, "without blocks.0.attn.qkv, blocks.0.attn.proj, blocks.0.attn.num_heads"),
        (heads_unlike_dim, "weights of the published .*multiple of num_heads=5"),
        (tanh_gelu, "layers of the published .*blocks.1.mlp.act: .*tanh"),
        (other_eps, "blocks.1.norm2: .*eps=1e-05"),
        (query_norm, "unexpected blocks.0.attn.q_norm.bias, blocks.0.attn.q_norm.weight"),
        (scale_without_weights, "blocks.0.ls1: Dropout"),
        (wrong_vocabulary, r"head.weight: expected \[19, 64\], got \[20, 64\]"),
        (no_bias, "missing blocks.0.attn.qkv.bias"),
    ],
)
def test_other_modules(change, match):
    model = published_model()
    change(model)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=f"^accelerate: argument `model`: .*{match}"):
        lpd_ext.accelerate(model)
    assert dict(vars(model)) == before


def test_things_that_are_no_published_model():
    with pytest.raises(TypeError, match="`model`: expected the published LPD module, got Simple"):
        lpd_ext.accelerate(SimpleNamespace())
    with pytest.raises(ValueError, match="Linear without sample_tokens, fake_latent"):
        lpd_ext.accelerate(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"for an lpd_ext\.LPD there is lpd_ext\.DecodePlan"):
        lpd_ext.accelerate(tiny_pipeline().model)
