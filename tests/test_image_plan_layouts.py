"""A planned decode of the tokenizer is channels-last throughout, and its norms are our own."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_image_plan import CONFIG, DTYPES, GRID, some_codes, unplanned
from test_plan_bfloat16 import errors
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lpd_ext.image_plan
from lpd_ext import ImagePlan, VQModel
from lpd_ext.models.vq import norm_silu

COPIES = ("clone", "copy_", "_to_copy", "contiguous")
CONVOLUTION = "aten.convolution.default"


@pytest.fixture
def vq():
    torch.manual_seed(0)
    return VQModel(CONFIG).eval()


class Recorder(TorchDispatchMode):
    """What runs, and which of it is not channels-last or lays a tensor out anew."""

    def __init__(self):
        super().__init__()
        self.operators, self.other_layouts, self.new_layouts = Counter(), [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = [x.stride() for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
        result = function(*args, **(kwargs or {}))
        name, tensors = str(function), tree_leaves(((kwargs or {}), result))
        self.operators[name] += 1
        if name.startswith("prim."):
            return result
        if name.split(".")[1] in COPIES and len({*before, result.stride()}) > 1:
            self.new_layouts.append(name)
        else:
            read = args[:1] if name == CONVOLUTION else args  # not its kernel
            images = [x for x in (*tree_leaves(read), *tensors) if isinstance(x, torch.Tensor)]
            wrong = [x.stride() for x in images if x.ndim == 4 and not is_channels_last(x)]
            self.other_layouts += [(name, *wrong)] if wrong else []
        return result

    def norms(self):
        ours = sum(n for name, n in self.operators.items() if "group_norm_silu" in name)
        return ours, self.operators["aten.native_group_norm.default"]


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


def launched(plan):
    """The record of one launch."""
    with Recorder() as recorder, torch.no_grad():
        plan._launch()
    return recorder


def num_norms(plan):
    return sum(isinstance(layer, nn.GroupNorm) for layer in plan._plain.values())


def assert_channels_last(recorder, norms):
    assert recorder.norms() == (norms, 0)
    assert recorder.operators["aten.silu.default"] == 0
    assert recorder.operators[CONVOLUTION] > norms
    assert recorder.other_layouts == []
    assert recorder.new_layouts == ["aten.copy_.default"]  # the images, as they are returned


@DTYPES
def test_nothing_is_laid_out_anew_on_the_cpu(vq, dtype):
    plan = ImagePlan(vq, 4, GRID, dtype=dtype)
    assert_channels_last(launched(plan), num_norms(plan))


def test_another_layout_is_recorded(vq):
    # Or the tests around it could not fail. It is what a convolution without channels-last gives.
    plan = ImagePlan(vq, 4, GRID)
    ours = plan._normalise
    plan._normalise = lambda norm, x, **options: ours(norm, x.contiguous(), **options)
    recorder = launched(plan)
    assert recorder.norms() == (num_norms(plan), 0)
    assert len(recorder.new_layouts) > num_norms(plan)
    plan._normalise = lambda norm, x, **options: norm_silu(norm, x, **options).contiguous()
    recorder = launched(plan)
    assert recorder.norms() == (0, num_norms(plan))
    assert CONVOLUTION in {name for name, *_ in recorder.other_layouts}


@pytest.mark.skipif(not torch.backends.cudnn.is_available(), reason="a torch without cuDNN")
def test_nothing_is_laid_out_anew_by_cudnn(vq):
    # Fake tensors: layouts as cuDNN chooses them, without a GPU. Of bfloat16 it asks the GPU.
    plan = ImagePlan(vq, 4, GRID)
    with torch.device("meta"):
        plan._own = VQModel(CONFIG).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        plan._device, plan._images = torch.device("cuda:0"), torch.zeros(plan._images.shape)
        plan._codes = torch.zeros(4, 12, dtype=torch.int64)
        plan._normalise.out = torch.empty(plan._normalise.out.shape)
        for layer in plan._own.modules():
            for name, weight in layer._parameters.items():
                if weight is not None:
                    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
                    weight = torch.empty(weight.shape, memory_format=layout)
                    layer._parameters[name] = nn.Parameter(weight, requires_grad=False)
        assert_channels_last(launched(plan), num_norms(plan))


@pytest.mark.parametrize("mult", [(1, 2), (2, 1), (1, 1, 4), (2,)], ids=str)
def test_what_is_normalised_has_room_and_no_more(mult):
    plan = ImagePlan(VQModel(replace(CONFIG, channel_mult=mult)).eval(), 2, GRID)
    ours, sizes = plan._normalise, []

    def normalise(norm, x, *, silu, reuse):
        sizes.append(0 if reuse else x.numel())
        result = ours(norm, x, silu=silu, reuse=reuse)
        assert result.data_ptr() == (x if reuse else ours.out).data_ptr()
        return result

    plan._normalise = normalise
    with torch.no_grad():
        plan._launch()
    assert max(sizes) == ours.out.numel()


def test_kernels_that_are_not_trusted_are_not_used(vq, monkeypatch):
    asked = []
    monkeypatch.setattr(lpd_ext.image_plan, "trusted", lambda *what: asked.append(what))
    plan = ImagePlan(vq, 4, GRID)
    assert asked == [("group_norm_silu", torch.device("cpu"))]
    assert plan.nbytes["normalised"] == 0
    assert launched(plan).norms() == (0, num_norms(plan))
    truth = unplanned(vq, some_codes(), torch.float64)
    assert errors(plan(some_codes()), truth)[0] < 1e-5 * truth.abs().max()


@DTYPES
def test_images_are_no_less_exact_than_with_the_functions_of_torch(dtype):
    # Which round between norm and SiLU. Over several tokenizers: of one it may be chance.
    means = {True: 0.0, False: 0.0}
    for seed in range(4):
        torch.manual_seed(seed)
        vq = VQModel(CONFIG).eval()
        truth = unplanned(vq, some_codes(), torch.float64)
        for ours in means:
            plan = ImagePlan(vq, 4, GRID, dtype=dtype)
            plan._normalise = plan._normalise if ours else norm_silu
            means[ours] += float(errors(plan(some_codes()), truth)[1])
    assert means[True] <= (1.0 if dtype == torch.bfloat16 else 1.1) * means[False]
