"""The weights of an LPD as a planned decode reads them: packed once, renewed when they change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from threading import RLock
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lpd_ext.checks import check_device_type, fail, naming_memory
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import LPD, NORM_EPS, Block
from lpd_ext.models.structure import Structure
from lpd_ext.ops import pack_linear
from lpd_ext.ops.group_attention import HEAD_DIMS
from lpd_ext.ops.launch import device_types
from lpd_ext.plain_linear import copy_linear
from lpd_ext.stream_order import StreamOrder
from lpd_ext.watched_weights import Snapshot, check_watchable

Norm: TypeAlias = tuple[Tensor, Tensor]
"""Weight and bias of a LayerNorm, float32."""

Products: TypeAlias = Literal["own", "torch"]
"""Whose matrix products: the package's, for the CPU, or those that torch takes from a library."""

_Linear: TypeAlias = Any  # PackedLinear or PlainLinear, by the products

_OWNER = "PackedModel"
_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_MODEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PackedBlock:
    """One transformer block."""

    norm1: Norm
    qkv: _Linear
    proj: _Linear
    norm2: Norm
    fc1: _Linear
    fc2: _Linear


class PackedModel:
    """A copy of an LPD's weights, its linear layers as a plan's matrix products take them.

    Parameters
    ----------
    model : LPD
        In evaluation, as the package makes it. Kept, and watched for changes.
    dtype : torch.dtype
        float32 or bfloat16, of the packed weights. Embeddings keep the model's dtype, norms and
        biases are float32.
    products : str, optional
        "own", packed for `lpd_ext.ops.fused_linear`, or "torch", as they are, biases in `dtype`; by
        default as `lpd_ext.DecodePlan` chooses.

    Raises
    ------
    ValueError
        The model is in training, computes otherwise than an LPD (hooks, other layers), or its
        weights were made under ``torch.inference_mode()`` and so cannot be watched.
    TypeError
        `model` is no LPD, or a dtype has no kernel.
    NotImplementedError
        The model is on a device without kernels, or there are none for its head_dim.
    MemoryError
        There is not enough memory; the message names the size. Nothing is kept.

    Notes
    -----
    `refresh` notices other tensors in the model, other memory behind them, every change in place
    that torch counts, and, as it does not count those of fused optimizers, a change of any of a few
    values of each weight. It does not see a change of single other values through ``.data`` or
    NumPy. Weights that the model gave up (``model.to(dtype)``) are kept until the next `refresh`.
    `lock` is held by whoever reads or renews the copy: by a plan, for a whole call. `stream_order`
    does the same for their work on a GPU.
    """

    def __init__(self, model: LPD, dtype: torch.dtype, products: Products | None = None) -> None:
        check_model(_OWNER, model, dtype)
        self.products = checked_products(_OWNER, model, products)
        self.model = model
        self.dtype = dtype
        self.lock = RLock()
        self.stream_order = StreamOrder(model.device)
        self.stream_order.wait_before_deleting(self)
        size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
        # Under inference_mode the copies could be renewed nowhere else.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            naming_memory(_OWNER, f"weights in {dtype} of about {size / 2**20:.1f} MiB"),
            self.stream_order.turn(),
        ):
            self._checked = _CheckedModel(model)
            self._seen = Snapshot(self._checked.weights)
            self.token_emb = model.token_emb.weight.clone(memory_format=torch.contiguous_format)
            self.query_token = model.mask_token[0, 0].clone()
            self.pos_embed = model.pos_embed[0, 1:].clone(memory_format=torch.contiguous_format)
            self.embedding_norm = _copied(model.z_proj_ln)
            self.blocks = [
                PackedBlock(
                    norm1=_copied(block.norm1),
                    qkv=self._pack(block.attn.qkv),
                    proj=self._pack(block.attn.proj),
                    norm2=_copied(block.norm2),
                    fc1=self._pack(block.mlp.fc1),
                    fc2=self._pack(block.mlp.fc2),
                )
                for block in _blocks(model)
            ]
            self.norm = _copied(model.norm)
            self.head = self._pack(model.head)

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        tensors = [self.token_emb, self.query_token, self.pos_embed, *self.embedding_norm]
        tensors += [*self.norm, self.head.weight, self.head.bias]
        for block in self.blocks:
            tensors += [*block.norm1, *block.norm2]
            for linear in (block.qkv, block.proj, block.fc1, block.fc2):
                tensors += [linear.weight, linear.bias]
        return sum(tensor.nbytes for tensor in tensors)

    @torch.no_grad()
    def refresh(self) -> bool:
        """Copy the model's weights again, into the same memory, if they have changed.

        Returns
        -------
        bool
            Whether they had.

        Raises
        ------
        ValueError, TypeError, NotImplementedError
            The model cannot be packed now, or a weight has another shape.
        """
        model = self.model
        if not self._checked.holds():
            check_model(_OWNER, model, self.dtype)
            self._checked = _CheckedModel(model)
        weights = self._checked.weights
        if self._seen.holds(weights):
            return False
        check_model(_OWNER, model, self.dtype)
        # Taken before the copy: a change meanwhile, or an error, makes the next call begin again.
        seen = Snapshot(weights)
        self._seen.check_shapes(_OWNER, "model", weights)
        self._seen.forget()
        self.token_emb.copy_(model.token_emb.weight)
        self.query_token.copy_(model.mask_token[0, 0])
        self.pos_embed.copy_(model.pos_embed[0, 1:])
        _copy(self.embedding_norm, model.z_proj_ln)
        for packed, block in zip(self.blocks, _blocks(model), strict=True):
            _copy(packed.norm1, block.norm1)
            self._pack(block.attn.qkv, packed.qkv)
            self._pack(block.attn.proj, packed.proj)
            _copy(packed.norm2, block.norm2)
            self._pack(block.mlp.fc1, packed.fc1)
            self._pack(block.mlp.fc2, packed.fc2)
        _copy(self.norm, model.norm)
        self._pack(model.head, self.head)
        self._seen = seen
        return True

    def _pack(self, linear: nn.Linear, into: _Linear = None) -> _Linear:
        pack = pack_linear if self.products == "own" else copy_linear
        return pack(linear.weight, linear.bias, dtype=self.dtype, into=into)


class _CheckedModel:
    """A model that `check_model` has just accepted, kept as walking through one takes a while."""

    def __init__(self, model: LPD) -> None:
        self._model = model
        self._structure = Structure(model)
        self._norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        self.weights = _weights(model)

    def holds(self) -> bool:
        """Return whether it would be accepted still, but for what `Snapshot` tells of weights."""
        return (
            not self._model.training
            and self._structure.holds()
            and not self._structure.has_hooks()
            and all(norm.eps == NORM_EPS for norm in self._norms)
        )


def check_model(op: str, model: LPD, dtype: torch.dtype | None = None) -> torch.dtype:
    """Demand an LPD that a plan in `dtype`, by default the model's, can serve; return the dtype."""
    if not isinstance(model, LPD):
        fail(TypeError, op, "model", "an LPD", type(model).__name__)
    dtype = model.dtype if dtype is None else dtype
    if dtype not in _PACKED_DTYPES:
        fail(TypeError, op, "dtype", "torch.float32 or torch.bfloat16", dtype)
    if model.dtype not in _MODEL_DTYPES:
        fail(TypeError, op, "model", "float32, bfloat16 or float16", model.dtype)
    if model.training:
        fail(ValueError, op, "model", "a model in evaluation (model.eval())", "one in training")
    check_device_type(op, "model", model.head.weight, ("cpu", "cuda"))
    if model.config.head_dim not in HEAD_DIMS:
        fail(NotImplementedError, op, "model", f"head_dim in {HEAD_DIMS}", model.config.head_dim)
    if len(model.head.weight) != model.config.vocab_size:
        wanted = f"a head of {model.config.vocab_size} outputs, the vocabulary"
        fail(ValueError, op, "model", wanted, len(model.head.weight))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and module.eps != NORM_EPS:
            fail(ValueError, op, "model", f"eps = {NORM_EPS} at {name!r}", module.eps)
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if hooked or type(module) not in _module_types():
            got = f"{type(module).__name__}{' with a hook' if hooked else ''} at {name!r}"
            fail(ValueError, op, "model", "the layers of an LPD, without hooks", got)
    check_watchable(op, "model", _weights(model))
    return dtype


def checked_products(op: str, model: LPD, products: Products | None) -> Products:
    """Demand products that there are on the model's device, by default own ones."""
    has_own = model.device.type in device_types("fused_linear")
    if products is None:
        return "own" if has_own else "torch"
    if products not in ("own", "torch"):
        fail(ValueError, op, "products", "'own' or 'torch'", repr(products))
    if products == "own" and not has_own:
        fail(NotImplementedError, op, "products", f"'torch' on {model.device.type}", "'own'")
    return products


@cache
def _module_types() -> frozenset[type]:
    config = LPDConfig(grid=(1, 1), dim=32, depth=1, num_heads=1, vocab_size=1, num_classes=1)
    with torch.device("meta"):
        return frozenset(type(module) for module in LPD(config).modules())


def _weights(model: LPD) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def _blocks(model: LPD) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _copied(norm: nn.LayerNorm) -> Norm:
    return norm.weight.to(torch.float32, copy=True), norm.bias.to(torch.float32, copy=True)


def _copy(into: Norm, norm: nn.LayerNorm) -> None:
    into[0].copy_(norm.weight)
    into[1].copy_(norm.bias)
