"""A published LPD that was accelerated: the same tokens, sooner, and its own method back."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lpd_ext
from lpd_ext import decode
from lpd_ext.accelerate import as_sizes

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from published_model import block_causal, published_model

SIZES = [1, 2, 4, 9]


@pytest.fixture
def model():
    return published_model()


def arguments(bsz=3, **changes):
    generator = torch.Generator().manual_seed(bsz)
    return {
        "bsz": bsz,
        "cfg": 3.0,
        "labels": torch.arange(bsz) % 3,
        "temperature": 0,
        "attn_mask": block_causal(SIZES),
        "group_sizes": SIZES,
        "orders": torch.stack([torch.randperm(16, generator=generator) for _ in range(bsz)]),
    } | changes


@torch.no_grad()
def tokens_of(model, **changes):
    return model.sample_tokens(**arguments(**changes))


GREEDY = {
    "published": {},
    "constant": {"cfg_schedule": "constant"},
    "no guidance": {"cfg": 1.0},
    "no labels": {"labels": None},
    "one image": {"bsz": 1},
    "token by token": {"group_sizes": "[1] * 16", "attn_mask": block_causal([1] * 16)},
    "one group": {"group_sizes": (16,), "attn_mask": block_causal([16])},
    "filters off": {"top_k": -1, "top_p": 2.0, "temperature": -1.0},
    "labels of int32": {"labels": torch.tensor([2, 1, 0], dtype=torch.int32)},
}


@pytest.mark.parametrize("changes", GREEDY.values(), ids=GREEDY.keys())
def test_greedy_tokens_are_the_same(model, changes):
    expected = tokens_of(model, **changes)
    storages = {name: p.untyped_storage().data_ptr() for name, p in model.named_parameters()}
    with lpd_ext.accelerate(model):
        assert tokens_of(model, **changes).equal(expected)
    assert model.calls == 1  # so the other ones were ours
    now = {name: p.untyped_storage().data_ptr() for name, p in model.named_parameters()}
    assert now == storages
    assert expected.unique().numel() > 3


def freshly_accelerated():
    return lpd_ext.accelerate(published_model()).model


def test_call_after_call(model):
    calls = [{"bsz": 2}, {"bsz": 4}, {"cfg": 1.0}, {"cfg": 4.8}, {"bsz": 2, "cfg": 4.8}]
    expected = [tokens_of(model, **changes) for changes in calls]
    accelerated = lpd_ext.accelerate(model)
    for _ in range(2):
        assert all(tokens_of(model, **c).equal(e) for c, e in zip(calls, expected, strict=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            narrow = [tokens_of(model, **changes) for changes in calls]
            for changes, tokens in zip(calls, narrow, strict=True):
                assert tokens_of(freshly_accelerated(), **changes).equal(tokens)
        kept = accelerated.nbytes
    # Several near-ties go the other way in bfloat16, not most.
    same = [(n == e).float().mean() for n, e in zip(narrow, expected, strict=True)]
    assert min(same) > 0.5
    assert accelerated.nbytes == kept > 0
    assert model.calls == len(calls)


def test_memory_is_bounded(model):
    small = lpd_ext.accelerate(model, max_bytes=0)
    for bsz in (1, 2, 3):
        tokens_of(model, bsz=bsz)
    assert len(small._link.plans) == 1
    small.release()
    assert small.nbytes == 0
    tokens_of(model)
    assert small.nbytes > 0


def test_autocast_is_honoured(model):
    accelerated = lpd_ext.accelerate(model)
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            tokens_of(model)
        (plan,) = accelerated._link.plans._plans.values()
        assert plan.shape.dtype == (dtype or torch.float32)
        accelerated.release()
    model.to(torch.bfloat16)
    tokens_of(model)
    (plan,) = accelerated._link.plans._plans.values()
    assert plan.shape.dtype == torch.bfloat16


def test_it_is_the_dtype_of_the_decode_that_needs_kernels(model):
    lpd_ext.accelerate(model.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens_of(model)
    assert model.calls == 0


def test_the_seed_of_torch_makes_draws_repeatable(model):
    lpd_ext.accelerate(model)

    def drawn(seed, **changes):
        torch.manual_seed(seed)
        return tokens_of(model, temperature=1.0, **changes)

    for changes in ({}, {"orders": None, "labels": None}):
        assert drawn(1, **changes).equal(drawn(1, **changes))
        assert not drawn(1, **changes).equal(drawn(2, **changes))
        assert not tokens_of(model, temperature=1.0, **changes).equal(drawn(2, **changes))


def test_draws_are_those_of_decode(model):
    accelerated = lpd_ext.accelerate(model)
    given = arguments(temperature=0.8, top_k=9, top_p=0.9)
    torch.manual_seed(5)
    tokens = model.sample_tokens(**given)
    torch.manual_seed(5)
    expected = decode(
        accelerated._link.shared,
        given["labels"],
        SIZES,
        given["orders"],
        uniform=torch.rand(3, 16, dtype=torch.float64),
        cfg_scale=3.0,
        temperature=0.8,
        top_k=9,
        top_p=0.9,
    )
    assert tokens.equal(expected)


@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
def test_restore_gives_the_method_back(model, own):
    if own:  # somebody had put one there before
        model.sample_tokens = lambda *args, **kwargs: "own"
    before = dict(vars(model))
    accelerated = lpd_ext.accelerate(model)
    assert lpd_ext.accelerate(model) is accelerated
    accelerated.restore()
    assert dict(vars(model)) == before
    assert accelerated.nbytes == 0
    accelerated.restore()
    assert dict(vars(model)) == before


def test_restore_leaves_what_others_put_there(model):
    accelerated = lpd_ext.accelerate(model)
    model.sample_tokens = other = lambda: None
    accelerated.restore()
    assert model.sample_tokens is other


def test_restored_after_an_error(model):
    with pytest.raises(KeyError), lpd_ext.accelerate(model):
        raise KeyError
    tokens_of(model)
    assert model.calls == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_on_its_own(model, copied):
    accelerated = lpd_ext.accelerate(model)
    expected = tokens_of(model)
    other = copied(model)
    assert lpd_ext.accelerate(other) is not accelerated
    assert lpd_ext.accelerate(other).model is other
    assert lpd_ext.accelerate(other).nbytes == 0
    assert tokens_of(other).equal(expected)
    with torch.no_grad():
        other.head.weight.neg_()
    assert tokens_of(model).equal(expected)
    assert not tokens_of(other).equal(expected)
    assert model.calls == other.calls == 0
    assert model.state_dict().keys() == published_model().state_dict().keys()


def change_in_place(model):
    model.head.weight.data.neg_()


def load(model):
    model.load_state_dict({name: 0.5 * x for name, x in model.state_dict().items()})


def replace_a_layer(model):
    torch.manual_seed(3)
    model.head = nn.Linear(64, 19, bias=False)


def replace_a_parameter(model):
    model.token_emb.weight = nn.Parameter(model.token_emb.weight.flip(0))


@pytest.mark.parametrize("change", [change_in_place, load, replace_a_layer, replace_a_parameter])
def test_changed_weights_are_noticed(model, change):
    with lpd_ext.accelerate(model):
        before = tokens_of(model)
        with torch.no_grad():
            change(model)
        after = tokens_of(model)
    assert model.calls == 0
    assert not after.equal(before)
    assert after.equal(tokens_of(model))


def train(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def hook(model):
    model.blocks[1].mlp.fc1.register_forward_hook(lambda module, args, out: out * 2)


@pytest.mark.parametrize(("change", "reason"), [(train, "training"), (hook, "hook")])
def test_what_a_plan_would_not_do_the_published_method_does(model, change, reason):
    change(model)
    expected = tokens_of(model)
    with lpd_ext.accelerate(model), pytest.warns(RuntimeWarning, match=reason):
        assert tokens_of(model).equal(expected)
    assert model.calls == 2


def test_float16_goes_by_the_published_method(model):
    with (
        lpd_ext.accelerate(model),
        torch.autocast("cpu", dtype=torch.float16),
        pytest.warns(RuntimeWarning, match="float16"),
    ):
        tokens_of(model)
    assert model.calls == 1


def test_kernels_that_failed_go_by_the_published_method(model, monkeypatch):
    monkeypatch.setattr(lpd_ext.plan, "trusted", lambda op, device: False)
    with lpd_ext.accelerate(model), pytest.warns(RuntimeWarning, match="self-check on cpu"):
        tokens_of(model)
    assert model.calls == 1


MASKS = {
    "bool": block_causal(SIZES, torch.bool),
    "large numbers": block_causal(SIZES).clamp(min=-1e9),
    "larger": torch.nn.functional.pad(block_causal(SIZES), (0, 3, 0, 3), value=7.0),
    "none": None,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_masks_that_say_the_same(model, mask):
    expected = tokens_of(model)
    lpd_ext.accelerate(model)
    assert tokens_of(model, attn_mask=mask).equal(expected)


def test_a_mask_is_read_again_where_it_may_say_something_else(model):
    lpd_ext.accelerate(model)
    mask = block_causal(SIZES)
    tokens_of(model, attn_mask=mask)
    other = [1, 6, 9]
    with pytest.raises(ValueError, match=r"`attn_mask`.*at \[2, 4\] for groups \[1, 6, 9\]"):
        tokens_of(model, attn_mask=mask, group_sizes=other)
    mask[2, 4] = 0
    with pytest.raises(ValueError, match=r"`attn_mask`: .*got 0.0 at \[2, 4\]"):
        tokens_of(model, attn_mask=mask)


BAD_CALLS = [
    ({"bsz": 0}, ValueError, "`bsz`"),
    ({"labels": torch.tensor([0, 1, 3])}, ValueError, r"`class_labels`: .*\[-1, 3\)"),
    ({"labels": torch.tensor([0, 1])}, ValueError, r"`labels`: expected \[bsz\] = \[3\]"),
    ({"labels": torch.tensor([0.0, 1, 2])}, TypeError, "`labels`: expected integers"),
    ({"labels": [0, 1, 2]}, TypeError, "`labels`: expected a tensor"),
    ({"orders": torch.zeros(3, 16).long()}, ValueError, "`order`: expected a permutation"),
    ({"orders": torch.arange(16)}, ValueError, r"`orders`: expected \[bsz, seq_len\]"),
    ({"group_sizes": [1, 2]}, ValueError, "`group_sizes`: .*sum to 16"),
    ({"group_sizes": None}, TypeError, "`group_sizes`: expected a sequence"),
    ({"group_sizes": "[1] * print(3)"}, ValueError, "`group_sizes`: expected a list of ints"),
    ({"cfg_schedule": "cosine"}, ValueError, "`cfg_schedule`"),
    ({"cfg": float("nan")}, ValueError, "`cfg_scale`"),
    ({"attn_mask": torch.zeros(17, 17)}, ValueError, r"`attn_mask`: .*got 0.0 at \[0, 1\]"),
    ({"attn_mask": torch.zeros(16, 16)}, ValueError, r"`attn_mask`: .*got shape \[16, 16\]"),
    ({"attn_mask": "causal"}, TypeError, "`attn_mask`: expected a tensor"),
]


@pytest.mark.parametrize(("changes", "error", "match"), BAD_CALLS)
def test_bad_calls(model, changes, error, match):
    expected = tokens_of(model)
    lpd_ext.accelerate(model)
    with pytest.raises(error, match=match):
        model.sample_tokens(**(arguments() | changes))
    assert tokens_of(model).equal(expected)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("[1] * 256", [1] * 256),
        (" 2 * [1, 3] + [4]", [1, 3, 1, 3, 4]),
        ("(1, 2)", [1, 2]),
        ("[]", []),
    ],
)
def test_sizes_in_words(text, sizes):
    assert as_sizes(text) == sizes


@pytest.mark.parametrize(
    "text",
    ["", "16", "[1", "[1] * -1", "[1] * 10**9", "[1] * 2000000", "[True]", "[1.0]", "x", "[x]",
     "[1] * [2]", "1 + 2", "__import__('os')", "[1 for _ in (2, 3)]", "(" * 3000],
)  # fmt: skip
def test_words_that_are_no_sizes(text):
    with pytest.raises(ValueError, match="`group_sizes`: expected a list of ints"):
        as_sizes(text)
