"""The ragged form of `group_attention`: images at different steps in one batch."""

import pytest
import torch
from cases import HALF_AND_FLOAT, AttentionCase
from test_group_attention import SMALL, assert_close, make_inputs, sdpa

from lpd_ext import group_attention
from lpd_ext.ops import reference

# (cache_len, context_len, q_len) an image; 20 rows given, 64 slots
IMAGES = [
    (0, 1, 3),  # the first step
    (13, 4, 20),  # no padding
    (60, 4, 5),  # a cache filled to its last slot
    (31, 2, 17),  # one row more than a tile
    (40, 16, 16),  # only context
    (64, 0, 7),  # only queries, on a full cache
    (5, 0, 0),  # nothing but padding
    (28, 3, 9),
]
CASE = AttentionCase("ragged", len(IMAGES), 20, 2, 64, 0, 0, 64)
# The same of 500 slots: images whose keys are split over blocks, beside some whose are not.
LONG_IMAGES = [(470, 10, 20), (3, 2, 5), (384, 0, 1), (383, 1, 20), (499, 1, 3), (320, 16, 16)]
BAD_IMAGES = {
    "negative cache_len": (-1, 2, 5),
    "negative context_len": (3, -1, 5),
    "negative q_len": (3, 0, -1),
    "context over q_len": (3, 6, 5),
    "more rows than given": (3, 2, 21),
    "cache too small": (62, 3, 5),
    "largest numbers": (2**31 - 1, 2**31 - 1, 2**31 - 1),
    "smallest numbers": (-(2**31), -(2**31), -(2**31)),
}


def make_ragged(dtype, device, images=IMAGES):
    """qkv, caches and lengths; what must not be read is NaN."""
    slots = 500 if images is LONG_IMAGES else 64
    case = AttentionCase("ragged", len(images), 20, 2, 64, slots, 0, slots)
    qkv, k_cache, v_cache = make_inputs(case, dtype, device)
    for i, (cache_len, _, q_len) in enumerate(images):
        if cache_len >= 0 and q_len >= 0:
            qkv[i, q_len:] = torch.nan
            k_cache[i, :, cache_len:] = v_cache[i, :, cache_len:] = torch.nan
    lengths = torch.tensor(images, dtype=torch.int32, device=device).T.contiguous()
    return (qkv, k_cache, v_cache), lengths


def run_ragged(op, tensors, lengths, **options):
    cache_len, context_len, q_len = lengths
    return op(*tensors, cache_len, context_len, q_len=q_len, **options)


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("images", [IMAGES, LONG_IMAGES], ids=["short", "long"])
def test_both_forms_give_the_same_bits(device, variant, images, dtype):
    tensors, lengths = make_ragged(dtype, device, images)
    qkv, k_cache, v_cache = (tensor.clone() for tensor in tensors)
    out = run_ragged(group_attention, tensors, lengths)
    for i, (cache_len, context_len, q_len) in enumerate(images):
        image = slice(i, i + 1)
        expected = group_attention(
            qkv[image, :q_len], k_cache[image], v_cache[image], cache_len, context_len
        )
        equal(out[image, :q_len], expected)
        assert (out[i, q_len:] == 0).all()
    equal(tensors[1:], (k_cache, v_cache))


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_against_float64(device, variant, dtype):
    tensors, lengths = make_ragged(dtype, device)
    wide = [tensor.double() for tensor in tensors]
    same_dtype = torch.zeros(len(IMAGES), 20, 128, dtype=dtype, device=device)
    for i, (cache_len, context_len, q_len) in enumerate(IMAGES):
        case = AttentionCase("image", 1, q_len, 2, 64, cache_len, context_len, 64)
        parts = (tensors[0][i : i + 1, :q_len], tensors[1][i : i + 1], tensors[2][i : i + 1])
        same_dtype[i, :q_len] = sdpa(case, *parts)
    truth = run_ragged(reference.group_attention, wide, lengths)
    assert_close(run_ragged(group_attention, tensors, lengths), same_dtype, truth)
    equal(tensors[1].double(), wide[1])
    equal(tensors[2].double(), wide[2])


def test_bits_of_an_image_do_not_depend_on_its_neighbours(device):
    tensors, lengths = make_ragged(torch.float32, device)
    expected = run_ragged(group_attention, [tensor.clone() for tensor in tensors], lengths)
    for images in ([3], [7, 1, 3], [3, 3, 0]):
        parts = [tensor[images] for tensor in tensors]
        equal(run_ragged(group_attention, parts, lengths[:, images].contiguous()), expected[images])


def test_out(device):
    tensors, lengths = make_ragged(torch.float32, device)
    expected = run_ragged(group_attention, [tensor.clone() for tensor in tensors], lengths)
    out = torch.full_like(expected, torch.nan)  # what was there before does not stay
    assert run_ragged(group_attention, tensors, lengths, out=out) is out
    equal(out, expected)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("op", [group_attention, reference.group_attention], ids=["op", "spec"])
def test_lengths_that_do_not_fit_harm_their_image_alone(device, dtype, op):
    good = IMAGES[3]
    images = [image for bad in BAD_IMAGES.values() for image in (bad, good)]
    tensors, lengths = make_ragged(dtype, device, images)
    caches = [tensor.clone() for tensor in tensors[1:]]
    out = run_ragged(op, tensors, lengths)
    assert out[0::2].isnan().all()
    for cache, before in zip(tensors[1:], caches, strict=True):
        equal(cache[0::2], before[0::2])
    alone, lengths = make_ragged(dtype, device, [good])
    for i in range(1, len(images), 2):
        alone = [tensor[i : i + 1].clone() for tensor in (tensors[0], *caches)]
        equal(out[i : i + 1], run_ragged(op, alone, lengths))


def test_no_images(device):
    tensors, lengths = make_ragged(torch.float32, device)
    parts = [tensor[:0] for tensor in tensors]
    out = run_ragged(group_attention, parts, lengths[:, :0].contiguous())
    assert out.shape == (0, 20, 128)


def test_opcheck(torch_device):
    (qkv, *caches), lengths = make_ragged(torch.float32, torch_device, IMAGES[:3])
    sample = (qkv.nan_to_num(), *(cache.nan_to_num() for cache in caches), *lengths, 0.2)
    torch.library.opcheck(torch.ops.lpd_ext.group_attention.ragged, sample)
    out = torch.zeros(3, 20, 128, device=torch_device)
    sample = (*sample[:3], out, *sample[3:])
    torch.library.opcheck(torch.ops.lpd_ext.group_attention.ragged_out, sample)


@pytest.mark.parametrize("with_out", [False, True])
def test_compiled(torch_device, with_out):
    tensors, lengths = make_ragged(torch.float32, torch_device)
    expected = run_ragged(group_attention, [tensor.clone() for tensor in tensors], lengths)
    options = {"out": torch.zeros_like(expected)} if with_out else {}
    compiled = torch.compile(group_attention, fullgraph=True)
    equal(run_ragged(compiled, tensors, lengths, **options), expected)


@pytest.mark.parametrize("name", ["cache_len", "context_len", "q_len"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(lambda x: 2, TypeError, r"an int32 tensor \[batch\].*got int", id="mixed"),
        pytest.param(lambda x: None, TypeError, "got NoneType", id="none"),
        pytest.param(lambda x: x.long(), TypeError, "int32, got int64", id="dtype"),
        pytest.param(lambda x: x[:2], ValueError, r"= \[3\], got shape \[2\]", id="short"),
        pytest.param(lambda x: x[:, None], ValueError, "got shape", id="2d"),
        pytest.param(lambda x: x.to("meta"), ValueError, "got meta", id="device"),
        pytest.param(lambda x: x.repeat(2)[::2], ValueError, "contiguous", id="stride"),
    ],
)
def test_bad_lengths(device, name, change, error, message):
    tensors = make_inputs(SMALL, torch.float32, device)
    one = torch.ones(3, dtype=torch.int32, device=device)
    lengths = {"cache_len": one, "context_len": one, "q_len": one}
    lengths[name] = change(one)
    with pytest.raises(error, match=f"^group_attention: argument `{name}`: .*{message}"):
        group_attention(*tensors, **lengths)


@pytest.mark.parametrize("nth", [0, 1, 2])
@pytest.mark.parametrize(
    "change", [lambda x: x.long(), lambda x: x[:2], lambda x: x.repeat(2)[::2]]
)
def test_the_operator_itself_refuses_wrong_lengths(device, nth, change):
    tensors = make_inputs(SMALL, torch.float32, device)
    lengths = [torch.ones(3, dtype=torch.int32, device=device) for _ in range(3)]
    lengths[nth] = change(lengths[nth])
    name = ("cache_len", "context_len", "q_len")[nth]
    with pytest.raises(RuntimeError, match=f"argument `{name}`"):
        torch.ops.lpd_ext.group_attention.ragged(*tensors, *lengths, 1.0)
