"""Calls of the public functions that between them launch every kernel, each small.

To add a kernel file: add a function that yields its cases to CASES. A test fails as long as a file
of csrc/cuda has a kernel that no case launches.
"""

import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import test_add_layer_norm
import test_bias_gelu
import test_group_attention
import test_group_attention_ragged
import test_group_embedding
import test_group_norm_silu
import test_linear_gelu
import test_masked_attention
import test_token_selection_exact
import torch
from cases import ATTENTION_CASES, HALF_AND_FLOAT, AttentionCase, MaskedCase
from test_fused_linear import off_by_one

from lpd_ext import group_attention, group_order, group_sizes, masked_attention
from lpd_ext.ops import reference
from lpd_ext.ops.group_attention import HEAD_DIMS
from lpd_ext.ops.token_selection import token_selection

HALVES = (torch.bfloat16, torch.float16)
IN_STEP = None  # all warps: for large launches


@dataclass(frozen=True)
class Case:
    """One call: what it catches says its name or the comment above it."""

    name: str
    stem: str  # of the kernel file
    call: Callable[[], None]  # runs the op and asserts that it is right
    expect: Callable[[], object] | None = None  # what runs first, on the CPU; given to `call`
    variant: str = "tensor_cores"
    seed: int | None = 1  # of the order of warps

    def __str__(self):
        return self.name

    def run(self, interpreter):
        """Raise a Fault or an AssertionError, if something is wrong; return the launches."""
        expected = [] if self.expect is None else [self.expect()]
        interpreter.seed = self.seed
        with interpreter.variant(self.variant), interpreter.running():
            self.call(*expected)
        return interpreter.launches

    def result(self, interpreter):
        """The same to be kept: {"error": text or None, "launches": [[kernel, warps, counts]]}."""
        try:
            launches = self.run(interpreter)
        except BaseException:
            return {"error": traceback.format_exc(), "launches": []}
        return {"error": None, "launches": [[x.kernel, x.warps, x.counts] for x in launches]}


def short(dtype):
    return {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]


def shifted(inputs):
    """Tensors none of which begins at a multiple of 16 bytes."""
    return {
        name: off_by_one(x) if isinstance(x, torch.Tensor) else
        tuple(map(off_by_one, x)) if name == "norm" else x
        for name, x in inputs.items()
    }  # fmt: skip


def linear_gelu():
    stem, module = "linear_gelu", test_linear_gelu
    shapes = {
        "few": ((16, 400), 40),  # more tiles than stages, columns of a second block
        "few_ends": ((2, 33, 40), 47),  # rows, columns and the last tile of k end within a block
        "many": ((257, 176), 136),
    }
    for (name, shape), dtype, is_shifted in itertools.product(
        shapes.items(), HALVES, (False, True)
    ):
        bias = dtype if name == "few_ends" else torch.float32

        def call(shape=shape, dtype=dtype, bias=bias, is_shifted=is_shifted):
            inputs = module.make_inputs(*shape, dtype, bias)
            module.assert_exact(shifted(inputs) if is_shifted else inputs)

        label = f"{stem} {name} {short(dtype)}{' shifted' if is_shifted else ''}"
        yield Case(label, stem, call, seed=1 if name != "many" else IN_STEP)


def bias_gelu():
    stem, module = "bias_gelu", test_bias_gelu
    for dtype, shape in itertools.product(HALF_AND_FLOAT, ((2, 1032), (2, 1025))):
        bias = dtype if shape == (2, 1032) else torch.float32
        yield Case(
            f"{stem} {short(dtype)} {shape[1]}", stem,
            lambda d=dtype, s=shape, b=bias: module.assert_exact(module.make_inputs(s, d, b)),
        )  # fmt: skip
    yield Case(f"{stem} no bias", stem, lambda: module.assert_exact(module.make_inputs(bias=None)))


def add_layer_norm():
    stem, module = "add_layer_norm", test_add_layer_norm

    def call(is_shifted=False, **options):
        inputs = module.make_inputs(**options)
        module.assert_exact(shifted(inputs) if is_shifted else inputs)

    for delta, out in itertools.product(HALF_AND_FLOAT, repeat=2):
        options = {"delta": delta, "out": out, "shape": (2, 2, 272), "bias": delta}
        yield Case(f"{stem} {short(delta)} {short(out)}", stem, partial(call, **options))
    yield Case(f"{stem} shifted", stem, partial(call, is_shifted=True, shape=(2, 2, 272)))
    yield Case(f"{stem} longest rows", stem, partial(call, shape=(1, 2, 8192), bias=None))
    yield Case(f"{stem} no delta", stem, partial(call, delta=None, bias=None, shape=(2, 1, 16)))


def group_norm_silu():
    stem, module = "group_norm_silu", test_group_norm_silu

    def call(is_shifted=False, in_place=False, **options):
        inputs = module.make_inputs(**options)
        if is_shifted:
            inputs |= {name: module.off_by_one_image(inputs[name]) for name in ("x", "out")}
            inputs["norm"] = tuple(map(off_by_one, inputs["norm"]))
        if in_place:
            expected = module.run(inputs).clone()
            inputs["out"] = inputs["x"]
            torch.testing.assert_close(module.run(inputs), expected, rtol=0, atol=0)
            return
        module.assert_exact(inputs)

    for dtype, is_shifted in itertools.product(HALF_AND_FLOAT, (False, True)):
        yield Case(
            f"{stem} {short(dtype)}{' shifted' if is_shifted else ''}", stem,
            partial(call, is_shifted, dtype=dtype, norm=dtype),
        )  # fmt: skip
    ends = {"shape": (1, 12, 24, 24), "groups": 3}  # rows end amid a thread's channels
    yield Case(f"{stem} ends", stem, partial(call, **ends))
    yield Case(f"{stem} norm alone", stem, partial(call, silu=False, dtype=torch.float32))
    yield Case(f"{stem} in place", stem, partial(call, in_place=True))


def group_embedding():
    stem, module = "group_embedding", test_group_embedding

    def call(is_shifted, **options):
        inputs = module.make_inputs(**options)
        if is_shifted:
            names = ("token_emb", "query_token", "pos_embed", "norm", "out")
            inputs |= shifted({name: inputs[name] for name in names})
        module.assert_exact(inputs)

    for dtype, is_shifted in itertools.product(HALF_AND_FLOAT, (False, True)):
        yield Case(
            f"{stem} {short(dtype)}{' shifted' if is_shifted else ''}", stem,
            partial(call, is_shifted, dim=272, dtype=dtype, copies=2),
        )  # fmt: skip


def group_order_cases():
    stem = "group_order"

    def call(expected, arguments):
        assert torch.equal(group_order(*arguments[:3], **arguments[3]), expected)

    # Of one warp, four and sixteen, without and with known cells.
    for grid, num_known, sizes in (
        ((8, 9), 0, group_sizes(72, 8)),
        ((16, 16), 180, group_sizes(76, 5)),
        ((5, 7), 13, group_sizes(22, 4)),
        ((19, 20), 0, group_sizes(380, 12)),
        ((19, 20), 330, [1, 9, 40]),
        ((40, 41), 1600, [3, 37]),
    ):
        generator = torch.Generator().manual_seed(num_known)
        seq_len = grid[0] * grid[1]
        known = torch.rand(2, seq_len, generator=generator).argsort(1) < num_known
        arguments = (
            torch.tensor([7, -(2**40)]),
            grid,
            sizes,
            {"known": known if num_known else None},
        )
        yield Case(
            f"{stem} {grid[0]}x{grid[1]} {num_known} known", stem,
            partial(call, arguments=arguments),
            lambda a=arguments: group_order(*a[:3], **a[3]),
            seed=1 if seq_len <= 400 else IN_STEP,
        )  # fmt: skip


def token_selection_cases():
    stem, module = "token_selection", test_token_selection_exact

    def arguments_of(vocab_size, dtype, guidance, kind, rows):
        arguments = module.case(vocab_size, kind, dtype, guidance, rows)
        arguments[0][-1, 1, vocab_size // 2] = module.NAN  # a row without a distribution
        names = ("cfg_scale", "temperature", "top_k", "top_p")
        return arguments[:2], dict(zip(names, arguments[2:], strict=True))

    def call(expected, make):
        arguments, options = make()
        assert torch.equal(token_selection(*arguments, **options), expected)

    def expect(make):
        arguments, options = make()
        expected = token_selection(*arguments, **options)
        assert expected[-1, 1] == -1
        return expected

    # A warp a row, 4, 16 and 32 warps a row in registers, a row read again.
    sizes = (1000, 3001, 16384, 20000, 33001)
    for (i, vocab_size), (j, dtype) in itertools.product(
        enumerate(sizes), enumerate(module.DTYPES)
    ):
        kind = module.KINDS[(3 * i + j) % len(module.KINDS)]
        make = partial(
            arguments_of, vocab_size, dtype, module.GUIDANCE[(i + j) % 4], kind,
            12 if vocab_size <= 1000 else 4 if vocab_size < 16384 else 2,
        )  # fmt: skip
        yield Case(
            f"{stem} {vocab_size} {short(dtype)} {kind.__name__}", stem,
            partial(call, make=make), partial(expect, make),
            seed=1 if vocab_size <= 1000 else IN_STEP,
        )  # fmt: skip


def attend(case, dtype, is_shifted=False):
    """A call of group_attention against float64; what was appended to the caches is exact."""
    module = test_group_attention
    tensors = module.make_inputs(case, dtype, "cpu")
    if is_shifted:
        tensors = tuple(map(off_by_one, tensors))
    same_dtype = module.sdpa(case, *tensors)
    wide = tuple(tensor.double() for tensor in tensors)
    truth = module.run(reference.group_attention, case, *wide)
    module.assert_close(module.run(group_attention, case, *tensors), same_dtype, truth)
    for cache, expected in zip(tensors[1:], wide[1:], strict=True):
        torch.testing.assert_close(cache.double(), expected, rtol=0, atol=0, equal_nan=True)


def attend_ragged(images, dtype):
    """Images at different steps in one call."""
    module = test_group_attention_ragged
    tensors, lengths = module.make_ragged(dtype, "cpu", images)
    wide = tuple(tensor.double() for tensor in tensors)
    truth = module.run_ragged(reference.group_attention, wide, lengths)
    narrow = module.run_ragged(
        reference.group_attention, [t.clone() for t in tensors], lengths
    )  # PyTorch in the same dtype
    out = module.run_ragged(group_attention, tensors, lengths)
    test_group_attention.assert_close(out, narrow, truth)
    for cache, expected in zip(tensors[1:], wide[1:], strict=True):
        torch.testing.assert_close(cache.double(), expected, rtol=0, atol=0, equal_nan=True)


def group_attention_mma():
    stem = "group_attention_mma"
    for head_dim, dtype in itertools.product(HEAD_DIMS, HALVES):
        label = f"{head_dim} {short(dtype)}"
        # Two parts, the second one of queries alone, in blocks of their own.
        split = AttentionCase("split", 1, 19, 1, head_dim, 380, 4, 390)
        yield Case(f"{stem} split {label}", stem, partial(attend, split, dtype))
        # More pairs than there are multiprocessors: two groups of rows share a block.
        pairs = AttentionCase("pairs", 133, 18, 1, head_dim, 9, 1, 12)
        yield Case(f"{stem} two groups {label}", stem, partial(attend, pairs, dtype), seed=IN_STEP)
        if head_dim <= 64:
            more = AttentionCase("more", 265, 34, 1, head_dim, 9, 1, 12)
            yield Case(
                f"{stem} four groups {label}", stem, partial(attend, more, dtype), seed=IN_STEP
            )
    # A block walks the parts of its pair.
    for head_dim, dtype, batch, q_len in (
        (64, torch.bfloat16, 133, 18),
        (128, torch.float16, 133, 18),
        (32, torch.float16, 265, 34),
    ):
        walk = AttentionCase("walk", batch, q_len, 1, head_dim, 381, 1, 383)
        yield Case(
            f"{stem} walking {head_dim} {short(dtype)}", stem, partial(attend, walk, dtype),
            seed=IN_STEP,
        )  # fmt: skip
    small = ("first_step", "group_of_one", "no_context", "prefill", "cache_full", "kv_257")
    for case in ATTENTION_CASES:
        if case.name in small:
            yield Case(f"{stem} {case}", stem, partial(attend, case, torch.bfloat16))
    for head_dim, dtype in ((64, torch.float16), (80, torch.bfloat16)):
        ends = AttentionCase("ends", 1, 21, 2, head_dim, 70, 4, 80)
        yield Case(f"{stem} shifted {head_dim}", stem, partial(attend, ends, dtype, True))
    for name, images in (
        ("short", test_group_attention_ragged.IMAGES),
        ("long", test_group_attention_ragged.LONG_IMAGES),
    ):
        yield Case(f"{stem} ragged {name}", stem, partial(attend_ragged, images, torch.bfloat16))


def group_attention_simple():
    stem = "group_attention_simple"
    for head_dim, dtype in itertools.product(HEAD_DIMS, HALF_AND_FLOAT):
        case = AttentionCase("ends", 1, 9, 1, head_dim, 30, 4, 40)
        yield Case(
            f"{stem} {head_dim} {short(dtype)}", stem, partial(attend, case, dtype),
            variant="float32",
        )  # fmt: skip
    yield Case(
        f"{stem} shifted", stem, partial(attend, AttentionCase("x", 1, 9, 1, 64, 30, 4, 40),
        torch.bfloat16, True), variant="float32",
    )  # fmt: skip
    yield Case(
        f"{stem} ragged", stem,
        partial(attend_ragged, test_group_attention_ragged.IMAGES, torch.float32),
        variant="float32",
    )  # fmt: skip


def attend_masked(case, dtype, make_mask, is_shifted=False):
    """A call of masked_attention against float64."""
    tensors = test_masked_attention.make_inputs(case, dtype, "cpu")
    if is_shifted:
        tensors = tuple(map(off_by_one, tensors))
    test_masked_attention.check(*tensors, make_mask(case, "cpu"))


def attend_infinite(dtype):
    """Infinite values, seen by some rows and hidden from others."""
    case = MaskedCase("infinite", 1, 1, 19, 70, 64)
    q, k, v = test_masked_attention.make_inputs(case, dtype, "cpu")
    v[:, :, 7], v[:, :, 68, ::2] = torch.inf, -torch.inf
    mask = test_masked_attention.random_mask(case, "cpu")
    mask[:, 1::2, 7] = mask[:, ::3, 68] = False
    truth = reference.masked_attention(q.double(), k.double(), v.double(), mask)
    out = masked_attention(q, k, v, mask)
    assert not truth.isfinite().all()
    torch.testing.assert_close(out.double(), truth, rtol=2e-2, atol=2e-2, equal_nan=True)


def masked_attention_mma():
    stem, module = "masked_attention_mma", test_masked_attention
    masks = {"lengths": module.random_lengths, "bools": module.random_mask}
    for head_dim, dtype, mask in itertools.product(HEAD_DIMS, HALVES, masks):
        case = MaskedCase("tiles", 1, 1, 19, 70, head_dim)
        yield Case(
            f"{stem} {mask} {head_dim} {short(dtype)}", stem,
            partial(attend_masked, case, dtype, masks[mask]),
        )  # fmt: skip
    for dtype in HALVES:
        yield Case(f"{stem} infinite {short(dtype)}", stem, partial(attend_infinite, dtype))
    case = MaskedCase("more", 2, 2, 37, 257, 64)
    yield Case(
        f"{stem} shifted", stem,
        partial(attend_masked, case, torch.bfloat16, module.random_mask, True),
    )  # fmt: skip


def masked_attention_simple():
    stem, module = "masked_attention_simple", test_masked_attention
    masks = (module.random_lengths, module.random_mask)
    for number, (head_dim, dtype) in enumerate(itertools.product(HEAD_DIMS, HALF_AND_FLOAT)):
        case = MaskedCase("tiles", 1, 1, 9, 40, head_dim)
        yield Case(
            f"{stem} {head_dim} {short(dtype)}", stem,
            partial(attend_masked, case, dtype, masks[number % 2]), variant="float32",
        )  # fmt: skip


CASES = [
    case
    for cases in (
        group_attention_mma,
        token_selection_cases,
        masked_attention_mma,
        linear_gelu,
        group_attention_simple,
        masked_attention_simple,
        add_layer_norm,
        bias_gelu,
        group_norm_silu,
        group_embedding,
        group_order_cases,
    )
    for case in cases()
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases of one name"
