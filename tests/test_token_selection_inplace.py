"""token_selection_: the ids of token_selection, at their positions and nowhere else."""

import pytest
import torch

from lpd_ext.ops import reference
from lpd_ext.ops.token_selection import token_selection, token_selection_

BATCH, GROUP_SIZE, SEQ_LEN, VOCAB_SIZE = 3, 4, 11, 37
UNTOUCHED = -7


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_positions(batch=BATCH):
    draws = torch.rand(batch, SEQ_LEN, generator=rng(1))
    return draws.argsort(1)[:, :GROUP_SIZE].contiguous()


def fresh_tokens(batch=BATCH):
    return torch.full((batch, SEQ_LEN), UNTOUCHED)


def sample_arguments():
    """One call for each optional argument, and one with all of them."""
    logits = torch.randn(2 * BATCH, GROUP_SIZE, VOCAB_SIZE, generator=rng()) * 2
    uniform = torch.rand(2 * BATCH, GROUP_SIZE, generator=rng(2), dtype=torch.float64)
    half = logits[:BATCH], uniform[:BATCH]
    scale = 1 + torch.rand(BATCH, GROUP_SIZE, generator=rng(3))
    per_image = {
        "temperature": torch.tensor([0.5, 1.5, 0.0]),
        "top_k": torch.tensor([5, 0, 2]),
        "top_p": torch.tensor([1.0, 0.8, 0.5]),
    }
    return {
        "plain": (*half, {}),
        "bfloat16": (half[0].bfloat16(), half[1], {}),
        "cfg per query": (logits, half[1], {"cfg_scale": scale[0]}),
        "cfg per image": (logits, half[1], {"cfg_scale": scale}),
        "temperature": (*half, {"temperature": 0.7}),
        "top_k": (*half, {"top_k": 4}),
        "top_p": (*half, {"top_p": 0.6}),
        "all": (logits, half[1], {"cfg_scale": scale, **per_image}),
    }


def sample_on(device, name):
    logits, uniform, options = sample_arguments()[name]
    placed = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return logits.to(device), uniform.to(device), placed


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", sample_arguments())
@pytest.mark.parametrize("op", [token_selection_, reference.token_selection_])
def test_writes_the_ids_to_their_positions_only(device, name, op):
    logits, uniform, options = sample_on(device, name)
    positions = random_positions().to(device)
    tokens = fresh_tokens().to(device)
    assert op(tokens, positions, logits, uniform, **options) is None
    ids = token_selection(logits, uniform, **options)
    assert torch.equal(tokens, fresh_tokens().to(device).scatter(1, positions, ids))


def test_strided_tokens_and_positions_between_sentinels(device):
    # Rows and columns of larger buffers, and transposed: each stride is its own.
    logits, uniform, options = sample_on(device, "all")
    expected = fresh_tokens().to(device)
    token_selection_(expected, random_positions().to(device), logits, uniform, **options)

    buffer = torch.full((2 * BATCH + 3, 3 * SEQ_LEN + 4), UNTOUCHED, device=device)
    view = buffer[2 : 2 + 2 * BATCH : 2, 3 : 3 + 3 * SEQ_LEN : 3]
    around = torch.full((2 * BATCH, 2 * GROUP_SIZE), 10**9, device=device)  # a read beside it
    positions = around[::2, 1::2].copy_(random_positions())
    token_selection_(view, positions, logits, uniform, **options)
    assert torch.equal(view, expected)
    view.fill_(UNTOUCHED)
    assert (buffer == UNTOUCHED).all()

    tokens = fresh_tokens().T.contiguous().T.to(device)
    transposed = random_positions().T.contiguous().T.to(device)
    token_selection_(tokens, transposed, logits, uniform, **options)
    assert torch.equal(tokens, expected)


def test_a_row_without_a_distribution_writes_minus_one(device):
    logits, uniform, _ = sample_arguments()["plain"]
    logits = logits.clone()
    logits[1, 2, 0] = torch.nan
    positions, tokens = random_positions(), fresh_tokens().to(device)
    token_selection_(tokens, positions.to(device), logits.to(device), uniform.to(device))
    assert (tokens == -1).nonzero().tolist() == [[1, int(positions[1, 2])]]


@pytest.mark.parametrize("position", [-1, -(2**63), SEQ_LEN, 2**40])
def test_a_position_out_of_range_writes_nothing(device, runs_on, position):
    # On a GPU nobody waits for the positions, to refuse them: the other rows are written.
    logits, uniform, options = sample_on(device, "all")
    tokens, expected = fresh_tokens().to(device), fresh_tokens().to(device)
    positions = random_positions().to(device)
    token_selection_(expected, positions, logits, uniform, **options)
    expected[1, positions[1, 2]] = UNTOUCHED
    positions[1, 2] = position
    if runs_on.kind == "cpu":
        with pytest.raises(ValueError, match="`positions`"):
            token_selection_(tokens, positions, logits, uniform, **options)
        assert (tokens == UNTOUCHED).all()
    else:
        token_selection_(tokens, positions, logits, uniform, **options)
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("shape", [(0, GROUP_SIZE), (BATCH, 0)])
def test_empty(device, shape):
    tokens = fresh_tokens(shape[0]).to(device)
    positions = torch.zeros(shape, dtype=torch.int64, device=device)
    uniform = torch.zeros(shape, dtype=torch.float64, device=device)
    token_selection_(tokens, positions, torch.zeros(*shape, 9, device=device), uniform, top_k=3)
    assert (tokens == UNTOUCHED).all()


def test_nothing_is_allocated(torch_device):
    logits, uniform, options = sample_on(torch_device, "all")
    tokens, positions = fresh_tokens().to(torch_device), random_positions().to(torch_device)
    arguments = tokens, positions, logits, uniform
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        token_selection_(*arguments, **options)
    events = {event.key: event for event in profile.key_averages()}
    assert "lpd_ext::token_selection_" in events
    assert not any(key.startswith("aten::") for key in events)
    assert all(event.self_cpu_memory_usage == 0 for event in events.values())


@pytest.mark.parametrize("name", sample_arguments())
def test_opcheck(torch_device, name):
    logits, uniform, options = sample_on(torch_device, name)

    def per_image(name, default, dtype):
        value = torch.as_tensor(options.get(name, default), dtype=dtype, device=torch_device)
        return value.expand(BATCH)

    torch.library.opcheck(
        torch.ops.lpd_ext.token_selection_.default,
        (
            fresh_tokens().to(torch_device),
            random_positions().to(torch_device),
            logits,
            uniform,
            options.get("cfg_scale"),
            per_image("temperature", 1.0, torch.float32),
            per_image("top_k", 0, torch.int64),
            per_image("top_p", 1.0, torch.float32),
        ),
    )


@pytest.mark.parametrize("name", sample_arguments())
def test_compiles_as_one_graph(torch_device, name):
    logits, uniform, options = sample_on(torch_device, name)
    compiled = torch.compile(token_selection_, fullgraph=True, backend="aot_eager")
    tokens, expected = fresh_tokens().to(torch_device), fresh_tokens().to(torch_device)
    positions = random_positions().to(torch_device)
    compiled(tokens, positions, logits, uniform, **options)
    token_selection_(expected, positions, logits, uniform, **options)
    assert torch.equal(tokens, expected)


def overlapping():
    """Tokens and positions that take turns in one storage."""
    storage = torch.zeros(BATCH, SEQ_LEN + GROUP_SIZE, dtype=torch.int64)
    return {"tokens": storage[:, :SEQ_LEN], "positions": storage[:, SEQ_LEN:]}


def moved(place, position):
    positions = random_positions()
    positions[place] = position
    return {"positions": positions}


INT64 = torch.int64
REFUSALS = {  # changed arguments, error, message from the argument's name on
    "logits dtype": ({"logits": torch.zeros(3, 4, 9).double()}, TypeError, "`logits`: .*float64"),
    "top_p beyond 1": ({"top_p": 1.1}, ValueError, r"`top_p`: .*\[0, 1\], got 1.1"),
    "tokens number": ({"tokens": 3}, TypeError, "`tokens`: expected a tensor"),
    "tokens dtype": ({"tokens": torch.zeros(3, 11)}, TypeError, "`tokens`: .*int64, got float32"),
    "tokens dims": (
        {"tokens": torch.zeros(33, dtype=INT64)},
        ValueError,
        r"`tokens`: .*seq_len.*33",
    ),
    "tokens batch": (
        {"tokens": torch.zeros(2, 11, dtype=INT64)},
        ValueError,
        r"`tokens`: .*\[3, 11\].*\[2, 11\]",
    ),
    "tokens device": (
        {"tokens": torch.zeros(3, 11, dtype=INT64, device="meta")},
        ValueError,
        "`tokens`: expected device cpu, got meta",
    ),
    "tokens expanded": (
        {"tokens": torch.zeros(1, 11, dtype=INT64).expand(3, 11)},
        ValueError,
        "`tokens`: expected no expanded dimension",
    ),
    "positions dtype": (
        {"positions": torch.zeros(3, 4, dtype=torch.int32)},
        TypeError,
        "`positions`: expected int64, got int32",
    ),
    "positions dims": (
        {"positions": torch.zeros(4, dtype=INT64)},
        ValueError,
        "`positions`: .*group_size",
    ),
    "positions shape": (
        {"positions": torch.zeros(3, 5, dtype=INT64)},
        ValueError,
        r"`positions`: .*\[3, 4\].*\[3, 5\]",
    ),
    "positions device": (
        {"positions": torch.zeros(3, 4, dtype=INT64, device="meta")},
        ValueError,
        "`positions`: expected device cpu, got meta",
    ),
    "position too large": (
        moved((2, 3), SEQ_LEN),
        ValueError,
        r"`positions`: expected values in \[0, 11\), got \[\d+, 11\]",
    ),
    "position negative": (
        moved((0, 0), -1),
        ValueError,
        r"`positions`: expected values in \[0, 11\), got \[-1, \d+\]",
    ),
    "overlap": (overlapping(), ValueError, "`positions`: expected memory apart from tokens"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_write_nothing(case):
    changed, error, message = REFUSALS[case]
    logits, uniform, _ = sample_arguments()["plain"]
    tokens = fresh_tokens()
    arguments = {"positions": random_positions(), "logits": logits, "uniform": uniform}
    arguments = {"tokens": tokens} | arguments | changed
    with pytest.raises(error, match=f"token_selection_: argument {message}"):
        token_selection_(**arguments)
    assert (tokens == UNTOUCHED).all()


def test_the_operator_itself_refuses_what_is_unsafe():
    # Called past the Python function: nothing is read or written outside a tensor.
    logits, uniform, _ = sample_arguments()["plain"]

    def call(**changed):
        arguments = {"tokens": fresh_tokens(), "positions": random_positions()} | changed
        torch.ops.lpd_ext.token_selection_(
            *arguments.values(),
            logits,
            uniform,
            None,
            torch.ones(BATCH),
            torch.zeros(BATCH, dtype=INT64),
            torch.ones(BATCH),
        )
        return arguments["tokens"]

    assert (call() >= 0).sum() == BATCH * GROUP_SIZE
    for unsafe in (
        {"tokens": torch.zeros(BATCH - 1, SEQ_LEN, dtype=INT64)},
        {"tokens": torch.zeros(BATCH, SEQ_LEN, dtype=torch.int32)},
        {"positions": torch.zeros(BATCH, GROUP_SIZE - 1, dtype=INT64)},
        {"positions": torch.zeros(BATCH, GROUP_SIZE, dtype=torch.int32)},
        moved((2, 3), SEQ_LEN),
        moved((0, 0), -1),
        overlapping(),
    ):
        with pytest.raises(RuntimeError, match="token_selection_: argument"):
            call(**unsafe)
