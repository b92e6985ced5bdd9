"""Guidance, filters and draw as few torch calls as they take: the baseline of `token_selection`."""

import torch
from torch import Tensor


def torch_chain(
    logits: Tensor,
    uniform: Tensor,
    *,
    cfg_scale: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Choose one token a row; arguments as those of `lpd_ext.token_selection`.

    One lerp, one topk or one sort (only where a filter is on), softmax, a running sum and a binary
    search. The draw is the inverse CDF: ``torch.multinomial`` draws a random number for every token
    of the vocabulary and takes many times as long on a CPU.
    """
    x = logits.float()
    if cfg_scale is not None:
        conditional, unconditional = x.chunk(2)
        x = torch.lerp(unconditional, conditional, cfg_scale[..., None])
    if temperature == 0:
        return x.argmax(-1)
    if temperature != 1:
        x = x / temperature
    if top_k or top_p < 1:
        ordered = x.topk(top_k).values if top_k else x.sort(-1, descending=True).values
        if top_p < 1:
            mass = ordered.softmax(-1)
            ordered = ordered.masked_fill(mass.cumsum(-1) - mass > top_p, torch.inf)
        x = x.masked_fill(x < ordered.amin(-1, keepdim=True), -torch.inf)
    cumulative = x.softmax(-1).cumsum(-1)
    target = uniform.float().unsqueeze(-1) * cumulative[..., -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return found.clamp(max=x.shape[-1] - 1)
