"""The operators: public function, docstring and fake kernel, one file each."""

from lpd_ext import _binary as _binary  # registers torch.ops.lpd_ext
from lpd_ext.ops.add_layer_norm import add_layer_norm
from lpd_ext.ops.bias_gelu import bias_gelu
from lpd_ext.ops.fused_linear import PackedLinear, fused_linear, pack_linear
from lpd_ext.ops.group_attention import group_attention
from lpd_ext.ops.group_embedding import group_embedding
from lpd_ext.ops.group_norm_silu import group_norm_silu
from lpd_ext.ops.group_order import group_order
from lpd_ext.ops.linear_gelu import linear_gelu
from lpd_ext.ops.masked_attention import masked_attention
from lpd_ext.ops.token_selection import token_selection, token_selection_

__all__ = [
    "PackedLinear",
    "add_layer_norm",
    "bias_gelu",
    "fused_linear",
    "group_attention",
    "group_embedding",
    "group_norm_silu",
    "group_order",
    "linear_gelu",
    "masked_attention",
    "pack_linear",
    "token_selection",
    "token_selection_",
]
