"""The seeded weights under which the golden vectors of the published model were made."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def golden_state_dict(shapes: Mapping[str, Tensor], seed: int, scale: float) -> dict[str, Tensor]:
    """Fill float32 tensors of the given names and shapes; norm weights lie around 1."""
    state = {}
    for key, like in shapes.items():
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        value = rng.standard_normal(tuple(like.shape), dtype=np.float32) * np.float32(scale)
        if key.endswith("weight") and value.ndim == 1:
            value += np.float32(1)
        state[key] = torch.from_numpy(value)
    return state
