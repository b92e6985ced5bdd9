"""The numbers of `group_embedding`."""

import emulator
import pytest
import torch
from cases import HALF_AND_FLOAT
from test_fused_linear import SENTINEL, assert_close, off_by_one, part_of_wider

from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.ops import group_embedding, reference

VOCAB_SIZE = 11


def make_inputs(batch=3, seq_len=12, dim=48, dtype=torch.float32, copies=1, context=(2, 6),
                query_end=9, seed=0, device="cpu"):  # fmt: skip
    """Arguments of one call; what must not be looked up is outside the tables."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    order = torch.rand(batch, seq_len, generator=generator).argsort(dim=1)
    decoded = torch.randint(VOCAB_SIZE, (batch, seq_len), generator=generator)
    places = order[:, slice(*context)]
    tokens = torch.full_like(decoded, VOCAB_SIZE + 5).scatter(1, places, decoded.gather(1, places))
    order[:, : context[0]] = seq_len
    order[:, query_end:] = -1
    norm = 1 + randn(dim).float() / 4, randn(dim).float() / 4
    return {
        "tokens": tokens.to(device),
        "order": order.to(device),
        "token_emb": randn(VOCAB_SIZE, dim).to(device),
        "query_token": randn(dim).to(device),
        "pos_embed": randn(seq_len, dim).to(device),
        "norm": tuple(part.to(device) for part in norm),
        "context": context,
        "query_end": query_end,
        "norm_eps": 1e-6,
        "out": torch.full((copies * batch, query_end - context[0], dim), SENTINEL, device=device),
    }


def expected(inputs, dtype):
    """The reference with tables of another dtype; it may look up what is not asked for."""
    tables = {name: inputs[name].to(dtype) for name in ("token_emb", "query_token", "pos_embed")}
    tokens = inputs["tokens"].clamp(max=VOCAB_SIZE - 1)
    out = torch.empty_like(inputs["out"], dtype=dtype)
    return reference.group_embedding(**{**inputs, **tables, "tokens": tokens, "out": out})


def assert_exact(inputs):
    truth, same_dtype = expected(inputs, torch.float64), expected(inputs, torch.float32)
    assert group_embedding(**inputs) is inputs["out"]
    assert_close(inputs["out"], same_dtype, truth)


@pytest.mark.parametrize("batch", [1, 3])
def test_reference_is_what_it_says(batch):
    inputs = make_inputs(batch, copies=2)
    out = expected(inputs, torch.float64)
    for image in range(batch):
        for row, position in enumerate(inputs["order"][image, 2:9].tolist()):
            x = inputs["query_token"]
            if row < 4:
                x = inputs["token_emb"][inputs["tokens"][image, position]]
            x = (x + inputs["pos_embed"][position].double()).double()
            y = (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()
            y = y * inputs["norm"][0] + inputs["norm"][1]
            torch.testing.assert_close(out[image, row], y, rtol=0, atol=1e-6)
            assert torch.equal(out[batch + image, row], out[image, row])


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
# A vector, odd ones, more than a warp has, those of a large model.
@pytest.mark.parametrize("dim", [16, 48, 80, 272, 1024])
def test_against_float64(device, variant, dim, dtype, copies):
    assert_exact(make_inputs(dim=dim, dtype=dtype, copies=copies, device=device))


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize(
    ("context", "query_end"),
    [
        pytest.param((0, 12), 12, id="context_only"),
        pytest.param((0, 0), 12, id="queries_only"),
        pytest.param((0, 0), 1, id="first_step"),
        pytest.param((5, 8), 8, id="no_queries"),
        pytest.param((8, 8), 11, id="no_context"),
        pytest.param((11, 12), 12, id="last_place"),
        pytest.param((4, 4), 4, id="no_rows"),
        pytest.param((12, 12), 12, id="no_rows_at_the_end"),
    ],
)
def test_parts_of_an_order(device, variant, context, query_end, copies):
    inputs = make_inputs(context=context, query_end=query_end, copies=copies, device=device)
    if inputs["out"].numel():
        assert_exact(inputs)
    else:
        assert group_embedding(**inputs).shape == (3 * copies, 0, 48)


@pytest.mark.parametrize("rows", [0, 2])
def test_no_images(rows):
    inputs = make_inputs(batch=0, query_end=2 + rows, context=(2, 2))
    assert group_embedding(**inputs).shape == (0, rows, 48)


def test_copies_are_equal_bit_for_bit(device, variant):
    inputs = make_inputs(copies=2, device=device)
    once = group_embedding(**make_inputs(device=device))
    assert torch.equal(group_embedding(**inputs), once.repeat(2, 1, 1))


def test_no_token_reads_as_token_0(device, variant):
    inputs = make_inputs(device=device)
    places = inputs["order"][:, 3:5]
    inputs["tokens"].scatter_(1, places, 0)
    zero = group_embedding(**inputs).clone()
    inputs["tokens"].scatter_(1, places, -1)
    assert torch.equal(group_embedding(**inputs), zero)
    inputs["tokens"].scatter_(1, places, 1)
    assert not torch.equal(group_embedding(**inputs), zero)


def test_tokens_of_queries_are_not_read(device, variant):
    inputs = make_inputs(device=device)
    before = group_embedding(**inputs).clone()
    inputs["tokens"].scatter_(1, inputs["order"][:, 6:9], 3)
    assert torch.equal(group_embedding(**inputs), before)


def test_positions_may_repeat(device, variant):
    # An order is checked to be a permutation elsewhere; here each place is looked up for itself.
    inputs = make_inputs(device=device)
    inputs["order"][:, 2:9] = inputs["order"][:, 2:3]
    out = group_embedding(**inputs)
    assert torch.equal(out[:, :4], out[:, :1].expand(-1, 4, -1))
    assert torch.equal(out[:, 4:], out[:, 4:5].expand(-1, 3, -1))
    assert not torch.equal(out[:, 0], out[:, 4])


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_strided_views_between_sentinels(device, variant, dtype, copies):
    inputs = make_inputs(dtype=dtype, copies=copies, device=device)
    before = group_embedding(**inputs).clone()
    for name in ("tokens", "order"):
        wide = torch.full((8, 17), 99, device=device)
        wide[1:7:2, 3:15] = inputs[name]
        inputs[name] = wide[1:7:2, 3:15]
    whole, inputs["out"] = part_of_wider(torch.zeros_like(before), SENTINEL, strided=True)
    # Between images as well: a copy is batch * stride away.
    assert torch.equal(group_embedding(**inputs), before)
    inputs["out"].fill_(SENTINEL)
    assert (whole == SENTINEL).all()


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_bits_of_a_row_depend_on_the_row_alone(device, variant, dtype):
    inputs = make_inputs(7, 40, 112, dtype, context=(3, 25), query_end=38, device=device)
    before = group_embedding(**inputs).clone()
    names = "tokens", "order"
    for images in ([3], [6, 0], [2, 2, 2]):
        some = {name: inputs[name][images] for name in names}
        out = torch.empty(len(images), 35, 112, device=device)
        assert torch.equal(group_embedding(**{**inputs, **some, "out": out}), before[images])
    out = torch.empty(7, 7, 112, device=device)  # the same rows, in another window
    part = {**inputs, "context": (20, 25), "query_end": 27, "out": out}
    assert torch.equal(group_embedding(**part), before[:, 17:24])
    torch.set_num_threads(2)  # the fixture sets it back
    inputs["out"].fill_(torch.nan)
    assert torch.equal(group_embedding(**inputs), before)


def test_any_alignment(device, variant):
    # Nothing begins at a multiple of 16 bytes.
    inputs = make_inputs(dtype=torch.bfloat16, device=device)
    before = group_embedding(**inputs).clone()
    for name in ("token_emb", "query_token", "pos_embed", "out"):
        inputs[name] = off_by_one(inputs[name])
    inputs["norm"] = tuple(off_by_one(part) for part in inputs["norm"])
    assert torch.equal(group_embedding(**inputs), before)


def test_the_longest_row(device, variant):
    assert_exact(make_inputs(1, 3, 8192, torch.bfloat16, 2, (0, 1), 2, device=device))


def test_repeats_are_bitwise_equal(device, repeats):
    inputs = make_inputs(dim=272, copies=2, device=device)
    before = group_embedding(**inputs).clone()
    for _ in range(repeats):
        inputs["out"].fill_(torch.nan)
        assert torch.equal(group_embedding(**inputs), before)


def test_bits_do_not_depend_on_the_schedule(monkeypatch):
    emulator.use(monkeypatch)
    inputs = make_inputs(dim=272, copies=2)
    emulator.assert_bits_equal_on_schedules(lambda: group_embedding(**inputs).clone())


def test_norm_of_a_far_mean_and_eps(device, variant):
    inputs = make_inputs(dim=1024, device=device)
    inputs["pos_embed"] += 1e4
    assert_exact(inputs)
    inputs = make_inputs(device=device)
    for name in ("token_emb", "query_token", "pos_embed"):
        inputs[name] *= 1e-3
    for norm_eps in (1e-12, 1e-6, 1e-2):
        inputs["norm_eps"] = norm_eps
        assert_exact(inputs)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_equals_the_rows_of_the_model(variant, dtype):
    config = LPDConfig(grid=(3, 4), dim=48, depth=1, num_heads=1, vocab_size=VOCAB_SIZE,
                       num_classes=2)  # fmt: skip
    model = LPD(config)
    with torch.no_grad():
        for norm in (model.z_proj_ln.weight, model.z_proj_ln.bias):
            norm.normal_(generator=torch.Generator().manual_seed(1))
    model.to(dtype)
    inputs = make_inputs(copies=2)
    with torch.no_grad():
        inputs |= {
            "token_emb": model.token_emb.weight,
            "query_token": model.mask_token[0, 0],
            "pos_embed": model.pos_embed[0, 1:],
            "norm": (model.z_proj_ln.weight, model.z_proj_ln.bias),
        }
        context, queries = inputs["order"][:, 2:6], inputs["order"][:, 6:9]
        inputs["tokens"].scatter_(1, context[:, :1], -1)
        rows = model.embed_context(inputs["tokens"].gather(1, context), context)
        rows = torch.cat([rows, model.embed_queries(queries)], dim=1)
        out = group_embedding(**inputs)
    torch.testing.assert_close(out, rows.repeat(2, 1, 1), rtol=1e-5, atol=1e-5)
