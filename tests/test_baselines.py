"""The loops and chains that benchmarks compare against compute what the package computes."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_decode import CONFIG as SMALL_CONFIG
from test_decode import SIZES, spread_model
from torch.nn import functional as F

from lpd_ext import decode, group_attention, group_order, token_selection

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import attention_baselines
from published_loop import block_causal_mask, published_loop, published_sampling
from sdpa_loop import SDPALoop, sdpa_on_slices
from torch_chain import torch_chain

CONFIG = replace(SMALL_CONFIG, vocab_size=50)


@pytest.fixture(scope="module")
def model():
    return spread_model(CONFIG)


def run_published(model, labels, order, **options):
    options.pop("uniform")
    mask = block_causal_mask(SIZES)
    return published_loop(model, labels, SIZES, order, mask, **{"autocast": None} | options)


def run_sdpa(model, labels, order, **options):
    loop = SDPALoop(model, len(labels), SIZES, guided=options["cfg_scale"] != 1)
    return loop(labels, order, **options)


LOOPS = pytest.mark.parametrize("loop", [run_published, run_sdpa])


def request(batch=3, **options):
    generator = torch.Generator().manual_seed(0)
    arguments = {
        "class_labels": torch.arange(batch) % 3,
        "order": group_order(torch.arange(batch), CONFIG.grid, SIZES),
    }
    shared = {
        "uniform": torch.rand(batch, 16, dtype=torch.float64, generator=generator),
        "cfg_scale": 3.0,
    }
    return arguments.values(), shared | options


@LOOPS
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_logits_of_a_baseline_are_ours(model, loop, cfg_scale):
    # A wrong mask, slot of the cache, position or guidance scale: what would be timed is not LPD.
    (labels, order), options = request(cfg_scale=cfg_scale)
    forced = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(1))
    options |= {"forced_tokens": forced, "return_logits": True}
    _, expected = decode(model, labels, SIZES, order, **options)
    _, logits = loop(model, labels, order, **options)
    assert expected.std() > 0.5  # else a tolerance of 1e-4 would say little
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@LOOPS
@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_greedy_tokens_of_a_baseline_are_ours(model, loop, greedy):
    (labels, order), options = request(**greedy)
    expected = decode(model, labels, SIZES, order, **options)
    assert torch.equal(loop(model, labels, order, **options), expected)


def test_sdpa_loop_draws_what_decode_draws(model):
    (labels, order), options = request(top_k=20, top_p=0.9, temperature=0.8)
    expected = decode(model, labels, SIZES, order, **options)
    loop = SDPALoop(model, 3, SIZES)
    assert torch.equal(loop(labels, order, **options), expected)
    assert torch.equal(loop(labels, order, **options), expected)  # on used caches


def test_published_loop_under_autocast(model):
    # In bfloat16, and no more wrong than bfloat16 is: an error of 0 would mean that it is not on.
    (labels, order), options = request(temperature=0, return_logits=True)
    forced = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(1))
    options["forced_tokens"] = forced
    _, exact = run_published(model, labels, order, **options)
    _, rounded = run_published(model, labels, order, autocast=torch.bfloat16, **options)
    error = (rounded - exact).abs()
    assert 0 < error.mean() < 0.05 * exact.std()


class FakeFlashinfer(ModuleType):
    """Paged attention, planned and run, as flashinfer documents it; a loop over requests."""

    class BatchPrefillWithPagedKVCacheWrapper:
        def __init__(self, workspace, kv_layout, *, backend):
            assert workspace.dtype == torch.uint8
            assert backend == "fa2"
            assert kv_layout == "HND"  # pages of [heads, rows, head_dim]

        def plan(self, q_begins, page_begins, pages, last_lens, q_heads, kv_heads, head_dim,
                 page_size, *, q_data_type, kv_data_type):  # fmt: skip
            for tensor in (q_begins, page_begins, pages, last_lens):
                assert tensor.dtype == torch.int32
            assert page_begins.tolist() == list(range(len(pages) + 1))  # one page a request
            self.requests = list(zip(q_begins, q_begins[1:], pages, last_lens, strict=False))
            self.expected = (q_heads, head_dim, page_size, q_data_type)

        def run(self, q, caches):
            assert q.shape[1:] == self.expected[:2]
            assert caches[0].shape[2] == self.expected[2]
            assert (q.dtype, q.stride(2)) == (self.expected[3], 1)
            out = torch.empty(q.shape, dtype=q.dtype)
            for begin, end, page, length in self.requests:
                k, v = (cache[page, :, :length] for cache in caches)
                rows = q[begin:end].transpose(0, 1)
                out[begin:end] = F.scaled_dot_product_attention(rows, k, v).transpose(0, 1)
            return out


@pytest.fixture
def fakes(monkeypatch):
    """What takes a GPU, a compiler or a library that is not there."""
    monkeypatch.setitem(sys.modules, "flashinfer", FakeFlashinfer("flashinfer"))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    variants = ["tensor_cores"]
    monkeypatch.setattr(attention_baselines, "cuda_variant", lambda: variants[-1])
    monkeypatch.setattr(attention_baselines, "set_cuda_variant", variants.append)
    return variants


def prepared(name):
    def call(*arguments):
        shapes = [torch.zeros_like(tensor) for tensor in arguments[:3]]  # shapes are all it knows
        return attention_baselines.PREPARED[name](*shapes, *arguments[3:])(*arguments)

    return call


ATTENTION = {
    "two slices": sdpa_on_slices,
    "concatenated": attention_baselines.sdpa_concatenated,
    "dense mask": attention_baselines.sdpa_dense_mask,
    "simple kernel": attention_baselines.simple_kernel,
    "flex_attention": prepared("flex_attention"),
    "flashinfer": prepared("flashinfer"),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(("cache_len", "context_len", "q_len"), [(0, 1, 2), (7, 3, 8), (9, 0, 4)])
def test_attention_of_a_baseline_is_group_attention(fakes, name, cache_len, context_len, q_len):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, q_len, 3, 2, 32, generator=generator)
    caches = torch.randn(2, 2, 2, 16, 32, generator=generator)
    ours = caches.clone()
    expected = group_attention(qkv, *ours.unbind(), cache_len, context_len)
    out = ATTENTION[name](qkv, *caches, cache_len, context_len)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    kept = slice(0, cache_len + context_len)  # what the next step reads
    assert torch.equal(caches[..., kept, :], ours[..., kept, :])


def test_flex_attention_compiles():
    # The real compiler, here for the CPU; mask and slices of the cache must suit it.
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 9, 3, 2, 32, generator=generator)
    caches = torch.randn(2, 2, 2, 32, 32, generator=generator)
    expected = group_attention(qkv, *caches.clone().unbind(), 17, 4)
    try:
        out = prepared("flex_attention")(qkv, *caches, 17, 4)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"no compiler for it on this machine: {error.inner_exception!r}")
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_the_simple_kernel_is_chosen_for_one_call_only(fakes, monkeypatch):
    during = []
    monkeypatch.setattr(attention_baselines, "group_attention", lambda *a: during.append(fakes[-1]))
    attention_baselines.simple_kernel(1, 2)
    assert (during, fakes[-1]) == (["float32"], "tensor_cores")


FILTERS = [{}, {"top_k": 7}, {"top_p": 0.7}, {"top_k": 12, "top_p": 0.8, "temperature": 1.5}]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_chain_draws_what_token_selection_draws(filters):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 100, 50, generator=generator)
    uniform = torch.rand(2, 100, dtype=torch.float64, generator=generator)
    options = filters | {"cfg_scale": torch.linspace(1, 3, 100)}
    expected = token_selection(logits, uniform, **options)
    same = torch_chain(logits, uniform, **options) == expected
    assert same.float().mean() > 0.99  # float32 sums move a boundary now and then


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_published_sampling_draws_from_the_same_distribution(filters):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 1, 50, generator=generator)
    n = 20000
    uniform = torch.linspace(0, 1 - 1e-9, n, dtype=torch.float64)[None]
    expected = token_selection(logits.expand(1, n, 50), uniform, **filters)
    torch.manual_seed(0)
    drawn = published_sampling(logits[0].repeat(n, 1), **filters)
    counts = [ids.flatten().bincount(minlength=50) / n for ids in (drawn, expected)]
    # Five standard deviations of a count; the published top-p keeps the same set without ties.
    assert (counts[0] - counts[1]).abs().max() < 5 * (0.25 / n) ** 0.5
    assert torch.equal(counts[0] > 0, counts[1] > 0) or not filters
