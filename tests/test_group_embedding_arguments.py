"""What `group_embedding` refuses, and how it is traced."""

import pytest
import torch
import torch.nn.functional as F
from cases import HALF_AND_FLOAT
from test_fused_linear import SENTINEL
from test_group_embedding import VOCAB_SIZE, expected, make_inputs

from lpd_ext.ops import group_embedding
from lpd_ext.ops.group_embedding import prepare_group_embedding


def operator_arguments(inputs):
    """Arguments of the operator itself."""
    norm, context = inputs.pop("norm"), inputs.pop("context")
    query_end, norm_eps, out = inputs.pop("query_end"), inputs.pop("norm_eps"), inputs.pop("out")
    return {**inputs, "norm_weight": norm[0], "norm_bias": norm[1], "context_begin": context[0],
            "context_end": context[1], "query_end": query_end, "norm_eps": norm_eps,
            "out": out}  # fmt: skip


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_opcheck(torch_device, dtype, copies):
    sample = operator_arguments(make_inputs(dtype=dtype, copies=copies, device=torch_device))
    torch.library.opcheck(torch.ops.lpd_ext.group_embedding.default, tuple(sample.values()))


def test_compiled(torch_device):
    compiled = torch.compile(group_embedding, fullgraph=True)
    for changes in ({}, {"copies": 2}, {"context": (3, 3), "query_end": 12}):
        inputs = make_inputs(**changes, device=torch_device)
        before = group_embedding(**inputs).clone()
        inputs["out"].fill_(SENTINEL)
        assert torch.equal(compiled(**inputs), before)
        assert torch.equal(inputs["out"], before)


def test_compiled_inside_a_layer():
    # Between other operators, its output made inside, as a model would use it.
    inputs = make_inputs()
    weight = torch.randn(8, 48)

    def layer(tokens):
        out = torch.empty(3, 7, 48)
        rows = group_embedding(**{**inputs, "tokens": tokens.roll(1, 1), "out": out})
        return F.linear(rows, weight)

    tokens = inputs["tokens"].roll(-1, 1)
    before = layer(tokens)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(tokens), before)


def test_a_launch_sees_what_its_tensors_hold():
    inputs = make_inputs()
    launch = prepare_group_embedding(**inputs)
    for seed in range(3):
        new = make_inputs(seed=seed)
        for name in ("tokens", "order", "token_emb", "query_token", "pos_embed"):
            inputs[name].copy_(new[name])
        for own, other in zip(inputs["norm"], new["norm"], strict=True):
            own.copy_(other)
        launch()
        torch.testing.assert_close(inputs["out"], expected(new, torch.float32))


def strided(tensor):
    return tensor.mT.contiguous().mT


def meta(tensor):
    return tensor.to("meta")


def of_norm(index, change):
    return lambda norm: tuple(change(x) if i == index else x for i, x in enumerate(norm))


def grad(tensor):
    return tensor.requires_grad_()


BAD_INPUTS = [
    ("token_emb", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("token_emb", lambda x: x.double(), TypeError, "got float64"),
    ("token_emb", lambda x: x[0], ValueError, r"\[vocab_size, dim\], got shape"),
    ("token_emb", lambda x: x[:, :40], NotImplementedError, "multiple of 16, got 40"),
    ("token_emb", lambda x: x.repeat(1, 200), NotImplementedError, "at most 8192 .*got 9600"),
    ("token_emb", lambda x: x[:, :0], NotImplementedError, "multiple of 16, got 0"),
    ("token_emb", lambda x: x[:0], ValueError, "at least one token, got none"),
    ("token_emb", strided, ValueError, "a contiguous table, got strides"),
    ("token_emb", meta, NotImplementedError, "device cpu or cuda, got meta"),
    ("token_emb", grad, NotImplementedError, "inference-only"),
    ("tokens", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("tokens", lambda x: x.int(), TypeError, "int64, got int32"),
    ("tokens", lambda x: x[0], ValueError, r"\[batch, seq_len\], got shape"),
    ("tokens", strided, ValueError, "contiguous last dimension, got strides"),
    ("tokens", meta, ValueError, "device cpu, got meta"),
    ("order", lambda x: x.int(), TypeError, "int64, got int32"),
    ("order", lambda x: x[0], ValueError, r"\[batch, seq_len\], got shape"),
    ("order", lambda x: x[:2], ValueError, r"= \[3, 12\], got shape \[2, 12\]"),
    ("order", lambda x: x[:, 1:], ValueError, r"= \[3, 12\], got shape \[3, 11\]"),
    ("order", strided, ValueError, "contiguous last dimension, got strides"),
    ("order", meta, ValueError, "device cpu, got meta"),
    ("query_token", lambda x: x.bfloat16(), TypeError, "float32, got bfloat16"),
    ("query_token", lambda x: x[None], ValueError, r"\[dim\], got shape"),
    ("query_token", lambda x: x[1:], ValueError, r"= \[48\], got shape \[47\]"),
    ("query_token", grad, NotImplementedError, "inference-only"),
    ("pos_embed", lambda x: x.half(), TypeError, "float32, got float16"),
    ("pos_embed", lambda x: x[None], ValueError, r"\[seq_len, dim\], got shape"),
    ("pos_embed", lambda x: x[1:], ValueError, r"= \[12, 48\], got shape \[11, 48\]"),
    ("pos_embed", lambda x: x[:, 16:], ValueError, r"= \[12, 48\], got shape \[12, 32\]"),
    ("pos_embed", strided, ValueError, "a contiguous table, got strides"),
    ("pos_embed", grad, NotImplementedError, "inference-only"),
    ("norm", of_norm(0, lambda x: x.tolist()), TypeError, "expected a tensor.*got list"),
    ("norm", of_norm(1, lambda x: x.bfloat16()), TypeError, "float32, got bfloat16"),
    ("norm", of_norm(0, lambda x: x[None]), ValueError, r"\[features\], got shape"),
    ("norm", of_norm(1, lambda x: x[1:]), ValueError, r"= \[48\], got shape \[47\]"),
    ("norm", of_norm(1, grad), NotImplementedError, "inference-only"),
    ("context", lambda _: (2.0, 6), TypeError, "an int, got float"),
    ("context", lambda _: (2, True), TypeError, "an int, got bool"),
    ("context", lambda _: (-1, 6), ValueError, "at least 0, got -1"),
    ("context", lambda _: (6, 2), ValueError, r"<= 12, got \(6, 2\) and query_end 9"),
    ("context", lambda _: (2, 10), ValueError, r"<= 12, got \(2, 10\) and query_end 9"),
    ("query_end", lambda _: "9", TypeError, "an int, got str"),
    ("query_end", lambda _: -1, ValueError, "at least 0, got -1"),
    ("norm_eps", lambda _: None, TypeError, "a number, got NoneType"),
    ("norm_eps", lambda _: torch.nan, ValueError, "got nan"),
    ("out", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("out", lambda x: x.bfloat16(), TypeError, "float32, got bfloat16"),
    ("out", lambda x: x[0], ValueError, r"\[copies \* batch, rows, dim\], got shape"),
    ("out", lambda x: x[:2], ValueError, r"= \[3, 7, 48\], got shape \[2, 7, 48\]"),
    ("out", lambda x: torch.cat([x, x[:2]]), ValueError, r"= \[3, 7, 48\], got shape \[5, "),
    ("out", lambda x: x[:, 1:], ValueError, r"= \[3, 7, 48\], got shape \[3, 6, 48\]"),
    ("out", lambda x: x[..., 1:], ValueError, r"= \[3, 7, 48\], got shape \[3, 7, 47\]"),
    ("out", strided, ValueError, "contiguous last dimension, got strides"),
    ("out", meta, ValueError, "device cpu, got meta"),
    ("out", grad, NotImplementedError, "inference-only"),
]


@pytest.mark.parametrize("op", [group_embedding, prepare_group_embedding])
@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_INPUTS)
def test_bad_input(op, name, change, error, message):
    inputs = make_inputs()
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=f"^group_embedding: argument `{name}`.*{message}"):
        op(**inputs)


def test_an_order_shorter_than_the_queries_is_refused():
    with pytest.raises(ValueError, match=r"argument `context`.*<= 12, got .* and query_end 13"):
        group_embedding(**{**make_inputs(), "query_end": 13})


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("order", 2, -1),
        ("order", 5, 12),
        ("order", 6, 2**62),
        ("order", 8, -(2**62)),
        ("tokens", 2, VOCAB_SIZE),
        ("tokens", 5, -2),
        ("tokens", 4, 2**62),
    ],
)
def test_what_is_outside_the_tables(device, runs_on, name, place, value):
    # In the last image only: earlier rows would be written by then.
    inputs = make_inputs(copies=2, device=device)
    before = group_embedding(**inputs).clone()
    where = place if name == "order" else inputs["order"][2, place]
    inputs[name][2, where] = value
    inputs["out"].fill_(SENTINEL)
    if runs_on.kind == "cpu":
        with pytest.raises(RuntimeError, match=f"argument `{name}`: .* {value} is outside"):
            group_embedding(**inputs)
        assert (inputs["out"] == SENTINEL).all()
    else:  # that row alone, in both copies
        before.unflatten(0, (2, 3))[:, 2, place - 2] = torch.nan
        out = group_embedding(**inputs)
        torch.testing.assert_close(out, before, rtol=0, atol=0, equal_nan=True)


UNSAFE = [  # argument, what becomes of it
    ("tokens", lambda x: x[0]),
    ("tokens", lambda x: x[:2]),
    ("tokens", lambda x: x.int()),
    ("tokens", strided),
    ("order", lambda x: x[:2]),
    ("order", lambda x: x[:, :9]),
    ("order", lambda x: x.int()),
    ("order", strided),
    ("token_emb", lambda x: x[0]),
    ("token_emb", lambda x: x[:, :32]),
    ("token_emb", lambda x: x[:, :40]),
    ("token_emb", lambda x: x[:, :0]),
    ("token_emb", lambda x: x[:0]),
    ("token_emb", lambda x: x[::2]),
    ("token_emb", lambda x: x.double()),
    ("token_emb", lambda x: x.half()),
    ("query_token", lambda x: x[:32]),
    ("query_token", lambda x: x.half()),
    ("query_token", lambda x: x[:1].expand(48)),
    ("pos_embed", lambda x: x[:9]),
    ("pos_embed", lambda x: x.half()),
    ("pos_embed", strided),
    ("pos_embed", lambda x: x[:1].expand(12, 48)),
    ("norm_weight", lambda x: x[:32]),
    ("norm_weight", lambda x: x.double()),
    ("norm_bias", lambda x: x[:32]),
    ("norm_bias", lambda x: x[:1].expand(48)),
    ("context_begin", lambda _: -1),
    ("context_begin", lambda _: 1),  # a row more than out has
    ("context_begin", lambda _: 7),
    ("context_end", lambda _: 10),
    ("query_end", lambda _: 13),
    ("query_end", lambda _: 10),  # a row more than out has
    ("query_end", lambda _: 2**62),
    ("out", lambda x: x[0]),
    ("out", lambda x: x[:2]),
    ("out", lambda x: x[:0]),
    ("out", lambda x: torch.cat([x, x[:2]])),  # no whole number of copies
    ("out", lambda x: x[:, 1:]),
    ("out", lambda x: x[..., :32]),
    ("out", lambda x: x.half()),
    ("out", strided),
]


@pytest.mark.parametrize(("name", "change"), UNSAFE)
def test_the_operator_itself_refuses_what_is_unsafe(name, change):
    arguments = operator_arguments(make_inputs())
    out = arguments["out"]
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError, match="group_embedding: "):
        torch.ops.lpd_ext.group_embedding(*arguments.values())
    assert (out == SENTINEL).all()


def test_the_operator_itself_takes_what_is_safe():
    # Or the test above would pass without a look at what was changed.
    arguments = operator_arguments(make_inputs())
    torch.ops.lpd_ext.group_embedding(*arguments.values())
    assert (arguments["out"] != SENTINEL).any()


LAX = [  # argument, what becomes of it, the typed error that it should be
    ("query_token", meta, ValueError),
    ("pos_embed", meta, ValueError),
    ("norm", of_norm(0, meta), ValueError),
    ("query_token", lambda x: x.repeat(2)[::2], ValueError),
    ("norm", of_norm(1, lambda x: x.repeat(2)[::2]), ValueError),
    ("norm", lambda norm: norm[:1], (TypeError, ValueError)),
    ("norm", lambda norm: (*norm, norm[0]), (TypeError, ValueError)),
    ("norm", lambda _: None, TypeError),
    ("context", lambda _: (2,), (TypeError, ValueError)),
    ("context", lambda _: (2, 6, 7), (TypeError, ValueError)),
    ("context", lambda _: 2, TypeError),
    ("out", lambda x: x[:1].expand(3, -1, -1), ValueError),
    ("out", lambda x: x[:, :1].expand(-1, 7, -1), ValueError),
]


@pytest.mark.parametrize(("name", "change", "error"), LAX)
def test_more_bad_input(name, change, error):
    inputs = make_inputs()
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=f"^group_embedding: argument `{name}`"):
        group_embedding(**inputs)


@pytest.mark.parametrize("name", ["tokens", "order", "query_token", "pos_embed", "norm_weight"])
def test_the_operator_itself_refuses_tensors_without_memory(name):
    # Dispatched to the fake kernel, it returns and has written nothing.
    arguments = operator_arguments(make_inputs())
    arguments[name] = arguments[name].to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ops.lpd_ext.group_embedding(*arguments.values())


def test_out_may_not_overlap_a_table():
    buffer = torch.zeros(3 * 7 * 48)
    inputs = {**make_inputs(), "out": buffer.view(3, 7, 48)}
    inputs["pos_embed"] = buffer[: 12 * 48].view(12, 48)
    with pytest.raises(ValueError, match="argument `out`: expected memory apart"):
        group_embedding(**inputs)
