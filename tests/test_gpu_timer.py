"""The timer of the GPU benchmarks, on a GPU whose clock the test holds."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import fake_streams
import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import gpu_timer
from gpu_timer import MOST_REPLAYS, CudaGpu, GraphContender, LoopContender

COLD, HOT, FLUSH = 20e-6, 5e-6, 1e-3  # seconds of a call, and of a flush


class FakeGpu:
    """Executes at once; a call on memory that is in L2 is faster."""

    def __init__(self):
        self.now, self.in_l2, self.log = 0.0, set(), []

    def call(self, memory):
        self.now += HOT if memory in self.in_l2 else COLD
        self.in_l2.add(memory)
        self.log.append(memory)

    def capture(self, run):
        run()  # a real one warms up and captures here
        self.log.append("captured")
        return run

    def flush(self):
        self.now += FLUSH
        self.in_l2.clear()
        self.log.append("flush")

    def seconds(self, run):
        begin = self.now
        run()
        return self.now - begin

    def synchronize(self):
        self.log.append("synchronize")


@pytest.fixture
def gpu():
    return FakeGpu()


@pytest.fixture
def cuda_gpu(monkeypatch):
    """The real timer, over functions of torch that write down what they are asked."""
    fake = fake_streams.FakeStreams(monkeypatch)
    own = object.__new__(CudaGpu)
    own._cold = SimpleNamespace(device=fake_streams.DEVICE)
    return own, fake


def test_contenders_are_captured_on_streams_of_their_own(cuda_gpu):
    # On one stream they would share cuBLAS's workspace, which goes with the first of them.
    own, fake = cuda_gpu
    for _ in range(3):
        own.capture(fake.launch)
    streams = [stream for what, stream in fake.log if what == "captured run"]
    assert len(set(streams)) == 3


def test_a_contender_that_cannot_be_captured_says_why(cuda_gpu):
    own, fake = cuda_gpu
    fake.fails = {"captured run": RuntimeError("the cause")}
    with pytest.raises(RuntimeWarning, match="the cause"):
        own.capture(fake.launch)


def contender(gpu, inputs):
    return GraphContender(gpu.call, [(memory,) for memory in inputs], gpu=gpu)


def test_every_call_is_cold_and_no_flush_is_timed(gpu):
    own = contender(gpu, "abc")
    own.calibrate(0)
    for _ in range(3):
        assert own.time_block() == pytest.approx(COLD)
    assert own.seconds == pytest.approx([COLD] * 3)
    assert gpu.log[-4:] == ["flush", "a", "b", "c"]


def test_a_block_is_long_enough(gpu):
    own = contender(gpu, "abc")
    assert own.calibrate(1e-3) >= 1e-3
    assert own.calls == 3 * 32  # 60 us a replay, doubled until a millisecond is full
    assert own.seconds == []
    before = gpu.log.count("flush")
    assert own.time_block() == pytest.approx(COLD)
    assert gpu.log.count("flush") - before == 32  # before each replay, not once a block


def test_a_call_that_takes_no_time_ends(gpu):
    own = GraphContender(lambda: None, gpu=gpu)
    own.calibrate(1.0)
    assert own.calls == MOST_REPLAYS


def test_the_graph_is_captured_once(gpu):
    own = contender(gpu, "ab")
    own.calibrate(1e-3)
    own.time_block()
    assert gpu.log.count("captured") == 1


def test_the_host_waits_for_the_gpu(gpu):
    own = contender(gpu, "ab")
    own.next()
    own.next()
    assert gpu.log == ["a", "synchronize", "b", "synchronize"]


def test_a_loop_is_timed_until_the_gpu_is_done(gpu):
    loop = LoopContender(gpu.call, [("a",), ("b",)], gpu=gpu, timer=lambda: gpu.now)
    assert loop.time_block() == pytest.approx(COLD)
    loop.next()
    assert gpu.log == ["a", "synchronize", "b", "synchronize"]
    assert not loop.on_gpu  # the host's clock


def test_cupys_timer_stands_beside(gpu, monkeypatch):
    calls = []

    def benchmark(call, *, n_repeat, n_warmup, name):
        for _ in range(n_warmup):
            call()
        gpu.log.clear()
        for _ in range(n_repeat):
            call()
        calls.append(list(gpu.log))
        return SimpleNamespace(gpu_times=np.array([[3e-6, 1e-6, 2e-6]]))

    profiler = ModuleType("cupyx.profiler")
    profiler.benchmark = benchmark
    monkeypatch.setitem(sys.modules, "cupyx", ModuleType("cupyx"))
    monkeypatch.setitem(sys.modules, "cupyx.profiler", profiler)
    assert contender(gpu, "ab").cupy_us(4) == {"cupy_us": pytest.approx(2.0)}
    assert calls == [["b", "a", "b", "a"]]  # in turn, and without a wait of ours


def test_without_cupy_nothing_is_said(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupyx", None)
    assert contender(gpu, "ab").cupy_us(4) == {}


@pytest.mark.cuda
class TestCuda:
    def test_twice_the_work_takes_longer(self):
        def double(x):
            return x * 2

        def four_times(x):
            return double(double(x))

        inputs = [(torch.ones(2**22, device="cuda"),) for _ in range(4)]
        times = []
        for call in (double, four_times):
            own = GraphContender(call, inputs)
            own.calibrate(1e-3)
            times.append(min(own.time_block() for _ in range(5)))
        assert 0 < times[0] < times[1]

    def test_a_replay_does_the_work(self):
        x = torch.zeros(8, device="cuda")
        replay = gpu_timer.current_gpu().capture(lambda: x.add_(1))
        before = x.clone()
        assert gpu_timer.current_gpu().seconds(replay) > 0
        assert torch.equal(x, before + 1)
