import pytest
import torch
import torch.nn.functional as F
from cases import ATTENTION_CASES, HALF_AND_FLOAT, AttentionCase
from torch._subclasses import FakeTensorMode

from lpd_ext import group_attention
from lpd_ext.ops import reference

SMALL = AttentionCase("small", 3, 6, 2, 32, 5, 2, 16)
STRIDED = AttentionCase("strided", 3, 19, 2, 32, 7, 9, 16)  # enough rows for tiles


def make_inputs(case, dtype, device, seed=0):
    """qkv and caches; what must not be read of the caches is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    qkv = randn(case.batch, case.q_len, 3, case.num_heads, case.head_dim)
    shape = (case.batch, case.num_heads, case.max_kv_len, case.head_dim)
    k_cache, v_cache = randn(*shape), randn(*shape)
    for cache in (k_cache, v_cache):
        cache[:, :, case.cache_len :] = torch.nan
    return qkv, k_cache, v_cache


def run(op, case, qkv, k_cache, v_cache, **options):
    return op(qkv, k_cache, v_cache, case.cache_len, case.context_len, **options)


def sdpa(case, qkv, k_cache, v_cache):
    """The same attention by PyTorch's own operator and an explicit mask."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    keys = torch.cat([k_cache[:, :, : case.cache_len], k], dim=2)
    values = torch.cat([v_cache[:, :, : case.cache_len], v], dim=2)
    rows, columns = torch.arange(case.q_len), torch.arange(keys.shape[2])
    is_query = rows >= case.context_len
    mask = is_query[:, None] | (columns < case.cache_len + case.context_len)
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask.to(qkv.device))
    return out.transpose(1, 2).flatten(2)


def assert_close(out, same_dtype, truth):
    """At most 2x the maximum and 1.5x the mean error of PyTorch in the same dtype, plus 1e-5."""
    error, allowed = (out.double() - truth).abs(), (same_dtype.double() - truth).abs()
    assert not error.isnan().any()
    assert error.max() <= 2 * allowed.max() + 1e-5
    assert error.mean() <= 1.5 * allowed.mean() + 1e-5


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_reference_is_masked_attention(device, case):
    qkv, k_cache, v_cache = make_inputs(case, torch.float64, device)
    expected = sdpa(case, qkv, k_cache, v_cache)
    out = run(reference.group_attention, case, qkv, k_cache, v_cache)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_against_float64(device, variant, case, dtype):
    qkv, k_cache, v_cache = make_inputs(case, dtype, device)
    same_dtype = sdpa(case, qkv, k_cache, v_cache)
    wide = (qkv.double(), k_cache.double(), v_cache.double())
    truth = run(reference.group_attention, case, *wide)
    out = run(group_attention, case, qkv, k_cache, v_cache)
    assert out.shape == (case.batch, case.q_len, case.num_heads * case.head_dim)
    assert out.dtype == dtype
    assert_close(out, same_dtype, truth)
    # The context rows are appended bit for bit, nothing else is touched (NaN stays NaN).
    torch.testing.assert_close(k_cache.double(), wide[1], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(v_cache.double(), wide[2], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_one_hidden_key_would_be_seen(device, variant, dtype):
    # Hidden keys score +8 against -8 of the visible ones and carry the value 200: a single leak
    # moves a context row from about 0 to about 200.
    case = AttentionCase("adversarial", 2, 40, 2, 64, 100, 19, 200)
    qkv, k_cache, v_cache = make_inputs(case, dtype, device)
    qkv[:, :, 0] = 1
    qkv[:, : case.context_len, 1] = k_cache[:, :, : case.cache_len] = -1
    qkv[:, case.context_len :, 1] = k_cache[:, :, case.cache_len :] = 1
    qkv[:, case.context_len :, 2] = v_cache[:, :, case.cache_len :] = 200
    same_dtype = sdpa(case, qkv, k_cache, v_cache)
    wide = (qkv.double(), k_cache.double(), v_cache.double())
    truth = run(reference.group_attention, case, *wide)
    out = run(group_attention, case, qkv, k_cache, v_cache)
    rows = slice(0, case.context_len)
    assert_close(out[:, rows], same_dtype[:, rows], truth[:, rows])
    assert_close(out[:, case.context_len :], same_dtype[:, case.context_len :], truth[:, 19:])


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_large_scores_do_not_overflow(device, variant, dtype):
    # The maximum is subtracted before the exponential: scores of 1e4 leave one key.
    qkv, k_cache, v_cache = make_inputs(SMALL, dtype, device)
    qkv[:, :, :2] *= 100
    out = run(group_attention, SMALL, qkv, k_cache.clone(), v_cache.clone())
    wide = (qkv.double(), k_cache.double(), v_cache.double())
    assert_close(
        out, sdpa(SMALL, qkv, k_cache, v_cache), run(reference.group_attention, SMALL, *wide)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_value_is_widened_exactly(device, variant, dtype):
    # A single key has weight 1: out is v, for all 65536 bit patterns (subnormals, infinities).
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(dtype)
    qkv = torch.zeros(1, 1, 3, 512, 128, dtype=dtype, device=device)
    qkv[0, 0, 2] = patterns.view(512, 128)
    cache = torch.zeros(1, 512, 0, 128, dtype=dtype, device=device)
    out = group_attention(qkv, cache, cache.clone(), 0, 0).flatten()
    torch.testing.assert_close(out, patterns, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_are_rounded_to_nearest_even(device, variant, dtype):
    # Two keys of equal score: out is the mean of two values, exact in float32 before it is
    # rounded. Neighbouring bit patterns give ties; the largest sums overflow to infinity.
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(dtype)
    others = patterns.roll(1)
    qkv = torch.zeros(1, 2, 3, 512, 128, dtype=dtype, device=device)
    qkv[0, 0, 2], qkv[0, 1, 2] = patterns.view(512, 128), others.view(512, 128)
    cache = torch.zeros(1, 512, 0, 128, dtype=dtype, device=device)
    out = group_attention(qkv, cache, cache.clone(), 0, 0)[0, 0]
    expected = ((patterns.float() + others.float()) * 0.5).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_views_between_sentinels(device, variant, dtype):
    # qkv is cut out of wider rows, the caches out of larger ones: any stride taken for granted
    # reads or writes a sentinel.
    case = STRIDED
    qkv, k_cache, v_cache = make_inputs(case, dtype, device)
    expected_caches = k_cache.clone(), v_cache.clone()
    expected = run(group_attention, case, qkv, *expected_caches)

    rows = torch.full((case.batch, case.q_len + 3, 3 * 64 + 16), 1e30, dtype=dtype, device=device)
    view = rows[:, 1 : 1 + case.q_len, 8:-8].unflatten(2, (3, case.num_heads, case.head_dim))
    view.copy_(qkv)
    caches, views = [], []
    for cache in (k_cache, v_cache):
        # Another layout (rows before heads) inside a larger tensor.
        shape = (case.batch + 2, case.max_kv_len + 4, 3, 48)
        whole = torch.full(shape, 1e30, dtype=dtype, device=device)
        part = whole[1:-1, 2:-2, 1:, 8:-8].transpose(1, 2)
        part.copy_(cache)
        caches.append(whole)
        views.append(part)
    out = run(group_attention, case, view, *views)

    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    for whole, part, cache in zip(caches, views, expected_caches, strict=True):
        torch.testing.assert_close(part, cache, rtol=0, atol=0, equal_nan=True)
        part.fill_(1e30)
        assert (whole == whole.new_tensor(1e30)).all()
    torch.testing.assert_close(view, qkv, rtol=0, atol=0)


@pytest.mark.parametrize(("batch", "q_len", "context_len"), [(0, 4, 2), (2, 0, 0), (0, 0, 0)])
def test_empty(device, batch, q_len, context_len):
    qkv = torch.empty(batch, q_len, 3, 2, 32, device=device)
    caches = torch.zeros(2, batch, 2, 8, 32, device=device)
    assert group_attention(qkv, *caches, 3, context_len).shape == (batch, q_len, 64)
    assert (caches == 0).all()


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("cache_len", [50, 400], ids=["whole", "split"])
def test_bits_depend_on_the_image_alone(device, variant, cache_len, dtype):
    case = AttentionCase("batch", 7, 21, 1, 64, cache_len, 9, cache_len + 30)
    inputs = make_inputs(case, dtype, device)
    expected = run(group_attention, case, *(tensor.clone() for tensor in inputs))
    assert not expected.isnan().any()
    for images in ([3], [6, 0], [6, 5, 4, 3, 2, 1, 0], [2, 2, 2]):
        out = run(group_attention, case, *(tensor[images] for tensor in inputs))
        assert torch.equal(out, expected[images])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out = run(group_attention, case, *(tensor.clone() for tensor in inputs))
            assert torch.equal(out, expected)
    finally:
        torch.set_num_threads(threads)


def test_repeats_are_bitwise_equal(device):
    inputs = make_inputs(SMALL, torch.float32, device)
    expected = run(group_attention, SMALL, *inputs)
    for _ in range(250):
        assert torch.equal(run(group_attention, SMALL, *inputs), expected)


def test_steps_equal_one_prefill(device, variant):
    # Context appended in two steps is the context appended in one: same cache, and the last
    # group's queries see the same keys.
    case = AttentionCase("prefill", 2, 12, 2, 64, 0, 8, 16)
    qkv, k_cache, v_cache = make_inputs(case, torch.float32, device)
    k_other, v_other = k_cache.clone(), v_cache.clone()
    expected = group_attention(qkv, k_cache, v_cache, 0, 8)
    group_attention(qkv[:, :5], k_other, v_other, 0, 5)
    out = group_attention(qkv[:, 5:], k_other, v_other, 5, 3)
    assert torch.equal(out, expected[:, 5:])
    torch.testing.assert_close(k_other, k_cache, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(v_other, v_cache, rtol=0, atol=0, equal_nan=True)


def test_scale(device):
    inputs = make_inputs(SMALL, torch.float32, device)
    default = run(group_attention, SMALL, *inputs)
    assert torch.equal(run(group_attention, SMALL, *inputs, scale=32**-0.5), default)
    out = run(group_attention, SMALL, *inputs, scale=0.3)
    expected = run(reference.group_attention, SMALL, *inputs, scale=0.3)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("context_len", [0, 2, 6], ids=["queries", "step", "prefill"])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_opcheck(torch_device, dtype, context_len):
    qkv, k_cache, v_cache = make_inputs(SMALL, dtype, torch_device)
    # opcheck compares the whole caches before and after: no NaN here.
    sample = (qkv, k_cache.nan_to_num(), v_cache.nan_to_num(), 5, context_len, 0.2)
    torch.library.opcheck(torch.ops.lpd_ext.group_attention.default, sample)


def test_compiled(torch_device):
    compiled = torch.compile(group_attention, fullgraph=True)
    for options in ({}, {"scale": 0.3}):
        for cache_len, context_len in ((5, 2), (7, 0), (0, 6)):
            case = AttentionCase("compiled", 3, 6, 2, 32, cache_len, context_len, 16)
            qkv, k_cache, v_cache = make_inputs(case, torch.float32, torch_device)
            k_other, v_other = k_cache.clone(), v_cache.clone()
            out = run(compiled, case, qkv, k_other, v_other, **options)
            assert torch.equal(out, run(group_attention, case, qkv, k_cache, v_cache, **options))
            torch.testing.assert_close(k_other, k_cache, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(v_other, v_cache, rtol=0, atol=0, equal_nan=True)


def test_compiled_inside_a_layer(torch_device):
    # Used inside a larger compiled function, behind a linear layer, as a model does.
    weight = torch.randn(3 * 64, 64, device=torch_device)

    def layer(x, k_cache, v_cache):
        qkv = F.linear(x, weight).unflatten(2, (3, 2, 32))
        return group_attention(qkv, k_cache, v_cache, 4, 1) + x

    x = torch.randn(2, 3, 64, device=torch_device)
    caches = [torch.randn(2, 2, 8, 32, device=torch_device) for _ in range(2)]
    other = [cache.clone() for cache in caches]
    expected = layer(x, *caches)
    out = torch.compile(layer, fullgraph=True)(x, *other)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(other, caches)


def bad_inputs():
    def change(**changes):
        def build(device):
            qkv, k_cache, v_cache = make_inputs(SMALL, torch.float32, device)
            inputs = {
                "qkv": qkv,
                "k_cache": k_cache,
                "v_cache": v_cache,
                "cache_len": 5,
                "context_len": 2,
                "scale": None,
            }
            for name, value in changes.items():
                inputs[name] = value(inputs[name]) if callable(value) else value
            return inputs

        return build

    def of(shape, **options):
        return lambda _: torch.zeros(shape, **options)

    return [
        ("qkv_list", change(qkv=[1.0]), TypeError, "`qkv`: expected a tensor"),
        ("qkv_double", change(qkv=lambda x: x.double()), TypeError, "`qkv`.*got float64"),
        ("qkv_4d", change(qkv=lambda x: x[0]), ValueError, "`qkv`.*got shape"),
        ("qkv_pair", change(qkv=lambda x: x[:, :, :2]), ValueError, "`qkv`.*got shape"),
        ("qkv_stride", change(qkv=lambda x: x.mT.contiguous().mT), ValueError, "`qkv`.*contiguous"),
        ("head_dim", change(qkv=of((3, 6, 3, 2, 48))), NotImplementedError, "head_dim.*got 48"),
        (
            "device",
            change(qkv=of((3, 6, 3, 2, 32), device="meta")),
            NotImplementedError,
            "`qkv`.*device .+, got meta",
        ),
        ("cache_dtype", change(k_cache=lambda x: x.half()), TypeError, "`k_cache`.*got float16"),
        ("cache_3d", change(v_cache=lambda x: x[0]), ValueError, "`v_cache`.*got shape"),
        ("cache_batch", change(k_cache=lambda x: x[:2]), ValueError, "`k_cache`.*got shape"),
        ("cache_heads", change(k_cache=lambda x: x[:, :1]), ValueError, "`k_cache`.*got shape"),
        ("cache_length", change(v_cache=lambda x: x[:, :, :9]), ValueError, "`v_cache`.*got shape"),
        (
            "cache_device",
            change(k_cache=lambda x: x.to("meta")),
            ValueError,
            "`k_cache`.*device .+, got meta",
        ),
        (
            "cache_stride",
            change(k_cache=lambda x: x.mT.contiguous().mT),
            ValueError,
            "`k_cache`.*contiguous head_dim",
        ),
        (
            "cache_expanded",
            change(v_cache=lambda x: x[:1].expand(3, -1, -1, -1)),
            ValueError,
            "`v_cache`.*expanded",
        ),
        ("cache_small", change(cache_len=15), ValueError, "`k_cache`.*at least.*= 17, got 16"),
        ("cache_len_negative", change(cache_len=-1), ValueError, "`cache_len`.*got -1"),
        ("cache_len_float", change(cache_len=5.0), TypeError, "`cache_len`.*an int, got float"),
        ("context_negative", change(context_len=-1), ValueError, "`context_len`.*got -1"),
        ("context_long", change(context_len=7), ValueError, "`context_len`.*q_len = 6, got 7"),
        ("scale_text", change(scale="1"), TypeError, "`scale`.*a number, got str"),
        ("scale_nan", change(scale=float("nan")), ValueError, "`scale`.*got nan"),
        (
            "grad",
            change(qkv=lambda x: x.requires_grad_()),
            NotImplementedError,
            "`qkv`.*inference-only.*no_grad",
        ),
        (
            "cache_grad",
            change(v_cache=lambda x: x.requires_grad_()),
            NotImplementedError,
            "`v_cache`.*inference-only",
        ),
    ]


@pytest.mark.parametrize(
    ("build", "error", "message"), [pytest.param(*bad[1:], id=bad[0]) for bad in bad_inputs()]
)
def test_bad_input(device, build, error, message):
    inputs = build(device)
    with pytest.raises(error, match=f"^group_attention: argument .*{message}"):
        group_attention(**inputs)


def overlapping():
    buffer = torch.zeros(2, 3, 2, 16, 32)
    qkv = torch.zeros(3, 4, 3, 2, 32)  # smaller than a cache
    flat, size = buffer.flatten(), buffer[0].numel()
    shifted = flat[size - 1 : 2 * size - 1].view(buffer[0].shape)
    return [
        ("v_cache", qkv, buffer[0], buffer[0]),
        ("v_cache", qkv, buffer[0], shifted),
        ("k_cache", flat[: qkv.numel()].view(qkv.shape), *buffer),
        ("v_cache", flat[-qkv.numel() :].view(qkv.shape), buffer[0], buffer[1]),
    ]


@pytest.mark.parametrize(
    ("argument", "qkv", "k_cache", "v_cache"),
    overlapping(),
    ids=["one_cache", "shifted", "qkv_in_k", "qkv_in_v"],
)
def test_overlap_is_refused(argument, qkv, k_cache, v_cache):
    message = f"^group_attention: argument `{argument}`: expected memory apart"
    with pytest.raises(ValueError, match=message):
        group_attention(qkv, k_cache, v_cache, 5, 2)


def test_neighbours_in_one_buffer_do_not_overlap(device):
    inputs = make_inputs(SMALL, torch.float32, device)
    expected = run(group_attention, SMALL, *(tensor.clone() for tensor in inputs))
    buffer = torch.cat([tensor.flatten() for tensor in inputs])
    parts = buffer.split([tensor.numel() for tensor in inputs])
    views = [part.view(tensor.shape) for part, tensor in zip(parts, inputs, strict=True)]
    assert torch.equal(run(group_attention, SMALL, *views), expected)


def test_the_operator_itself_refuses_one_cache_for_both(device):
    qkv, cache, _ = make_inputs(SMALL, torch.float32, device)
    with pytest.raises(RuntimeError, match="`v_cache`: must not overlap"):
        torch.ops.lpd_ext.group_attention(qkv, cache, cache, 5, 2, 1.0)


@pytest.mark.filterwarnings("error")
def test_fake_tensors_are_not_asked_for_addresses():
    with FakeTensorMode():
        caches = torch.zeros(2, 3, 2, 16, 32)
        out = group_attention(torch.zeros(3, 6, 3, 2, 32), *caches, 5, 2)
    assert out.shape == (3, 6, 64)


def test_weights_are_fine_without_grad(device):
    qkv, k_cache, v_cache = make_inputs(SMALL, torch.float32, device)
    with torch.no_grad():
        out = run(group_attention, SMALL, qkv.requires_grad_(), k_cache, v_cache)
    assert not out.requires_grad


@pytest.mark.parametrize(
    ("cache_len", "context_len"), [(-1, 2), (5, 7), (15, 2), (5, -1), (2**62, 2**62)]
)
def test_the_operator_itself_refuses_what_is_unsafe(device, cache_len, context_len):
    inputs = make_inputs(SMALL, torch.float32, device)
    with pytest.raises(RuntimeError, match="do not fit"):
        torch.ops.lpd_ext.group_attention(*inputs, cache_len, context_len, 1.0)
