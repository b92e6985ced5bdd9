"""A plan on torch's matrix products: what a GPU runs, here on the CPU and in the emulator."""

from concurrent.futures import ThreadPoolExecutor

import emulator
import pytest
import torch
from test_decode import SIZES
from test_plan import (
    FORCED,
    PUBLISHED,
    SETTINGS,
    assert_is_decode,
    assert_matches_published,
    call,
)
from test_plan_bfloat16 import errors
from tiny_pipeline import tiny_pipeline

from lpd_ext import LPD, DecodePlan, LPDConfig, decode, group_order, group_sizes, philox
from lpd_ext import plan as plan_module
from lpd_ext.kernels import REFERENCE
from lpd_ext.packed_model import PackedModel


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline().model


@pytest.mark.parametrize("sizes", [SIZES, [16], [1] * 16], ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_float32_is_decode(model, sizes, settings):
    assert_is_decode(model, sizes, settings, products="torch")


@pytest.mark.parametrize("case", PUBLISHED)
def test_matches_published(golden_folder, case):
    assert_matches_published(golden_folder / f"{case}.npz", products="torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kernel_emulated(monkeypatch, dtype):
    # All of a pass but torch's matrix products, on a grid of 8x8 in 2 layers.
    config = LPDConfig(grid=(8, 8), dim=64, depth=2, num_heads=2, vocab_size=40, num_classes=3)
    torch.manual_seed(0)
    model, seeds, sizes = LPD(config).eval(), torch.arange(2), group_sizes(64, 6)
    arguments = {
        "class_labels": torch.tensor([2, 0]),
        "order": group_order(seeds, config.grid, sizes),
        "uniform": philox.uniform(seeds, 64),
        "cfg_scale": 3.0,
        "top_k": 20,
        "top_p": 0.9,
    }
    if dtype == torch.float32:
        expected = decode(model, group_sizes=sizes, **arguments)
    else:  # where tokens depend on rounding, those of the same plan on the CPU's kernels
        expected = DecodePlan(model, 2, sizes, dtype=dtype, products="torch")(**arguments)
    emulator.use(monkeypatch)
    launches = emulator.stats()["launches"]
    assert DecodePlan(model, 2, sizes, dtype=dtype, products="torch")(**arguments).equal(expected)
    own = 4 * config.depth + 3  # a layer: norm, attention, norm, GELU; a step: rows, norm, ids
    assert emulator.stats()["launches"] - launches == own * len(sizes)


@pytest.mark.parametrize(
    ("products", "dtype", "of_layer", "of_step"),
    [
        *[("own", dtype, 5, 4) for dtype in (torch.float32, torch.bfloat16)],
        ("torch", torch.bfloat16, 7, 4),
        ("torch", torch.float32, 8, 4),
    ],
)
def test_launches(model, products, dtype, of_layer, of_step):
    for step in DecodePlan(model, 4, SIZES, products=products, dtype=dtype)._steps:
        launches = [step.embed, *step.transform, step.select]
        assert len(launches) == of_layer * model.config.depth + of_step


@pytest.mark.parametrize("scale", [1.0, 3.0, torch.tensor([1.0, 2.0, 4.0, 6.0])], ids=str)
def test_bfloat16_is_as_near_as_the_same_loop_in_torch(model, scale):
    arguments = call(forced_tokens=FORCED, cfg_scale=scale) | {"return_logits": True}
    plan = DecodePlan(model, 4, SIZES, dtype=torch.bfloat16, products="torch")
    planned = plan(**arguments)[1]
    assert planned.dtype == torch.float32

    def unplanned(dtype):
        copy = tiny_pipeline().model.to(dtype)
        return decode(copy, group_sizes=SIZES, **arguments, kernels=REFERENCE)[1]

    truth = unplanned(torch.float64)
    most, mean = errors(planned, truth)
    published_most, published_mean = errors(unplanned(torch.bfloat16), truth)
    assert published_most > 1e-4  # bfloat16 indeed
    assert most <= 2 * published_most
    assert mean <= 1.5 * published_mean


def test_changed_weights_are_noticed():
    model = tiny_pipeline().model
    plan = DecodePlan(model, 4, SIZES, products="torch")
    arguments = call(temperature=0, uniform=None)
    before = plan(**arguments)
    model.load_state_dict({name: value * 0.7 for name, value in model.state_dict().items()})
    model.head.weight.data[::2] *= -1
    assert plan(**arguments).equal(decode(model, group_sizes=SIZES, **arguments))
    assert not plan(**arguments).equal(before)


def test_sizes_are_those_of_the_tensors(model):
    plan = DecodePlan(model, 3, SIZES, dtype=torch.bfloat16, products="torch")
    assert plan.shape.sizes["logits"] == plan._buffers._logits.nbytes
    assert plan._buffers._logits.dtype == torch.bfloat16
    assert plan.nbytes["packed weights"] == plan.packed.nbytes


def test_products_must_be_known_and_those_of_the_weights(model):
    with pytest.raises(ValueError, match=r"^DecodePlan: argument `products`: .*'torch'"):
        DecodePlan(model, 4, SIZES, products="cublas")
    packed = PackedModel(model, torch.float32, "torch")
    assert DecodePlan(model, 4, SIZES, packed=packed).shape.products == "torch"
    with pytest.raises(ValueError, match="`packed`: expected weights for products 'own'"):
        DecodePlan(model, 4, SIZES, packed=packed, products="own")


def test_a_kernel_that_failed_its_check_is_not_planned_with(model, monkeypatch):
    for failed, dtype in (("bias_gelu", torch.float32), ("linear_gelu", torch.bfloat16)):
        monkeypatch.setattr(plan_module, "trusted", lambda op, device, failed=failed: op != failed)
        with pytest.raises(RuntimeError, match=rf"^DecodePlan: {failed} failed .* on cpu .*decode"):
            DecodePlan(model, 4, SIZES, dtype=dtype, products="torch")
        assert DecodePlan(model, 4, SIZES, dtype=dtype).shape.products == "own"


class FakeGraph:
    """Replays what was captured, or nothing."""

    def __init__(self, launches):
        self.replay = launches


@pytest.mark.parametrize("right", [True, False])
def test_a_graph_is_used_where_it_chooses_the_tokens_of_its_launches(model, monkeypatch, right):
    def fake(run, device, what):
        return FakeGraph(run if right else lambda: None)

    expected = DecodePlan(model, 4, SIZES)(**call())
    monkeypatch.setattr(plan_module, "captured", fake)
    if right:
        plan = DecodePlan(model, 4, SIZES)
    else:
        with pytest.warns(
            RuntimeWarning, match=r"DecodePlan: .* MiB: the CUDA graph chooses other"
        ):
            plan = DecodePlan(model, 4, SIZES)
    assert (plan._graph is not None) == right
    assert plan(**call()).equal(expected)


@pytest.mark.cuda
class TestOnAGpu:
    """The captured loop."""

    @pytest.fixture
    def on_gpu(self):
        return tiny_pipeline().model.to("cuda")

    @staticmethod
    def moved(arguments):
        return {k: v.to("cuda") if torch.is_tensor(v) else v for k, v in arguments.items()}

    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
    def test_float32_is_decode_on_the_cpu(self, on_gpu, model, settings):
        arguments = call(**settings)
        expected = decode(model, group_sizes=SIZES, **arguments)
        guided = torch.is_tensor(arguments["cfg_scale"]) or arguments["cfg_scale"] != 1
        plan = DecodePlan(on_gpu, 4, SIZES, guided=guided)
        assert plan._graph is not None
        assert plan(**self.moved(arguments)).cpu().equal(expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_replays_are_bitwise_equal_to_launches_one_by_one(self, on_gpu, dtype):
        plan = DecodePlan(on_gpu, 4, SIZES, dtype=dtype)
        arguments = self.moved(call())
        one_by_one = plan(**arguments, return_logits=True)[0]
        for _ in range(250):
            assert plan(**arguments).equal(one_by_one)

    def test_one_graph_serves_every_request(self, on_gpu, model):
        plan = DecodePlan(on_gpu, 4, SIZES)
        graph = plan._graph
        for changes in (
            {"cfg_scale": 5.0},
            {"temperature": 0.5},
            {"top_k": 3},
            {"top_p": 0.5},
            {"class_labels": torch.tensor([2, 2, 0, 1])},
        ):
            arguments = call(**changes)
            expected = decode(model, group_sizes=SIZES, **arguments)
            assert plan(**self.moved(arguments)).cpu().equal(expected)
        assert plan._graph is graph

    def test_threads_with_streams_of_their_own_share_a_plan(self, on_gpu):
        plan = DecodePlan(on_gpu, 4, SIZES)
        requests = [self.moved(call()), self.moved(call(temperature=0.5))]
        expected = [plan(**request) for request in requests]
        torch.cuda.synchronize()

        def right(request, tokens):
            with torch.cuda.stream(torch.cuda.Stream()):
                return all(plan(**request).equal(tokens) for _ in range(200))

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(right, requests, expected))

    def test_no_allocation_in_a_replay(self, on_gpu):
        plan = DecodePlan(on_gpu, 4, SIZES)
        plan(**self.moved(call()))
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        plan._graph.replay()
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before

    def test_short_of_memory_a_plan_runs_uncaptured(self, on_gpu, model, monkeypatch):
        def refuse(*args, **kwargs):
            raise torch.OutOfMemoryError

        monkeypatch.setattr(torch.cuda, "graph", refuse)
        with pytest.warns(RuntimeWarning, match=r"DecodePlan: batch_size 4.*MiB: .*not enough"):
            plan = DecodePlan(on_gpu, 4, SIZES)
        arguments = call()
        expected = decode(model, group_sizes=SIZES, **arguments)
        assert plan(**self.moved(arguments)).cpu().equal(expected)
