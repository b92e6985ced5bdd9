"""`token_selection` against chains of torch calls, on the rows of the last step of LPD-L."""

import pytest
import torch
from published_loop import published_sampling
from torch_chain import torch_chain

from lpd_ext import token_selection

ROWS, VOCAB = 20, 16384
FILTERS = {
    "unfiltered": {},
    "top-k 600": {"top_k": 600},
    "top-p 0.95": {"top_p": 0.95},
    "top-k 600, top-p 0.95": {"top_k": 600, "top_p": 0.95},
}


def published_chain(logits, uniform, *, cfg_scale, **filters):
    """What the published loop does, its random numbers its own."""
    conditional, unconditional = logits.chunk(2)
    guided = unconditional + cfg_scale[:, None] * (conditional - unconditional)
    return published_sampling(guided.flatten(0, 1), **filters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", FILTERS)
def test_token_selection(versus, case, dtype):
    generator = torch.Generator().manual_seed(0)
    filters, cfg_scale = FILTERS[case], torch.linspace(4.5, 4.8, ROWS)

    def step():
        # Halves that share most of their spread, as those of a model do: with guidance the
        # entropy at temperature 1 is about 6 nats.
        shared = torch.randn(1, ROWS, VOCAB, generator=generator)
        logits = 2.3 * shared + 0.2 * torch.randn(2, ROWS, VOCAB, generator=generator)
        return logits.to(dtype), torch.rand(1, ROWS, dtype=torch.float64, generator=generator)

    inputs = [step() for _ in range(12)]
    options = {"cfg_scale": cfg_scale, **filters}
    same = torch.cat([token_selection(*i, **options) == torch_chain(*i, **options) for i in inputs])
    assert same.float().mean() > 0.9  # the chain's float32 sums move some boundaries
    conditional, unconditional = inputs[0][0].float().chunk(2)
    guided = unconditional + cfg_scale[:, None] * (conditional - unconditional)
    entropy = torch.distributions.Categorical(logits=guided).entropy().mean().item()
    assert 4 <= entropy <= 8

    versus(
        "token_selection",
        f"{ROWS} x {VOCAB}, {case}, {str(dtype).removeprefix('torch.')}",
        lambda logits, uniform: token_selection(logits, uniform, **options),
        {
            "torch_chain": lambda logits, uniform: torch_chain(logits, uniform, **options),
            "published_chain": lambda logits, uniform: published_chain(logits, uniform, **options),
        },
        inputs=inputs,
        entropy_nats=entropy,
    )
