"""Packed weights: which changes of a model are noticed, which models are refused."""

import threading

import numpy as np
import pytest
import torch
from test_decode import CONFIG, SIZES
from test_plan import call
from tiny_pipeline import tiny_pipeline
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lpd_ext import LPD, DecodePlan, LPDConfig, decode
from lpd_ext.packed_model import PackedModel
from lpd_ext.plan import can_plan

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def model():
    return tiny_pipeline().model


def other_state(model, factor=0.9):
    return {name: tensor.detach() * factor for name, tensor in model.state_dict().items()}


def add_in_place(model):
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[::2].add_(1)


def add_to_one_value(model):
    with torch.no_grad():
        model.head.weight[3, 5] += 9


def add_in_inference_mode(model):
    with torch.inference_mode():
        model.blocks[0].attn.proj.weight.mul_(2)


def load(model):
    model.load_state_dict(other_state(model))


def load_assigned(model):
    model.load_state_dict(other_state(model), assign=True)


def replace_parameter(model):
    model.blocks[0].norm1.weight = nn.Parameter(model.blocks[0].norm1.weight.detach() * 2)


def replace_layer(model):
    model.head = nn.Linear(CONFIG.dim, CONFIG.vocab_size, bias=False)


def replace_data(model):
    model.token_emb.weight.data = model.token_emb.weight.data * 2


def other_strides_of_the_same_memory(model):
    weight = model.blocks[0].attn.proj.weight  # square
    weight.data = weight.data.t()


def add_through_data(model):
    # torch counts no version here: the compared values give it away.
    model.pos_embed.data.mul_(1.5)


def add_through_numpy(model):
    array = model.mask_token.detach().numpy()
    array += np.float32(0.5)


def optimizer_step(optimizer, **options):
    def step(model):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(model.parameters(), lr=0.01, **options).step()
        model.zero_grad()

    return step


CHANGES = {
    "in place": add_in_place,
    "one value": add_to_one_value,
    "in inference mode": add_in_inference_mode,
    "load_state_dict": load,
    "load_state_dict, assign": load_assigned,
    "parameter replaced": replace_parameter,
    "layer replaced": replace_layer,
    "data replaced": replace_data,
    "data transposed": other_strides_of_the_same_memory,
    "data changed": add_through_data,
    "NumPy": add_through_numpy,
    "SGD": optimizer_step(torch.optim.SGD),
    "AdamW": optimizer_step(torch.optim.AdamW, foreach=True),
    "AdamW fused": optimizer_step(torch.optim.AdamW, fused=True),  # torch counts no version
    "to bfloat16": lambda model: model.to(torch.bfloat16),
    "another moment": lambda model: nn.init.normal_(model.fake_latent),
}


@DTYPES
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_noticed(model, change, dtype):
    plan = DecodePlan(model, 4, SIZES, dtype=dtype)
    arguments = call(return_logits=True)
    before = plan(**arguments)[1]
    change(model)
    tokens, logits = plan(**arguments)
    assert not logits.equal(before)
    fresh_tokens, fresh_logits = DecodePlan(model, 4, SIZES, dtype=dtype)(**arguments)
    assert tokens.equal(fresh_tokens)
    assert logits.equal(fresh_logits)
    assert not plan.packed.refresh()  # once is enough


def test_unchanged_weights_are_packed_once(model, monkeypatch):
    refreshed = []
    refresh = PackedModel.refresh
    monkeypatch.setattr(PackedModel, "refresh", lambda self: refreshed.append(refresh(self)))
    plan = DecodePlan(model, 4, SIZES)
    for _ in range(3):
        plan(**call())
    model.eval().requires_grad_(False).to("cpu")  # none of these changes a value
    plan(**call())
    add_in_place(model)
    plan(**call())
    plan(**call())
    assert refreshed == [False] * 4 + [True, False]


@DTYPES
def test_unchanged_weights_are_neither_walked_nor_copied_one_by_one(model, monkeypatch, dtype):
    # A call on a GPU waits for this: tensors of two dtypes in one `cat` are copied one by one.
    packed = PackedModel(model.to(dtype), dtype)  # norms stay float32
    for walk in ("named_modules", "named_parameters"):
        monkeypatch.setattr(nn.Module, walk, interrupt)

    class Joined(TorchDispatchMode):
        dtypes = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.cat.default:
                self.dtypes += ({tensor.dtype for tensor in args[0]},)
            return function(*args, **kwargs or {})

    with Joined() as joined:
        assert not packed.refresh()
    assert all(len(dtypes) == 1 for dtypes in joined.dtypes)
    assert len(joined.dtypes) == len({dtype, torch.float32}) + 1  # the last one: all as float32


def test_nan_weights_are_packed_once(model):
    # NaN differs from itself, but not in bits.
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    assert not PackedModel(model, torch.float32).refresh()


def test_weights_packed_in_inference_mode_are_renewed_outside(model):
    with torch.inference_mode():
        plan = DecodePlan(model, 4, SIZES)
    add_in_place(model)
    assert plan(**call()).equal(decode(model, group_sizes=SIZES, **call()))


def test_a_change_reaches_all_plans_that_share_the_weights(model):
    packed = PackedModel(model, torch.float32)
    plans = [DecodePlan(model, size, SIZES, packed=packed) for size in (4, 6)]
    add_in_place(model)
    expected = decode(model, group_sizes=SIZES, **call())
    assert all(plan(**call()).equal(expected) for plan in plans)


def test_an_interrupted_copy_begins_again(model, monkeypatch):
    # Some of the copies are new then, whatever the model returns to.
    plan = DecodePlan(model, 4, SIZES)
    expected = plan(**call())
    before = model.token_emb.weight
    model.token_emb.weight = nn.Parameter(before.detach().flip(0))
    with monkeypatch.context() as patch:
        patch.setattr(PackedModel, "_pack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan(**call())
    model.token_emb.weight = before
    assert plan(**call()).equal(expected)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def head_of_other_shape(model):
    model.head = nn.Linear(CONFIG.dim, 24, bias=False)


def no_bias(model):
    model.blocks[0].attn.qkv.bias = None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (head_of_other_shape, r"a head of 19 outputs, the vocabulary, got 24"),
        (no_bias, r"blocks\.0\.attn\.qkv\.bias of shape \[192\].*got None"),
    ],
)
def test_another_shape_is_refused_and_spoils_nothing(model, change, match):
    plan = DecodePlan(model, 4, SIZES)
    expected = plan(**call())
    state = other_state(model, 1.0)
    change(model)
    with pytest.raises(ValueError, match=f"`model`: .*{match}"):
        plan(**call())
    model.head = nn.Linear(CONFIG.dim, CONFIG.vocab_size, bias=False)
    model.blocks[0].attn.qkv.bias = nn.Parameter(torch.empty(3 * CONFIG.dim))
    model.load_state_dict(state)
    assert plan(**call()).equal(expected)


def hooked(model):
    model.blocks[1].register_forward_hook(lambda module, args, output: output)
    return model


def patched(model):
    model.norm.forward = lambda x: x
    return model


def adapted(model):
    class Adapted(nn.Linear):
        pass

    model.blocks[0].mlp.fc1 = Adapted(64, 128)
    return model


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.head)
    return model.eval()


def derived(model):
    class Derived(LPD):
        pass

    return Derived(CONFIG).eval()


def made_in_inference_mode(model):
    with torch.inference_mode():
        return LPD(CONFIG).eval()


UNFIT = {
    "hook": (hooked, ValueError, r"without hooks.*with a hook at 'blocks.1'"),
    "patched": (patched, ValueError, "with a hook at 'norm'"),
    "layer of another kind": (adapted, ValueError, "Adapted at 'blocks.0.mlp.fc1'"),
    "parametrized": (parametrized, ValueError, "ParametrizedLinear at 'head'"),
    "derived": (derived, ValueError, "Derived"),
    "training": (lambda model: model.train(), ValueError, "evaluation"),
    "inference mode": (made_in_inference_mode, ValueError, r"outside torch\.inference_mode"),
    "float64": (lambda model: model.double(), TypeError, "float64"),
    "meta": (lambda model: model.to("meta"), NotImplementedError, "device cpu or cuda, got meta"),
    "no LPD": (lambda model: nn.Linear(2, 2), TypeError, "an LPD, got Linear"),
}


@pytest.mark.parametrize(("change", "error", "match"), UNFIT.values(), ids=UNFIT.keys())
def test_models_that_cannot_be_planned(model, change, error, match):
    # A plan reads weights alone: what else a model does would be lost without a word.
    assert can_plan(model)
    changed = change(model)
    assert not can_plan(changed)
    with pytest.raises(error, match=f"^PackedModel: argument `model`: .*{match}"):
        PackedModel(changed, torch.float32)
    with pytest.raises(error, match=f"^DecodePlan: argument `model`: .*{match}"):
        DecodePlan(changed, 4, SIZES, dtype=torch.float32)


@pytest.mark.parametrize("name", ["hook", "layer of another kind", "training", "float64", "meta"])
def test_a_planned_model_that_becomes_unfit(model, name):
    change, error, match = UNFIT[name]
    plan = DecodePlan(model, 4, SIZES)
    change(model)
    with pytest.raises(error, match=f"`model`: .*{match}"):
        plan(**call())


def test_back_in_evaluation_it_decodes_again(model):
    plan = DecodePlan(model, 4, SIZES)
    expected = plan(**call())
    model.train()
    with pytest.raises(ValueError, match="evaluation"):
        plan(**call())
    model.eval()
    assert plan(**call()).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, "float32"], ids=str)
def test_dtypes_without_kernels(model, dtype):
    with pytest.raises(TypeError, match=r"`dtype`: expected torch.float32 or torch.bfloat16, got"):
        PackedModel(model, dtype)


@DTYPES
def test_a_float16_model_in_another_dtype(model, dtype):
    half = tiny_pipeline().model.half()
    wide = tiny_pipeline().model.half().float()
    arguments = call(return_logits=True)
    logits = DecodePlan(half, 4, SIZES, dtype=dtype)(**arguments)[1]
    assert logits.equal(DecodePlan(wide, 4, SIZES, dtype=dtype)(**arguments)[1])


def test_nbytes_counts_every_tensor(model):
    packed = PackedModel(model, torch.bfloat16)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    assert packed.nbytes > 2 * weights
    storages = {t.untyped_storage().data_ptr(): t.nbytes for t in tensors_in(packed)}
    assert packed.nbytes == sum(storages.values())


def tensors_in(value):
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dict__"):
        skipped = ("model", "_checked", "_seen")
        for name, item in vars(value).items():
            if name not in skipped:
                yield from tensors_in(item)


def test_another_eps_is_refused(model):
    # Plans know one eps: another would be dropped without a word.
    model.blocks[0].norm2.eps = 1e-3
    with pytest.raises(ValueError, match=r"`model`: expected eps = 1e-06 at .blocks\.0\.norm2"):
        DecodePlan(model, 1, SIZES)


def test_a_head_dim_without_a_kernel_is_refused_before_anything_is_packed():
    config = LPDConfig(grid=(2, 2), dim=48, depth=1, num_heads=1, vocab_size=8, num_classes=2)
    with pytest.raises(NotImplementedError, match="argument `model`: expected head_dim in"):
        DecodePlan(LPD(config).eval(), 1, [1, 3])
    assert not can_plan(LPD(config).eval())


def test_plans_that_share_weights_take_turns(model):
    # One would renew the weights while the other reads them.
    packed = PackedModel(model, torch.float32)
    one, other = (DecodePlan(model, size, SIZES, packed=packed) for size in (1, 2))
    seen = []

    def progress(*_):
        seen.append("a")
        if len(seen) == 1:
            thread.start()
        thread.join(0.05)

    arguments = {
        name: value[:1] if isinstance(value, torch.Tensor) else value
        for name, value in call().items()
    }
    thread = threading.Thread(
        target=lambda: other(**arguments, progress=lambda *_: seen.append("b"))
    )
    one(**arguments, progress=progress)
    thread.join()
    assert seen == ["a"] * len(SIZES) + ["b"] * len(SIZES)
