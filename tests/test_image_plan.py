"""A planned decode of the tokenizer is `VQModel.decode`: values, changes of weights, one graph."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_plan_bfloat16 import errors
from test_vq import TINY
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lpd_ext import ImagePlan, VQModel
from lpd_ext.cuda_precision import float32_convolutions

GRID = (3, 4)  # not square: a transposed grid would show
CONFIG = replace(TINY, in_channels=3)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def vq():
    torch.manual_seed(0)
    return VQModel(CONFIG).eval()


def some_codes(count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG.codebook_size, (count, 12), generator=generator)


@torch.no_grad()
def unplanned(vq, codes, dtype):
    with float32_convolutions(codes.device):
        return deepcopy(vq).to(dtype).decode(codes, GRID)


@pytest.mark.parametrize("mult", [(1, 2), (1, 1, 2), (2,)], ids=str)
@DTYPES
def test_it_is_as_near_to_the_truth_as_decode(dtype, mult):
    # Convolutions in channels-last memory may add in another order: no bits, but the rule of ops.
    torch.manual_seed(0)
    vq = VQModel(replace(CONFIG, channel_mult=mult)).eval()
    codes = some_codes()
    truth = unplanned(vq, codes, torch.float64)
    images = ImagePlan(vq, 4, GRID, dtype=dtype)(codes)
    assert images.dtype == torch.float32
    assert images.shape == truth.shape
    assert images.is_contiguous()
    most, mean = errors(images, truth)
    decode_most, decode_mean = errors(unplanned(vq, codes, dtype), truth)
    assert decode_most > (1e-4 if dtype == torch.bfloat16 else 1e-8)  # rounded indeed
    assert decode_mean < 0.05 * truth.std()
    assert most <= 2 * decode_most
    assert mean <= 1.5 * decode_mean


@pytest.mark.parametrize("kept_in", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_tokenizer_of_another_dtype(vq, kept_in):
    codes = some_codes()
    images = ImagePlan(deepcopy(vq).to(kept_in), 4, GRID, dtype=torch.float32)(codes)
    rounded = deepcopy(vq).to(kept_in)
    expected = unplanned(rounded, codes, torch.float64)
    assert errors(images, expected)[0] < 1e-5 * expected.abs().max()


@DTYPES
def test_a_plan_in_the_dtype_of_the_tokenizer(vq, dtype):
    assert ImagePlan(vq.to(dtype), 1, GRID).dtype == dtype


@DTYPES
def test_an_image_depends_on_nothing_beside_it(vq, dtype):
    plan = ImagePlan(vq, 4, GRID, dtype=dtype)
    codes = some_codes()
    images = plan(codes)
    assert not images[0].equal(images[1])
    assert plan(codes).equal(images)  # repeated
    assert plan(codes.flip(0)).equal(images.flip(0))  # its place
    for count in (1, 3):
        assert plan(codes[:count]).equal(images[:count])  # their number
    others = torch.cat([codes[:1], some_codes(3, seed=2)])
    assert plan(others)[0].equal(images[0])  # its neighbours


def test_results_are_memory_of_their_own(vq):
    plan = ImagePlan(vq, 4, GRID)
    first = plan(some_codes())
    kept = first.clone()
    plan(some_codes(seed=2))
    assert first.equal(kept)


def test_codes_in_any_strides(vq):
    plan, codes = ImagePlan(vq, 4, GRID), some_codes()
    assert plan(codes.t().contiguous().t()).equal(plan(codes))


def test_autocast_and_inference_mode_do_not_reach_into_a_plan(vq):
    codes = some_codes()
    expected = ImagePlan(vq, 4, GRID)(codes)
    for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        with context:
            plan = ImagePlan(vq, 4, GRID)
            assert plan(codes).equal(expected)
        with torch.no_grad():
            vq.decoder.conv_out.bias.add_(0)  # copied again, outside
        assert plan(codes).equal(expected)


def test_a_graph_is_replayed_in_place_of_launches(vq, monkeypatch):
    graphs = []

    def capture(run, device, what):
        run()
        graphs.append(Graph(run))
        assert (device.type, what.partition(":")[0]) == ("cpu", "ImagePlan")
        return graphs[-1]

    monkeypatch.setattr("lpd_ext.image_plan.captured", capture)
    plan = ImagePlan(vq, 4, GRID)
    with pytest.raises(ValueError, match="codes"):
        plan(some_codes().fill_(-1))
    assert graphs[0].replays == 0  # a lookup outside of the codebook never starts
    images = plan(some_codes())
    assert graphs[0].replays == 1
    monkeypatch.undo()
    assert images.equal(ImagePlan(vq, 4, GRID)(some_codes()))


class Graph:
    def __init__(self, run):
        self.run, self.replays = run, 0

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        self.run()


@DTYPES
def test_no_launch_waits_for_a_value(vq, dtype):
    # Fake tensors have none: what a capture would refuse on a GPU, they refuse here.
    plan = ImagePlan(vq, 4, GRID, dtype=dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        plan._codes = torch.zeros(4, 12, dtype=torch.int64)
        plan._images = torch.zeros(plan._images.shape)
        plan._launch()
        plan._own.quantize.embedding.register_forward_hook(lambda *a: a[2].sum().item())
        with pytest.raises(DataDependentOutputException):
            plan._launch()


def in_place(vq):
    with torch.no_grad():
        vq.decoder.conv_out.bias.add_(1)


def one_code(vq):
    with torch.no_grad():
        vq.quantize.embedding.weight[int(some_codes()[0, 0])].neg_()


def load(vq):
    vq.load_state_dict({name: value * 0.9 for name, value in vq.state_dict().items()})


def replace_layer(vq):
    vq.decoder.conv_in = nn.Conv2d(8, 16, 3, padding=1)


def replace_data(vq):
    vq.post_quant_conv.weight.data = vq.post_quant_conv.weight.data * 2


def through_data(vq):
    # torch counts no version here: the compared values give it away.
    vq.decoder.conv_in.weight.data.mul_(1.5)


def fused_optimizer(vq):
    for parameter in vq.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(vq.parameters(), lr=0.01, fused=True).step()


CHANGES = [in_place, one_code, load, replace_layer, replace_data, through_data, fused_optimizer]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_noticed(vq, change, channels_last):
    if channels_last:
        vq.to(memory_format=torch.channels_last)
    plan, codes = ImagePlan(vq, 4, GRID), some_codes()
    addresses = [parameter.data_ptr() for parameter in plan._own.parameters()]
    before = plan(codes)
    change(vq)
    after = plan(codes)
    assert not after.equal(before)
    assert after.equal(ImagePlan(vq, 4, GRID)(codes))
    # A captured graph reads the same memory as before.
    assert [parameter.data_ptr() for parameter in plan._own.parameters()] == addresses


def test_weights_are_copied_only_when_they_changed(vq, monkeypatch):
    copies = []
    monkeypatch.setattr("lpd_ext.image_plan._copy_weights", lambda *a: copies.append(a))
    plan = ImagePlan(vq, 4, GRID)
    plan(some_codes())
    with torch.no_grad():
        vq.encoder.conv_in.weight.add_(1)  # no part of decoding
    plan(some_codes())
    assert len(copies) == 1
    in_place(vq)
    plan(some_codes())
    plan(some_codes())
    assert len(copies) == 2


def test_an_interrupted_copy_begins_again(vq, monkeypatch):
    # Some of the copies are new then, whatever the tokenizer returns to.
    plan = ImagePlan(vq, 4, GRID)
    expected = plan(some_codes())
    before = vq.decoder.conv_out.bias
    vq.decoder.conv_out.bias = nn.Parameter(before.detach() + 1)

    def interrupt(vq, own):
        own.decoder.conv_out.bias.copy_(vq.decoder.conv_out.bias)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lpd_ext.image_plan._copy_weights", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan(some_codes())
    vq.decoder.conv_out.bias = before
    assert plan(some_codes()).equal(expected)


def test_weights_lie_as_convolutions_like_them(vq):
    own = ImagePlan(vq, 4, GRID)._own
    kernels = [parameter for parameter in own.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert not own.decoder.conv_in.weight.is_contiguous()


@DTYPES
def test_sizes_are_those_of_the_tensors_until_released(vq, dtype):
    plan = ImagePlan(vq, 4, GRID, dtype=dtype)
    assert plan.nbytes == {
        "codes": plan._codes.nbytes,
        "images": plan._images.nbytes,
        "normalised": plan._normalise.out.nbytes,
        "weights": sum(parameter.nbytes for parameter in plan._own.parameters()),
    }
    assert not plan.released
    tensors = (plan._codes, plan._images, plan._normalise.out, *plan._own.parameters())
    memory = [weakref.ref(x) for x in tensors]
    del tensors
    plan.release()
    plan.release()
    assert plan.released
    assert [reference() for reference in memory] == [None] * len(memory)
    assert plan.nbytes == {}
    with pytest.raises(RuntimeError, match=r"^ImagePlan: the plan was released"):
        plan(some_codes())


@pytest.mark.cuda
class TestOnAGpu:
    """The captured decoder."""

    @pytest.fixture
    def on_gpu(self, vq):
        return vq.to("cuda")

    @DTYPES
    def test_replays_are_bitwise_equal_to_launches_one_by_one(self, on_gpu, dtype):
        plan, codes = ImagePlan(on_gpu, 4, GRID, dtype=dtype), some_codes().to("cuda")
        assert plan._graph is not None
        images = plan(codes)
        plan._images.zero_()
        with torch.no_grad():
            plan._launch()
        assert plan._images.equal(images)
        for _ in range(250):
            assert plan(codes).equal(images)

    @DTYPES
    def test_an_image_depends_on_nothing_beside_it(self, on_gpu, dtype):
        plan, codes = ImagePlan(on_gpu, 4, GRID, dtype=dtype), some_codes().to("cuda")
        images = plan(codes)
        assert plan(codes.flip(0)).equal(images.flip(0))
        assert plan(codes[:1]).equal(images[:1])

    @DTYPES
    def test_it_is_as_near_to_the_truth_as_decode(self, on_gpu, dtype):
        codes = some_codes().to("cuda")
        truth = unplanned(on_gpu, codes, torch.float64)
        most, mean = errors(ImagePlan(on_gpu, 4, GRID, dtype=dtype)(codes), truth)
        decode_most, decode_mean = errors(unplanned(on_gpu, codes, dtype), truth)
        assert most <= 2 * decode_most + 1e-5
        assert mean <= 1.5 * decode_mean + 1e-5

    def test_changed_weights_reach_the_graph(self, on_gpu):
        plan, codes = ImagePlan(on_gpu, 4, GRID), some_codes().to("cuda")
        before, graph = plan(codes), plan._graph
        in_place(on_gpu)
        after = plan(codes)
        assert not after.equal(before)
        assert after.equal(ImagePlan(on_gpu, 4, GRID)(codes))
        assert plan._graph is graph

    def test_threads_with_streams_of_their_own_share_a_plan(self, on_gpu):
        plan, codes = ImagePlan(on_gpu, 4, GRID), some_codes().to("cuda")
        requests = [codes, codes.flip(0)]
        expected = [plan(request) for request in requests]
        torch.cuda.synchronize()

        def right(request, images):
            with torch.cuda.stream(torch.cuda.Stream()):
                return all(plan(request).equal(images) for _ in range(200))

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(right, requests, expected))

    def test_no_allocation_in_a_replay(self, on_gpu):
        plan = ImagePlan(on_gpu, 4, GRID)
        plan(some_codes().to("cuda"))
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        plan._graph.replay()
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before

    def test_short_of_memory_a_plan_runs_uncaptured(self, on_gpu, monkeypatch):
        expected = ImagePlan(on_gpu, 4, GRID)(some_codes().to("cuda"))

        def refuse(*args, **kwargs):
            raise torch.OutOfMemoryError

        monkeypatch.setattr(torch.cuda, "graph", refuse)
        with pytest.warns(RuntimeWarning, match=r"ImagePlan: batch_size 4.*MiB: .*not enough"):
            plan = ImagePlan(on_gpu, 4, GRID)
        assert plan(some_codes().to("cuda")).equal(expected)
