"""What `masked_attention` takes: views, `out`, masks of every form; and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import HALF_AND_FLOAT
from test_masked_attention import BATCH, SMALL, equal, make_inputs, random_lengths, random_mask
from torch._subclasses import FakeTensorMode

from lpd_ext import masked_attention, with_arrays
from lpd_ext.ops import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_views_between_sentinels(device, variant, dtype):
    # q out of a packed projection, k and v out of caches in two layouts, the mask out of a wider
    # one: any stride taken for granted reads a sentinel.
    q, k, v = make_inputs(BATCH, dtype, device)
    mask = random_mask(BATCH, device)
    expected = masked_attention(q, k, v, mask)

    def sentinels(*shape):
        return torch.full(shape, 1e30, dtype=dtype, device=device)

    packed = sentinels(BATCH.batch, BATCH.q_len + 3, 3, BATCH.num_heads, 64)
    view = packed[:, 1:-2, 1].transpose(1, 2)
    view.copy_(q)
    k_cache = sentinels(BATCH.batch + 1, BATCH.num_heads, 90, 64)
    k_view = k_cache[1:, :, 5 : 5 + BATCH.kv_len]
    k_view.copy_(k)
    v_cache = sentinels(BATCH.batch, 90, 3, 72)
    v_view = v_cache[:, : BATCH.kv_len, 1:, 3:67].transpose(1, 2)
    v_view.copy_(v)
    masks = torch.ones(BATCH.batch, BATCH.q_len + 2, 96, dtype=torch.bool, device=device)
    mask_view = masks[:, 1:-1, 7 : 7 + BATCH.kv_len]
    mask_view.copy_(mask)
    buffer = sentinels(expected.numel() + 64)
    out = buffer[32:-32].view(expected.shape)
    assert masked_attention(view, k_view, v_view, mask_view, out=out) is out
    equal(out, expected)
    out.fill_(1e30)
    assert (buffer == buffer.new_tensor(1e30)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_any_alignment(device, name, dtype):
    # One tensor begins an element behind a multiple of 16 bytes, or its rows are an odd number of
    # elements apart: loads of 16 bytes would be torn.
    tensors = dict(zip("qkv", make_inputs(BATCH, dtype, device), strict=True))
    mask = random_mask(BATCH, device)
    expected = masked_attention(*tensors.values(), mask)
    tensor = tensors[name]
    for before, behind in ((1, 15), (0, 1)):
        wide = torch.zeros(*tensor.shape[:3], before + 64 + behind, dtype=dtype, device=device)
        view = wide[..., before : before + 64]
        view.copy_(tensor)
        equal(masked_attention(*(tensors | {name: view}).values(), mask), expected)


def test_strided_lengths(device):
    inputs, lengths = make_inputs(BATCH, torch.float32, device), random_lengths(BATCH, device)
    columns = lengths.T.contiguous().T
    equal(masked_attention(*inputs, columns), masked_attention(*inputs, lengths))
    every_other = lengths[0].repeat_interleave(2)[::2]
    equal(masked_attention(*inputs, every_other), masked_attention(*inputs, lengths[0]))


def test_shared_keys(device):
    # Expanded over the images, as a prompt that all of them have: nothing here is written.
    q, k, v = make_inputs(BATCH, torch.float32, device)
    k, v = (x[:1].expand(BATCH.batch, -1, -1, -1) for x in (k, v))
    mask = random_mask(BATCH, device)
    equal(masked_attention(q, k, v, mask), masked_attention(q, k.clone(), v.clone(), mask))


@pytest.mark.parametrize(
    ("batch", "num_heads", "q_len"), [(0, 2, 4), (2, 0, 4), (2, 2, 0), (0, 0, 0)]
)
def test_empty(device, batch, num_heads, q_len):
    q, k = (torch.empty(batch, num_heads, rows, 32, device=device) for rows in (q_len, 5))
    for mask in (torch.ones(q_len, dtype=torch.int32), torch.ones(q_len, 5, dtype=torch.bool)):
        assert masked_attention(q, k, k, mask.to(device)).shape == q.shape


def test_no_keys(device, variant):
    q, k = torch.ones(1, 2, 3, 32, device=device), torch.empty(1, 2, 0, 32, device=device)
    lengths = torch.tensor([0, 1, -1], dtype=torch.int32, device=device)
    out = masked_attention(q, k, k, lengths)
    assert (out[:, :, 0] == 0).all()
    assert out[:, :, 1:].isnan().all()
    mask = torch.empty(3, 0, dtype=torch.bool, device=device)
    equal(masked_attention(q, k, k, mask), torch.zeros_like(q))


@pytest.mark.parametrize("op", [masked_attention, reference.masked_attention], ids=["op", "spec"])
def test_out_is_written_and_returned(device, op):
    inputs = (*make_inputs(SMALL, torch.float32, device), random_mask(SMALL, device))
    expected = op(*inputs)
    out = torch.full_like(expected, torch.nan)
    assert op(*inputs, out=out) is out
    equal(out, expected)


MASKS = [
    lambda device: random_lengths(SMALL, device),
    lambda device: random_lengths(SMALL, device)[0],
    lambda device: random_mask(SMALL, device),
    lambda device: random_mask(SMALL, device)[0],
]
MASK_NAMES = ["lengths", "one_row", "bools", "one_mask"]


@pytest.mark.parametrize("make_mask", MASKS, ids=MASK_NAMES)
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_opcheck(torch_device, dtype, make_mask):
    inputs = (*make_inputs(SMALL, dtype, torch_device), make_mask(torch_device))
    torch.library.opcheck(torch.ops.lpd_ext.masked_attention.default, (*inputs, 0.2))
    out = torch.zeros_like(inputs[0])
    torch.library.opcheck(torch.ops.lpd_ext.masked_attention.out, (*inputs, out, 0.2))


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("make_mask", MASKS, ids=MASK_NAMES)
def test_compiled(torch_device, make_mask, with_out):
    torch.compiler.reset()  # it compiles a function only so often
    compiled = torch.compile(masked_attention, fullgraph=True)
    inputs = (*make_inputs(SMALL, torch.float32, torch_device), make_mask(torch_device))
    for options in ({}, {"scale": 0.3}):
        expected = masked_attention(*inputs, **options)
        out = {"out": torch.full_like(expected, torch.nan)} if with_out else {}
        equal(compiled(*inputs, **options, **out), expected)
        equal(out.get("out", expected), expected)


def test_compiled_inside_a_layer(torch_device):
    weight = torch.randn(3 * 64, 64, device=torch_device)
    lengths = torch.tensor([0, 1, 3], dtype=torch.int32, device=torch_device)

    def layer(x):
        q, k, v = F.linear(x, weight).unflatten(2, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        return masked_attention(q, k, v, lengths).transpose(1, 2).flatten(2) + x

    x = torch.randn(2, 3, 64, device=torch_device)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_numpy_arrays():
    inputs = (*make_inputs(SMALL, torch.float32, "cpu"), random_mask(SMALL, "cpu"))
    out = with_arrays(masked_attention)(*(tensor.numpy() for tensor in inputs))
    np.testing.assert_array_equal(out, masked_attention(*inputs).numpy())


@pytest.mark.filterwarnings("error")
def test_fake_tensors_are_not_asked_for_addresses():
    with FakeTensorMode():
        q, k = torch.zeros(3, 2, 6, 32), torch.zeros(3, 2, 40, 32)
        out = torch.zeros(3, 2, 6, 32)
        assert masked_attention(q, k, k, torch.zeros(6, dtype=torch.int32), out=out) is out


def test_weights_are_fine_without_grad(device):
    q, k, v = make_inputs(SMALL, torch.float32, device)
    with torch.no_grad():
        out = masked_attention(q.requires_grad_(), k, v, random_mask(SMALL, device))
    assert not out.requires_grad


def columns_first(x):
    return x.mT.contiguous().mT


OF_TENSORS = [  # for q, k, v and out
    pytest.param(lambda _: [1.0], TypeError, "a tensor.*got list", id="list"),
    pytest.param(lambda x: x.double(), TypeError, "got float64", id="dtype"),
    pytest.param(lambda x: x[0], ValueError, "got shape", id="3d"),
    pytest.param(columns_first, ValueError, "contiguous", id="stride"),
    pytest.param(lambda x: x.requires_grad_(), NotImplementedError, "inference", id="grad"),
]
OF_OTHERS = [  # for k, v and out
    pytest.param(lambda x: x.half(), TypeError, "float32, got float16", id="mixed"),
    pytest.param(lambda x: x[:2], ValueError, r"= \[3, 2, .*got shape", id="batch"),
    pytest.param(lambda x: x[:, :1], ValueError, "got shape", id="heads"),
    pytest.param(lambda x: x[..., :16], ValueError, "got shape", id="head_dim"),
    pytest.param(lambda x: x.to("meta"), ValueError, "device .+, got meta", id="device"),
]


def refuse(device, name, change, error, message):
    q, k, v = make_inputs(SMALL, torch.float32, device)
    arguments = {"q": q, "k": k, "v": v, "mask": random_mask(SMALL, device)}
    arguments["out"] = torch.zeros_like(q)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=f"^masked_attention: argument `{name}`.*{message}"):
        masked_attention(**arguments)


@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
@pytest.mark.parametrize(("change", "error", "message"), OF_TENSORS)
def test_bad_tensor(device, name, change, error, message):
    refuse(device, name, change, error, message)


@pytest.mark.parametrize("name", ["k", "v", "out"])
@pytest.mark.parametrize(("change", "error", "message"), OF_OTHERS)
def test_bad_other_tensor(device, name, change, error, message):
    refuse(device, name, change, error, message)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        pytest.param(
            "q", lambda x: x[..., :16], NotImplementedError, "head_dim in .*got 16", id="head_dim"
        ),
        pytest.param(
            "q", lambda x: x.to("meta"), NotImplementedError, "device .+, got meta", id="device"
        ),
        pytest.param("v", lambda x: x[:, :, :9], ValueError, r"= \[3, 2, 40, 64\]", id="kv_len"),
        pytest.param("out", lambda x: x[:, :, :5], ValueError, "got shape", id="rows"),
        pytest.param("out", lambda x: x[:1].expand(3, -1, -1, -1), ValueError, "contig", id="out"),
    ],
)
def test_bad_sizes(device, name, change, error, message):
    refuse(device, name, change, error, message)


def bools(*shape):
    return lambda _: torch.ones(shape, dtype=torch.bool)


def ints(*shape):
    return lambda _: torch.ones(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(lambda _: None, TypeError, "a tensor.*got NoneType", id="none"),
        pytest.param(lambda x: x.long(), TypeError, "int32 or bool, got int64", id="int64"),
        pytest.param(lambda x: x.float(), TypeError, "int32 or bool, got float32", id="additive"),
        pytest.param(bools(6), ValueError, r"got shape \[6\]", id="bool_1d"),
        pytest.param(bools(3, 2, 6, 40), ValueError, "got shape", id="bool_4d"),
        pytest.param(bools(6, 39), ValueError, r"= \[6, 40\], got", id="keys"),
        pytest.param(bools(5, 40), ValueError, r"= \[6, 40\], got", id="rows"),
        pytest.param(bools(2, 6, 40), ValueError, r"= \[3, 6, 40\], got", id="batch"),
        pytest.param(bools(1, 6, 40), ValueError, r"= \[3, 6, 40\], got", id="broadcast"),
        pytest.param(ints(), ValueError, r"got shape \[\]", id="int_0d"),
        pytest.param(ints(5), ValueError, r"= \[6\], got", id="int_rows"),
        pytest.param(ints(2, 6), ValueError, r"= \[3, 6\], got", id="int_batch"),
        pytest.param(ints(3, 6, 40), ValueError, "got shape", id="int_3d"),
        pytest.param(columns_first, ValueError, "contiguous last", id="stride"),
        pytest.param(lambda x: x.to("meta"), ValueError, "got meta", id="device"),
    ],
)
def test_bad_mask(device, change, error, message):
    refuse(device, "mask", change, error, message)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [("1", TypeError, "a number, got str"), (float("nan"), ValueError, "got nan")],
)
def test_bad_scale(device, scale, error, message):
    inputs = (*make_inputs(SMALL, torch.float32, device), random_mask(SMALL, device))
    with pytest.raises(error, match=f"^masked_attention: argument `scale`.*{message}"):
        masked_attention(*inputs, scale=scale)


@pytest.mark.parametrize("name", ["q", "k", "v", "mask"])
def test_out_may_overlap_nothing(device, name):
    q, k, v = make_inputs(SMALL, torch.float32, device)
    buffer = torch.zeros(3 * 2 * 40 * 64, device=device)
    out = buffer[: q.numel()].view(q.shape)
    lengths = buffer.view(torch.int32)[:6]
    k, v = (buffer.view(k.shape) if name == other else x for other, x in (("k", k), ("v", v)))
    q = out if name == "q" else q
    mask = lengths if name == "mask" else random_mask(SMALL, device)
    with pytest.raises(ValueError, match=f"argument `out`: expected memory apart from {name}"):
        masked_attention(q, k, v, mask, out=out)


UNSAFE = [
    ("q", lambda x: x[..., :24]),
    ("q", columns_first),
    ("k", lambda x: x[:2]),
    ("k", lambda x: x.half()),
    ("k", columns_first),
    ("v", lambda x: x[:, :, :39]),
    ("v", columns_first),
    ("mask", lambda x: x.long()),
    ("mask", lambda x: x[0, 0]),
    ("mask", lambda x: x[None]),
    ("mask", lambda x: x[..., :39]),
    ("mask", lambda x: x[:, :5]),
    ("mask", lambda x: x[:2]),
    ("mask", columns_first),
    ("mask", ints(5)),
    ("mask", ints(2, 6)),
    ("mask", ints(3, 5)),
    ("mask", ints()),
    ("out", lambda x: x.half()),
    ("out", lambda x: x[:, :, :5]),
    ("out", columns_first),
]


@pytest.mark.parametrize(("name", "change"), UNSAFE)
def test_the_operator_itself_refuses_what_is_unsafe(device, name, change):
    q, k, v = make_inputs(SMALL, torch.float32, device)
    arguments = {"q": q, "k": k, "v": v, "mask": random_mask(SMALL, device)}
    arguments["out"] = torch.zeros_like(q)
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError, match=f"masked_attention: argument `{name}`"):
        torch.ops.lpd_ext.masked_attention.out(*arguments.values(), 1.0)
