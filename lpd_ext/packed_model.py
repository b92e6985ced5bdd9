"""The weights of an LPD as a planned decode reads them: packed once, renewed when they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lpd_ext.checks import check_device_type, fail
from lpd_ext.models.lpd import LPD, Block
from lpd_ext.ops import PackedLinear, pack_linear

Norm: TypeAlias = tuple[Tensor, Tensor]
"""Weight and bias of a LayerNorm, float32."""

_OWNER = "PackedModel"


@dataclass(frozen=True)
class PackedBlock:
    """One transformer block."""

    norm1: Norm
    qkv: PackedLinear
    proj: PackedLinear
    norm2: Norm
    fc1: PackedLinear
    fc2: PackedLinear


class PackedModel:
    """A copy of an LPD's weights, its linear layers packed for `lpd_ext.fused_linear`.

    Parameters
    ----------
    model : LPD
        In evaluation, on the CPU. Kept, and watched for changes of its weights.
    dtype : torch.dtype
        float32 or bfloat16, of the packed weights. Embeddings keep the model's dtype, norms and
        biases are float32.

    Raises
    ------
    ValueError
        The model is in training, or its weights were made under ``torch.inference_mode()`` and so
        cannot be watched.
    TypeError
        `model` is no LPD, or the dtype has no kernel.
    NotImplementedError
        The model is on a device without kernels.

    Notes
    -----
    `refresh` notices what torch itself notices: other tensors in the model, other memory behind
    them, and every change in place, ``load_state_dict`` and optimizer steps included. It cannot
    see a change made through ``.data`` or through NumPy.
    """

    DTYPES = (torch.float32, torch.bfloat16)

    def __init__(self, model: LPD, dtype: torch.dtype) -> None:
        check_model(_OWNER, model)
        if dtype not in self.DTYPES:
            fail(TypeError, _OWNER, "dtype", "torch.float32 or torch.bfloat16", dtype)
        self.model = model
        self.dtype = dtype
        self._seen = _weights(model)
        with torch.no_grad():
            self.token_emb = model.token_emb.weight.detach().clone()
            self.query_token = model.mask_token.detach()[0, 0].clone()
            self.pos_embed = model.pos_embed.detach()[0, 1:].clone()
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

    def refresh(self) -> bool:
        """Copy the model's weights again, into the same memory, if they have changed.

        Returns
        -------
        bool
            Whether they had.

        Raises
        ------
        ValueError
            The model is in training now, or a weight has another shape.
        NotImplementedError
            The model went to a device without kernels.
        """
        model = self.model
        check_model(_OWNER, model)
        weights = _weights(model)
        if all(now.is_same(seen) for now, seen in zip(weights, self._seen, strict=True)):
            return False
        for now, seen in zip(weights, self._seen, strict=True):
            if now.tensor.shape != seen.tensor.shape:
                wanted = f"weight {now.name} of shape {list(seen.tensor.shape)}, as packed before"
                fail(ValueError, _OWNER, "model", wanted, list(now.tensor.shape))
        with torch.no_grad():
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
        self._seen = weights  # last: an error half-way makes the next call begin again
        return True

    def _pack(self, linear: nn.Linear, into: PackedLinear | None = None) -> PackedLinear:
        return pack_linear(linear.weight, linear.bias, dtype=self.dtype, into=into)


def check_model(op: str, model: LPD) -> None:
    """Demand an LPD in evaluation on a device that has the kernels of a plan."""
    if not isinstance(model, LPD):
        fail(TypeError, op, "model", "an LPD", type(model).__name__)
    if model.training:
        fail(ValueError, op, "model", "a model in evaluation (model.eval())", "one in training")
    check_device_type(op, "model", model.head.weight, ("cpu",))


@dataclass(frozen=True)
class _Weight:
    """A weight at one moment; it keeps the memory, so that no other can get the same address."""

    name: str
    tensor: Tensor
    address: int
    version: int

    def is_same(self, other: _Weight) -> bool:
        same_kind = self.tensor.dtype == other.tensor.dtype
        return same_kind and (self.address, self.version) == (other.address, other.version)


def _weights(model: LPD) -> list[_Weight]:
    weights = []
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            wanted = "weights made outside torch.inference_mode(), whose changes can be noticed"
            fail(ValueError, _OWNER, "model", wanted, name)
        version = parameter._version
        weights.append(_Weight(name, parameter.detach(), parameter.data_ptr(), version))
    return weights


def _blocks(model: LPD) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _copied(norm: nn.LayerNorm) -> Norm:
    return norm.weight.detach().float().clone(), norm.bias.detach().float().clone()


def _copy(into: Norm, norm: nn.LayerNorm) -> None:
    into[0].copy_(norm.weight)
    into[1].copy_(norm.bias)
