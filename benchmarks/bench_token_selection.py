"""`token_selection` against the chain of torch calls that does the same, 20 rows of LPD-L."""

import pytest
import torch

from lpd_ext import token_selection

ROWS, VOCAB = 20, 16384
FILTERS = {"plain": {}, "top-k top-p": {"top_k": 600, "top_p": 0.95}}


def torch_chain(logits, uniform, *, cfg_scale, top_k=0, top_p=1.0):
    """The baseline: guidance, topk, softmax, sort, cumulative sum, search."""
    conditional, unconditional = logits.chunk(2)
    x = unconditional + cfg_scale[:, None] * (conditional - unconditional)
    if top_k:
        x = x.masked_fill(x < x.topk(top_k).values[..., -1:], -torch.inf)
    mass = x.softmax(-1)
    if top_p < 1:
        ordered, index = mass.sort(-1, descending=True)
        dropped = (ordered.cumsum(-1) - ordered > top_p).gather(-1, index.argsort(-1))
        mass = mass.masked_fill(dropped, 0)
    cumulative = mass.cumsum(-1)
    target = (uniform.float() * cumulative[..., -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=VOCAB - 1)


@pytest.mark.parametrize("kernel", [token_selection, torch_chain], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", FILTERS)
def test_token_selection(benchmark, case, kernel):
    generator = torch.Generator().manual_seed(0)
    # A spread of 2.5 gives about 6 nats at temperature 1, as trained models have.
    logits = 2.5 * torch.randn(2, ROWS, VOCAB, generator=generator)
    uniform = torch.rand(1, ROWS, dtype=torch.float64, generator=generator)
    options = {"cfg_scale": torch.linspace(1, 1.8, ROWS), **FILTERS[case]}
    same = kernel(logits, uniform, **options) == torch_chain(logits, uniform, **options)
    assert same.float().mean() > 0.85  # the chain's float32 sums move some boundaries
    benchmark(kernel, logits, uniform, **options)
