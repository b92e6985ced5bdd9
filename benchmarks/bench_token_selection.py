"""`token_selection` against chains of calls, on the rows of the last step of LPD-L."""

from importlib import import_module

import pytest
import torch
from attention_duel import GPU_ROUNDS
from published_loop import published_sampling
from roofline import Work, floor_notes
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


def flashinfer_chain(logits, uniform, *, cfg_scale, top_k=VOCAB, top_p=1.0):
    """Guidance in torch, then flashinfer's filters and draw, with random numbers of its own."""
    conditional, unconditional = logits.float().chunk(2)
    guided = torch.lerp(unconditional, conditional, cfg_scale[..., None]).flatten(0, 1)
    sampling = import_module("flashinfer").sampling
    if top_k == VOCAB and top_p == 1:
        ids = sampling.sampling_from_logits(guided)
    else:
        ids = sampling.top_k_top_p_sampling_from_logits(
            guided, top_k, top_p, filter_apply_order="top_k_first"
        )
    return ids.view_as(uniform)


def admit_flashinfer(inputs, options):
    """Return it where it works here, and else in a word why it is left out."""
    try:
        ids = flashinfer_chain(*inputs, **options)
        in_range = bool(((ids >= 0) & (ids < VOCAB)).all())
    except ImportError:
        return {}, "not installed"
    except Exception as error:
        return {}, type(error).__name__
    if not in_range:
        return {}, "wrong result"
    return {"flashinfer_chain": lambda *i: flashinfer_chain(*i, **options)}, None


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("case", FILTERS)
@pytest.mark.parametrize("images", [1, 256])
def test_token_selection_on_gpu(versus, device, images, case):
    generator = torch.Generator(device).manual_seed(0)
    filters, cfg_scale = FILTERS[case], torch.linspace(4.5, 4.8, ROWS, device=device)

    def step():
        shape = (images, ROWS, VOCAB)
        shared = torch.randn(shape, generator=generator, device=device).bfloat16()
        halves = [
            torch.randn(shape, generator=generator, device=device).bfloat16() for _ in range(2)
        ]
        logits = torch.cat([half.mul_(0.2).add_(shared, alpha=2.3) for half in halves])
        uniform = torch.rand(images, ROWS, dtype=torch.float64, device=device, generator=generator)
        return logits, uniform

    inputs = [step() for _ in range(12 if images == 1 else 2)]
    options = {"cfg_scale": cfg_scale, **filters}
    numbers = {  # as a loop has them: one launch, nothing filled in
        "temperature": torch.ones(images, device=device),
        "top_k": torch.full((images,), filters.get("top_k", 0), device=device),
        "top_p": torch.full((images,), filters.get("top_p", 1.0), device=device),
    }

    def ours(logits, uniform):
        return token_selection(logits, uniform, cfg_scale=cfg_scale, **numbers)

    on_cpu = token_selection(
        *(x.cpu() for x in inputs[0]), **{**options, "cfg_scale": cfg_scale.cpu()}
    )
    assert torch.equal(ours(*inputs[0]).cpu(), on_cpu)
    same = torch.cat([ours(*i) == torch_chain(*i, **options) for i in inputs])
    assert same.float().mean() > 0.9  # the chain's float32 sums move some boundaries
    baselines, left_out = admit_flashinfer(inputs[0], options)
    notes = {"left_out": {"flashinfer_chain": left_out}} if left_out else {}
    read = Work(num_bytes=inputs[0][0].nbytes)  # ids and numbers are nothing beside the logits
    notes |= floor_notes(torch.cuda.get_device_name(), read.floor)
    versus(
        "token_selection",
        f"{images * ROWS} x {VOCAB}, {case}, bfloat16",
        ours,
        {"torch_chain": lambda *i: torch_chain(*i, **options), **baselines},
        inputs=inputs,
        device=device.type,
        rounds=GPU_ROUNDS,
        **notes,
    )
