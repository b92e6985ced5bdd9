"""The launches of a plan by stage, named after what each of them runs and reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpd_ext import DecodePlan

Launch: TypeAlias = Callable[[], object]

STAGE_OF_OP = {
    "group_embedding": "embedding",
    "copy_": "blocks",  # that embedded rows are laid in
    "add_layer_norm": "norm",
    "group_attention": "attention",
    "token_selection_": "selection",
}


@torch.no_grad()
def named_launches(plan: DecodePlan) -> Iterator[tuple[str, Launch]]:
    """Yield the launches of a plan, run once for that, and their stages.

    A name comes from what torch dispatches: the linear layer whose weight is read, else the
    operator. So it holds for whatever the plan launches; a launch without a name is an error.
    """
    weights = _weights(plan)
    for step in plan._steps:
        for launch in (step.embed, *step.transform, step.select):
            with _Witness(weights) as witness:
                launch()
            if len(witness.stages) != 1:
                raise LookupError(f"a launch of {witness.seen}: of which stage?")
            yield witness.stages.pop(), launch


def _weights(plan: DecodePlan) -> dict[int, str]:
    """Return the stage of each weight by its address."""
    packed = plan.packed
    assert packed is not None
    owners = {packed.norm[0]: "last norm", packed.head.weight: "head"}
    for block in packed.blocks:
        owners |= {getattr(block, name).weight: name for name in ("qkv", "proj", "fc1", "fc2")}
    return {tensor.data_ptr(): stage for tensor, stage in owners.items()}


class _Witness(TorchDispatchMode):
    """Sees what is dispatched."""

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self._weights = weights
        self.seen: list[str] = []
        self.stages: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(str(func))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        named = [self._weights.get(tensor.data_ptr()) for tensor in tensors]
        op = func.name().partition("::")[2].partition(".")[0]
        stage = next(filter(None, named), None) or STAGE_OF_OP.get(op)
        if stage is not None:
            self.stages.add(stage)
        return func(*args, **kwargs or {})
