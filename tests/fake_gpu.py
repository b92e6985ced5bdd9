"""A GPU that computes nothing: who waits for it, what is captured, where devices are mixed.

Tensors on it are torch's fake ones, streams, events and graphs those below. What asks for a value
gets a harmless one and is written down. Tensors on the CPU are real. Needs a build of torch for
CUDA, but no GPU.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lpd_ext
from lpd_ext import cuda_graph, verdicts
from lpd_ext.self_check import CHECKS, VERIFIED

DEVICE = torch.device("cuda:0")
PACKAGE = Path(lpd_ext.__file__).parent
COPIES = ("aten::_to_copy", "aten::copy_")
VALUES = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero")
# Of torch.cuda, what torch itself asks while tensors are fake.
ASKED_BY_TORCH = {
    "is_available",
    "is_initialized",
    "is_current_stream_capturing",
    "manual_seed_all",
}


class FakeGpu:
    """What it was asked for.

    waits: how often the host waited outside of captures, by "module.function: operator"
    faults: what must not happen, in words: waits, CPU tensors and events in a capture, and
        everywhere mixtures of devices
    allocations: tensors that operators of torch made in captures, by place and operator

    The number that it answers, by default 0, can be set for the function that asks, in `numbers`.
    """

    def __init__(self):
        self.waits = Counter()
        self.faults = []
        self.allocations = Counter()
        self.numbers = {}
        self.captures = self.replays = 0
        self.capturing = False
        self.stream = self.default_stream = FakeStream(self)

    def waits_so_far(self):
        """Return the waits since it was asked last."""
        waits, self.waits = dict(self.waits), Counter()
        return waits

    def wait(self, what):
        if self.capturing:
            self.faults.append(f"{place()}: {what} in a capture")
        else:
            self.waits[f"{place()}: {what}"] += 1

    def order(self, what):
        """Note what a capture of one stream may not do."""
        if self.capturing:
            self.faults.append(f"{place()}: {what} in a capture")

    @contextmanager
    def on_stream(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def capture(self, graph, *, stream, capture_error_mode):
        self.order("another capture")
        assert capture_error_mode == "thread_local"
        assert stream is not self.stream  # it was warmed up on that one
        self.capturing = True
        try:
            with self.on_stream(stream):
                yield
        finally:
            self.capturing = False
        self.captures += 1

    def make_graph(self):
        return FakeGraph(self)

    def make_stream(self, device):
        assert device == DEVICE
        return FakeStream(self)

    def make_event(self):
        return FakeEvent(self)

    def current_stream(self, device):
        assert device == DEVICE
        return self.stream

    def synchronize(self, device):
        self.wait("synchronize")


class FakeStream:
    def __init__(self, gpu):
        self.gpu, self.cuda_stream = gpu, id(self)

    def wait_stream(self, stream):
        self.gpu.order("wait_stream")

    def wait_event(self, event):
        self.gpu.order("wait_event")


class FakeEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self, stream):
        assert stream is self.gpu.stream
        self.gpu.order("record")

    def synchronize(self):
        self.gpu.wait("synchronize")


class FakeGraph:
    def __init__(self, gpu):
        self.gpu = gpu

    def replay(self):
        self.gpu.order("replay")
        self.gpu.replays += 1


class Watch(TorchDispatchMode):
    """Sees every operator, answers those that ask for values."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        op = func._schema.name
        tensors = tensors_of((args, kwargs))
        on_gpu = any(x.is_cuda for x in tensors)
        if op in VALUES and on_gpu:
            return self.answer(op, *tensors)
        if on_gpu or torch.device(kwargs.get("device") or "cpu").type == "cuda":
            result = func(*args, **kwargs)
        else:
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
        kinds = {x.device.type for x in tensors}
        results = tensors_of(result)
        if op in COPIES and (kinds | {x.device.type for x in results}) == {"cpu", "cuda"}:
            self.gpu.wait(op.removeprefix("aten::"))
            if not results[0].is_cuda:
                with unset_fake_temporarily():
                    result = torch.zeros(result.shape, dtype=result.dtype)
        elif len(kinds) > 1:
            self.gpu.faults.append(f"{place()}: {op} mixes devices")
        if self.gpu.capturing:
            if any(not x.is_cuda for x in tensors + results):
                self.gpu.faults.append(f"{place()}: {op} with a CPU tensor in a capture")
            if results and not func._schema.is_mutable and not func.is_view:
                self.gpu.allocations[f"{place()}: {op}"] += 1
        if op == "aten::any":  # of what argument checks do not want
            result.answer = False
        return result

    def answer(self, op, tensor, *_):
        """Return what an argument check wants to hear."""
        self.gpu.wait(op.removeprefix("aten::"))
        if op == "aten::nonzero":
            return torch.empty(0, tensor.ndim, dtype=torch.int64, device=tensor.device)
        if op == "aten::equal":
            return True
        if tensor.dtype == torch.bool:
            return getattr(tensor, "answer", True)
        return self.gpu.numbers.get(place(), 0)


def tensors_of(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def place():
    """The innermost function of the package that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if path.is_relative_to(PACKAGE) and not name.startswith("<"):
            return f"{path.stem}.{name}"
        frame = frame.f_back
    return "the test"


def unknown(name):
    def refuse(*args, **kwargs):
        raise AssertionError(f"FakeGpu knows no torch.cuda.{name}")

    return refuse


@contextmanager
def fake_gpu(monkeypatch):
    """Have everything on `DEVICE` run on a `FakeGpu`, whose kernels are trusted."""
    gpu = FakeGpu()
    stand_ins = {
        "CUDAGraph": gpu.make_graph,
        "Event": gpu.make_event,
        "Stream": gpu.make_stream,
        "current_stream": gpu.current_stream,
        "graph": gpu.capture,
        "stream": gpu.on_stream,
        "synchronize": gpu.synchronize,
    }
    trusted = verdicts.RememberedVerdict(VERIFIED, "", checked="", driver="")
    with monkeypatch.context() as patch:
        for name in torch.cuda.__all__:
            value = getattr(torch.cuda, name)
            if name in stand_ins:
                patch.setattr(torch.cuda, name, stand_ins[name])
            elif callable(value) and not isinstance(value, type) and name not in ASKED_BY_TORCH:
                patch.setattr(torch.cuda, name, unknown(name))
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
        patch.setattr(FakeTensor, "data_ptr", lambda x: x.untyped_storage()._cdata)
        patch.setitem(verdicts._in_memory, DEVICE, dict.fromkeys(CHECKS, trusted))
        cuda_graph._stream_to_warm_up_on.cache_clear()
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), Watch(gpu):
                yield gpu
        finally:
            cuda_graph._stream_to_warm_up_on.cache_clear()
    assert gpu.stream is gpu.default_stream
