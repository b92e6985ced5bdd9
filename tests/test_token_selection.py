"""token_selection as a contract: greedy rows, bad rows, views, batches, graphs, refusals.

What it draws is in test_token_selection_distribution.py and test_specified_math.py.
"""

import itertools

import pytest
import torch
from cases import BAD_ROWS, INF, NAN
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd_ext.ops import reference
from lpd_ext.ops.token_selection import token_selection


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_uniform(*shape, seed=0):
    return torch.rand(*shape, generator=rng(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("logits", "temperature", "expected"),
    [
        ([1.0, 3.0, 3.0, 2.0], 0.0, 1),  # lowest id of equals
        ([-INF, -5.0, -5.0, -6.0], 0.0, 1),
        ([-1.0, -0.0, 0.0, -0.0], 0.0, 1),  # both zeros are one value
        ([1.0, 2.0, 3.0, 3.0], 1e-39, 2),  # 1 / T overflows
        ([1e20, 2e20, 3e20, 0.0], 1e-30, 2),  # x / T overflows
        ([-3e20, -2e20, -1e20, -INF], 1e-30, 2),  # to -inf everywhere
    ],
)
@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("op", [token_selection, reference.token_selection])
def test_greedy(device, op, logits, temperature, expected):
    uniform = torch.tensor([[0.0, 0.5, 1 - 2**-53]], dtype=torch.float64)
    row = torch.tensor(logits).expand(1, 3, 4)
    ids = op(row.to(device), uniform.to(device), temperature=temperature, top_k=2, top_p=0.9)
    assert ids.tolist() == [[expected] * 3]


@pytest.mark.parametrize(
    ("logits", "temperature"),
    [([0.0, -0.0, -1.0, -0.0], 1.0), ([0.0, -1e-30, -1e20, -1e-30], 1e20)],
    ids=["given", "underflown"],
)
def test_zeros_of_both_signs_are_tied(device, logits, temperature):
    # top_k = 1 keeps all three zeros, though their bits differ.
    uniform = (torch.arange(30, dtype=torch.float64) / 30)[None].to(device)
    rows = torch.tensor(logits).expand(1, 30, 4).to(device)
    ids = token_selection(rows, uniform, temperature=temperature, top_k=1)
    assert set(ids.flatten().tolist()) == {0, 1, 3}


def test_masked_tokens_are_never_drawn(device):
    # A mask in both halves (-inf - -inf) or in the conditional half alone; at any guidance.
    logits = torch.randn(2, 1000, 40, generator=rng(), dtype=torch.float32)
    logits[:, :, ::3] = -INF
    logits[0, :, 1::6] = -INF
    scale = torch.linspace(0, 8, 1000)
    uniform = random_uniform(1, 1000)
    ids = token_selection(logits.to(device), uniform.to(device), cfg_scale=scale.to(device)).cpu()
    assert (ids >= 0).all()
    assert not ((ids % 3 == 0) | (ids % 6 == 1)).any()


GUIDED_ONLY = ("uncond", "guided", "cfg_scale", "cond +inf, scale negative")


@pytest.mark.parametrize(
    ("case", "guided"),
    [
        (case, guided)
        for case in BAD_ROWS
        for guided in (False, True)
        if guided or not case.startswith(GUIDED_ONLY)
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("op", [token_selection, reference.token_selection])
def test_a_bad_row_harms_no_other(device, op, temperature, case, guided):
    logits = torch.randn(2, 3, 1, 33, generator=rng())
    arguments = {
        "uniform": random_uniform(3, 1),
        "cfg_scale": torch.full((3, 1), 2.5),
        "temperature": torch.full((3,), temperature),
        "top_k": torch.tensor([0, 7, 7]),
        "top_p": torch.full((3,), 0.9),
    }
    if not guided:
        del arguments["cfg_scale"]

    def ids():
        placed = {name: tensor.to(device) for name, tensor in arguments.items()}
        rows = logits.flatten(0, 1) if guided else logits[0]
        return op(rows.to(device), placed.pop("uniform"), **placed).flatten().tolist()

    expected = ids()
    for place, value in BAD_ROWS[case].items():
        if isinstance(place, str):
            arguments[place][1] = value
        else:
            logits[place[0], 1, 0, place[1]] = value
    assert ids() == [expected[0], -1, expected[2]]


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("value", [-INF, NAN])
@pytest.mark.parametrize("half", [0, 1])
def test_every_place_of_a_row_is_seen(device, value, half):
    # One bad logit at each of the positions of a vector loop's body and remainder.
    vocab_size = 37
    logits = torch.zeros(2, vocab_size, vocab_size)
    logits[half].diagonal().fill_(value)
    scale = torch.full((vocab_size,), 2.0)
    uniform = (torch.arange(vocab_size, dtype=torch.float64) + 0.5)[None] / vocab_size
    ids = token_selection(logits.to(device), uniform.to(device), cfg_scale=scale.to(device)).cpu()
    if half == 0 and value == -INF:  # masked: the middle of the CDF's steps moves by one at most
        diagonal = torch.arange(vocab_size)
        assert (ids[0] != diagonal).all()
        assert ((ids[0] - diagonal).abs() <= 1).all()
    else:
        assert (ids == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_is_the_same_at_any_place(device, dtype):
    # Bitwise: other rows, batch sizes, group sizes and the split over threads change nothing.
    vocab_size, rows = 517, 60
    cond, uncond = (torch.randn(2, rows, vocab_size, generator=rng()) * 3).to(dtype).to(device)
    uniform = random_uniform(rows).to(device)
    scale = torch.linspace(1, 6, rows).to(device)
    arguments = {"temperature": 0.8, "top_k": 100, "top_p": 0.95}

    def ids(chosen, batch):
        logits = torch.cat([half[chosen].reshape(batch, -1, vocab_size) for half in (cond, uncond)])
        u, s = (x[chosen].reshape(batch, -1) for x in (uniform, scale))
        return token_selection(logits, u, cfg_scale=s, **arguments).flatten()

    expected = torch.cat([ids(torch.tensor([row]), 1) for row in range(rows)])
    for batch in (1, 4, 60):
        shuffled = torch.randperm(rows, generator=rng(batch))
        assert torch.equal(ids(shuffled, batch), expected[shuffled.to(device)])


def test_strided_views_between_sentinels(device):
    # Every tensor is a view of a buffer full of NaN (top_k: of 0): a read beside it gives -1
    # or another id.
    def embed(tensor, sentinel):
        shape = [2 * size + 3 for size in tensor.shape]
        inner = tuple(slice(2, 2 + 2 * size, 2) for size in tensor.shape)
        if tensor.ndim == 3:  # the vocabulary must be contiguous
            inner = (*inner[:2], slice(2, 2 + tensor.shape[2]))
        view = torch.full(shape, sentinel, dtype=tensor.dtype, device=device)[inner]
        return view.copy_(tensor)

    batch, group_size, vocab_size = 3, 5, 61
    logits = torch.randn(2 * batch, group_size, vocab_size, generator=rng()) * 3
    uniform = random_uniform(batch, group_size)
    scale = 1 + torch.rand(batch, group_size, generator=rng())
    values = {
        "temperature": torch.tensor([0.7, 1.0, 1.3]),
        "top_k": torch.tensor([1, 40, 1]),
        "top_p": torch.tensor([0.9, 0.5, 1.0]),
    }
    sentinels = {"temperature": NAN, "top_k": 0, "top_p": NAN}
    embedded = {name: embed(value, sentinels[name]) for name, value in values.items()}
    plain = {name: value.to(device) for name, value in values.items()}
    for guided in (scale, scale[1]):
        expected = token_selection(
            logits.to(device), uniform.to(device), cfg_scale=guided.to(device), **plain
        )
        ids = token_selection(
            embed(logits, NAN), embed(uniform, NAN), cfg_scale=embed(guided, NAN), **embedded
        )
        assert torch.equal(ids, expected)
        swapped = logits.to(device).transpose(0, 1).contiguous().transpose(0, 1)
        transposed = [x.to(device).mT.contiguous().mT for x in (uniform, scale)]
        ids = token_selection(swapped, transposed[0], cfg_scale=transposed[1], **plain)
        if guided is scale:
            assert torch.equal(ids, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    group_size=st.integers(0, 4),
    vocab_size=st.integers(1, 40),
    guidance=st.sampled_from(["off", "per query", "per image"]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 2**32),
)
def test_any_shape(batch, group_size, vocab_size, guidance, temperature, top_k, top_p, seed):
    generator = rng(seed)
    halves = 1 if guidance == "off" else 2
    logits = torch.randn(halves * batch, group_size, vocab_size, generator=generator) * 3
    uniform = random_uniform(batch, group_size, seed=seed)
    shape = (batch, group_size) if guidance == "per image" else (group_size,)
    scale = None if guidance == "off" else 4 * torch.rand(shape, generator=generator)
    options = {"cfg_scale": scale, "temperature": temperature, "top_k": top_k}

    ids = token_selection(logits, uniform, **options, top_p=top_p)
    assert ids.shape == (batch, group_size)
    # Rows whose id hangs on the sixth digit of uniform or top_p are at a boundary.
    around = [
        reference.token_selection(
            logits, (uniform + du).clamp(0, 1 - 2**-53), **options, top_p=min(max(top_p + dp, 0), 1)
        )
        for du, dp in itertools.product((-1e-6, 0, 1e-6), repeat=2)
    ]
    decided = torch.stack([other == around[4] for other in around]).all(0)
    assert torch.equal(ids[decided], around[4][decided])
    assert (~decided).sum() <= 1


@pytest.mark.parametrize("op", [token_selection, reference.token_selection])
def test_filters_in_tensors_beyond_their_range_are_off(device, op):
    logits = torch.randn(2, 50, 9, generator=rng()).to(device)
    uniform = random_uniform(2, 50).to(device)
    options = {
        "top_k": torch.tensor([-1, -(2**63)], device=device),
        "top_p": torch.tensor([1.5, INF], device=device),
    }
    assert torch.equal(op(logits, uniform, **options), op(logits, uniform))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("op", [token_selection, reference.token_selection])
def test_empty(device, op, shape, guided):
    batch, group_size = shape
    logits = torch.zeros(batch * (1 + guided), group_size, 9, device=device)
    uniform = torch.zeros(shape, dtype=torch.float64, device=device)
    scale = torch.ones(group_size, device=device) if guided else None
    ids = op(logits, uniform, cfg_scale=scale, top_k=3, top_p=0.5)
    assert ids.shape == shape
    assert ids.dtype == torch.int64


def sample_arguments():
    """One call for each optional argument, and one with all of them."""
    logits = torch.randn(4, 3, 29, generator=rng()) * 2
    uniform = random_uniform(2, 3)
    whole = random_uniform(4, 3)
    per_image = {
        "temperature": torch.tensor([0.5, 1.5]),
        "top_k": torch.tensor([5, 0]),
        "top_p": torch.tensor([1.0, 0.8]),
    }
    return {
        "plain": (logits, whole, {}),
        "bfloat16": (logits.bfloat16(), whole, {}),
        "cfg per query": (logits, uniform, {"cfg_scale": torch.tensor([1.0, 2.0, 3.0])}),
        "cfg per image": (logits, uniform, {"cfg_scale": torch.full((2, 3), 1.5)}),
        "temperature": (logits, whole, {"temperature": 0.7}),
        "top_k": (logits, whole, {"top_k": 4}),
        "top_p": (logits, whole, {"top_p": 0.6}),
        "all": (logits, uniform, {"cfg_scale": torch.full((2, 3), 1.5), **per_image}),
    }


@pytest.fixture(params=sample_arguments())
def sample(request, torch_device):
    logits, uniform, options = sample_arguments()[request.param]
    placed = {
        k: v.to(torch_device) if isinstance(v, torch.Tensor) else v for k, v in options.items()
    }
    return logits.to(torch_device), uniform.to(torch_device), placed


def test_opcheck(sample):
    logits, uniform, options = sample
    batch = uniform.shape[0]

    def per_image(name, default, dtype):
        value = torch.as_tensor(options.get(name, default), dtype=dtype, device=logits.device)
        return value.expand(batch)

    torch.library.opcheck(
        torch.ops.lpd_ext.token_selection.default,
        (
            logits,
            uniform,
            options.get("cfg_scale"),
            per_image("temperature", 1.0, torch.float32),
            per_image("top_k", 0, torch.int64),
            per_image("top_p", 1.0, torch.float32),
        ),
    )


def test_compiles_as_one_graph(sample):
    logits, uniform, options = sample
    compiled = torch.compile(token_selection, fullgraph=True, backend="aot_eager")
    expected = token_selection(logits, uniform, **options)
    assert torch.equal(compiled(logits, uniform, **options), expected)


def test_compiles_between_other_operations(torch_device):
    # Inductor may choose layouts for what it computes itself; the op must get those it accepts.
    def group(hidden, head, uniform, scale):
        logits = (hidden @ head).transpose(0, 1)
        return token_selection(logits, uniform * 0.5, cfg_scale=scale + 1, top_k=5, top_p=0.9) + 1

    arguments = [
        torch.randn(3, 4, 8, generator=rng()),
        torch.randn(8, 29, generator=rng(1)),
        random_uniform(3, 2).T,
        torch.rand(2, 3, generator=rng(2)),
    ]
    arguments = [argument.to(torch_device) for argument in arguments]
    compiled = torch.compile(group, fullgraph=True)
    assert torch.equal(compiled(*arguments), group(*arguments))


def test_one_graph_serves_all_numbers(torch_device):
    def select(logits, uniform, temperature, top_k, top_p):
        return token_selection(logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p)

    compiled = torch.compile(select, fullgraph=True, dynamic=True, backend="aot_eager")
    for vocab_size, *numbers in ((19, 0.5, 3, 0.9), (23, 0.7, 5, 0.25), (31, 1, 0, 1)):
        logits = torch.randn(2, vocab_size, vocab_size, generator=rng(), device=torch_device)
        uniform = random_uniform(2, vocab_size).to(torch_device)
        expected = select(logits, uniform, *numbers)
        assert torch.equal(compiled(logits, uniform, *numbers), expected)


REFUSALS = {  # changed arguments, error, message from the argument's name on
    "logits list": ({"logits": [[[0.0]]]}, TypeError, "`logits`: expected a tensor"),
    "logits dtype": ({"logits": torch.zeros(4, 3, 9).double()}, TypeError, "`logits`: .*float64"),
    "logits dims": ({"logits": torch.zeros(3, 9)}, ValueError, "`logits`: .*vocab_size.*3, 9"),
    "no vocabulary": ({"logits": torch.zeros(4, 3, 0)}, ValueError, "`logits`: .*vocabulary.*0"),
    "huge vocabulary": (
        {"logits": torch.zeros(1).expand(4, 3, 2**22 + 1)},
        ValueError,
        "`logits`: expected a vocabulary of 1 to 4194304, got 4194305",
    ),
    "vocabulary stride": (
        {"logits": torch.zeros(4, 9, 3).mT},
        ValueError,
        "`logits`: expected a contiguous vocabulary.*strides",
    ),
    "odd rows": ({"logits": torch.zeros(5, 3, 9)}, ValueError, "`logits`: .*even.*5"),
    "logits device": (
        {"logits": torch.zeros(4, 3, 9, device="meta")},
        NotImplementedError,
        "`logits`: expected device .*meta",
    ),
    "logits grad": (
        {"logits": torch.zeros(4, 3, 9, requires_grad=True)},
        NotImplementedError,
        "`logits` requires grad.*inference-only",
    ),
    "uniform dtype": ({"uniform": torch.zeros(2, 3)}, TypeError, "`uniform`: .*float64.*float32"),
    "uniform dims": ({"uniform": torch.zeros(3).double()}, ValueError, "`uniform`: .*group_size"),
    "uniform shape": ({"uniform": torch.zeros(4, 3).double()}, ValueError, "`uniform`: .*2, 3"),
    "uniform device": (
        {"uniform": torch.zeros(2, 3, device="meta").double()},
        ValueError,
        "`uniform`: expected device .*meta",
    ),
    "cfg_scale number": ({"cfg_scale": 2.0}, TypeError, "`cfg_scale`: expected a tensor"),
    "cfg_scale dtype": ({"cfg_scale": torch.ones(3).double()}, TypeError, "`cfg_scale`: .*float32"),
    "cfg_scale dims": ({"cfg_scale": torch.ones(2, 3, 1)}, ValueError, "`cfg_scale`: .*group_size"),
    "cfg_scale length": ({"cfg_scale": torch.ones(2)}, ValueError, "`cfg_scale`: .*3.*got.*2"),
    "cfg_scale shape": ({"cfg_scale": torch.ones(4, 3)}, ValueError, "`cfg_scale`: .*2, 3"),
    "temperature text": ({"temperature": "1"}, TypeError, "`temperature`: expected a number"),
    "temperature bool": ({"temperature": True}, TypeError, "`temperature`: expected a number"),
    "temperature NaN": ({"temperature": NAN}, ValueError, "`temperature`: expected a number"),
    "temperature inf": ({"temperature": INF}, ValueError, "`temperature`: expected a finite"),
    "temperature beyond float32": ({"temperature": 1e39}, ValueError, "`temperature`: .*finite"),
    "temperature negative": ({"temperature": -0.1}, ValueError, "`temperature`: .*0, got -0.1"),
    "temperature shape": ({"temperature": torch.ones(3)}, ValueError, "`temperature`: .*batch"),
    "temperature dtype": (
        {"temperature": torch.ones(2).double()},
        TypeError,
        "`temperature`: expected float32, got float64",
    ),
    "top_k float": ({"top_k": 5.0}, TypeError, "`top_k`: expected an int, got float"),
    "top_k negative": ({"top_k": -1}, ValueError, "`top_k`: expected at least 0, got -1"),
    "top_k shape": ({"top_k": torch.ones(4).long()}, ValueError, "`top_k`: .*batch"),
    "top_k dtype": ({"top_k": torch.ones(2).int()}, TypeError, "`top_k`: .*int64, got int32"),
    "top_p NaN": ({"top_p": NAN}, ValueError, "`top_p`: expected a number"),
    "top_p beyond 1": ({"top_p": 1.1}, ValueError, r"`top_p`: .*\[0, 1\], got 1.1"),
    "top_p negative": ({"top_p": -0.1}, ValueError, r"`top_p`: .*\[0, 1\], got -0.1"),
    "top_p shape": ({"top_p": torch.ones(2, 1)}, ValueError, "`top_p`: .*batch"),
    "top_p dtype": ({"top_p": torch.ones(2).half()}, TypeError, "`top_p`: .*float32"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    changed, error, message = REFUSALS[case]
    arguments = {
        "logits": torch.zeros(4, 3, 9),
        "uniform": torch.zeros(2, 3).double(),
        "cfg_scale": torch.ones(3),
    }
    arguments |= changed
    with pytest.raises(error, match=f"token_selection: argument {message}"):
        token_selection(arguments.pop("logits"), arguments.pop("uniform"), **arguments)


def test_what_requires_grad_passes_without_grad_mode(device):
    logits = torch.randn(1, 3, 9, generator=rng()).to(device).requires_grad_()
    uniform = random_uniform(1, 3).to(device)
    with torch.no_grad():
        ids = token_selection(logits, uniform)
    assert torch.equal(ids, token_selection(logits.detach(), uniform))


def test_the_operator_itself_refuses_what_is_unsafe():
    # Called past the Python function: nothing is read outside a tensor.
    def call(logits=(4, 3, 9), uniform=(2, 3), scale=(3,), count=2, strided=False):
        values = torch.zeros(logits)
        torch.ops.lpd_ext.token_selection(
            values.mT if strided else values,
            torch.zeros(uniform).double(),
            torch.ones(scale),
            torch.ones(count),
            torch.zeros(count).long(),
            torch.ones(count),
        )

    call()
    for unsafe in (
        {"logits": (5, 3, 9)},
        {"logits": (4, 3, 0)},
        {"logits": (4, 9, 3), "strided": True},
        {"uniform": (3, 3)},
        {"scale": (2,)},
        {"scale": (4, 3)},
        {"count": 1},
    ):
        with pytest.raises(RuntimeError, match="token_selection: argument"):
            call(**unsafe)
