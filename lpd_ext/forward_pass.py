"""What one forward pass of a planned decode launches, from embedded rows to logits.

A layer takes five launches where matrix products are the package's own (`fused_linear`), behind one
a step that lays the rows in blocks. Where they are torch's it takes seven, with what those leave
over in `add_layer_norm` and `linear_gelu`. The last has no float32, where `bias_gelu` behind a
product of torch makes eight.

Source: the transformer of arXiv 2507.01957; `lpd_ext.models.lpd` has it in modules.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lpd_ext.ops.add_layer_norm import prepare_add_layer_norm
from lpd_ext.ops.bias_gelu import prepare_bias_gelu
from lpd_ext.ops.fused_linear import prepare_fused_linear
from lpd_ext.ops.group_attention import prepare_group_attention
from lpd_ext.ops.launch import Launch
from lpd_ext.ops.linear_gelu import prepare_linear_gelu
from lpd_ext.packed_model import PackedModel, Products
from lpd_ext.plain_linear import PlainLinear
from lpd_ext.plan_buffers import BLOCK, PlanBuffers


def operators(products: Products, dtype: torch.dtype) -> list[str]:
    """Return the operators of a whole step."""
    step = ["group_embedding", "group_attention", "token_selection_"]
    if products == "own":
        return [*step, "fused_linear"]
    return [*step, "add_layer_norm", "bias_gelu" if dtype == torch.float32 else "linear_gelu"]


def forward_pass(weights: PackedModel, buffers: PlanBuffers, step: int) -> list[Launch]:
    """Return the launches of a step, in order."""
    make = _with_own_products if weights.products == "own" else _with_products_of_torch
    return make(weights, buffers, step)


def _with_own_products(weights: PackedModel, buffers: PlanBuffers, step: int) -> list[Launch]:
    x, qkv, attended = _in_blocks(buffers.x(step)), buffers.qkv(step), buffers.attended(step)
    hidden = _in_blocks(buffers.hidden(step))
    launches = [_lay_in_blocks(buffers.embedded(step), x)] if buffers.shape.in_blocks else []
    for layer, block in enumerate(weights.blocks):
        launches += [
            prepare_fused_linear(x, block.qkv, norm=block.norm1, out=qkv),
            _attention(buffers, step, layer, out=attended),
            prepare_fused_linear(attended, block.proj, epilogue="add", out=x),
            prepare_fused_linear(x, block.fc1, norm=block.norm2, epilogue="gelu", out=hidden),
            prepare_fused_linear(hidden, block.fc2, epilogue="add", out=x),
        ]
    queries = x[..., buffers.shape.context_len(step) :, :]
    logits = buffers.logits(step)
    return [*launches, prepare_fused_linear(queries, weights.head, norm=weights.norm, out=logits)]


def _with_products_of_torch(weights: PackedModel, buffers: PlanBuffers, step: int) -> list[Launch]:
    x, qkv, hidden = buffers.x(step), buffers.qkv(step), buffers.hidden(step)
    rows = buffers.attended(step)  # normalised ones, then those of the attention
    product = buffers.product(step)  # in the memory of qkv, which is done with by then
    launches: list[Launch] = []
    delta: Tensor | None = None  # what the residual stream still lacks
    bias: Tensor | None = None
    for layer, block in enumerate(weights.blocks):
        launches += [
            prepare_add_layer_norm(x, block.norm1, delta=delta, bias=bias, out=rows),
            block.qkv.product(rows, with_bias=True, out=qkv),
            _attention(buffers, step, layer, out=rows),
            block.proj.product(rows, out=product),
            prepare_add_layer_norm(x, block.norm2, delta=product, bias=block.proj.bias, out=rows),
            *_linear_gelu(rows, block.fc1, out=hidden),
            block.fc2.product(hidden, out=product),
        ]
        delta, bias = product, block.fc2.bias
    context_len = buffers.shape.context_len(step)
    delta = None if delta is None else delta[:, context_len:]
    queries = buffers.queries(step)
    return [
        *launches,
        prepare_add_layer_norm(
            x[:, context_len:], weights.norm, delta=delta, bias=bias, out=queries
        ),
        weights.head.product(queries, out=buffers.logits(step)),
    ]


def _linear_gelu(rows: Tensor, linear: PlainLinear, out: Tensor) -> list[Launch]:
    if rows.dtype == torch.float32:
        gelu = prepare_bias_gelu(out, linear.bias, out=out)
        return [linear.product(rows, out=out), gelu]
    return [prepare_linear_gelu(rows, linear.weight, linear.bias, out=out)]


def _attention(buffers: PlanBuffers, step: int, layer: int, out: Tensor) -> Launch:
    shape = buffers.shape
    heads = buffers.qkv(step).unflatten(2, (3, shape.config.num_heads, shape.config.head_dim))
    cache_len = sum(shape.context_len(earlier) for earlier in range(step))
    keys, values = buffers.keys[layer], buffers.values[layer]
    return prepare_group_attention(heads, keys, values, cache_len, shape.context_len(step), out=out)


def _in_blocks(rows: Tensor) -> Tensor:
    """Return the memory of whole rows as blocks of features, where these are whole."""
    sequences, q_len, width = rows.shape
    return rows if width % BLOCK else rows.view(width // BLOCK, sequences, q_len, BLOCK)


def _lay_in_blocks(rows: Tensor, blocks: Tensor) -> Launch:
    return partial(
        torch.ops.aten.copy_.default, blocks, rows.unflatten(2, (-1, BLOCK)).movedim(2, 0)
    )
