"""Captures: what they do on which stream, and that no error of one is the end of a plan."""

import gc
import threading
import warnings

import pytest
import torch
from fake_streams import DEVICE, POOL, FakeStreams

from lpd_ext.cuda_graph import captured


@pytest.fixture
def gpu(monkeypatch):
    return FakeStreams(monkeypatch)


def places(gpu, what):
    """Streams on which something was done."""
    return [stream for done, stream in gpu.log if done == what]


def test_no_graph_where_the_device_has_none():
    runs = []
    assert captured(lambda: runs.append(1), torch.device("cpu"), "plan") is None
    assert not runs


def test_a_capture_and_its_warm_up_have_a_stream_each(gpu):
    # On one stream cuBLAS's workspace would be from before the capture, and so not the graph's.
    assert captured(gpu.launch, DEVICE, "plan") is not None
    (warm_up,), (stream,) = places(gpu, "run"), places(gpu, "captured run")
    assert len({0, warm_up, stream}) == 3
    assert places(gpu, "begin") == places(gpu, "end") == [stream]
    assert gpu.modes == ["thread_local"]
    steps = [
        ("waits for 0", warm_up),
        ("run", warm_up),
        (f"waits for {warm_up}", stream),
        ("captured run", stream),
        (f"waits for {stream}", 0),
    ]
    assert [step for step in gpu.log if step in steps] == steps
    assert gpu.current.cuda_stream == 0


ERRORS = {
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling create\nat x"),
    "driver": torch.AcceleratorError("CUDA error: operation failed\nmore"),
}
CAUSES = {
    "memory": "not enough device memory",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling create",
    "driver": "CUDA error: operation failed",
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("point", ["run", "begin", "captured run", "end"])
def test_an_error_is_one_warning_and_leaves_the_stream(gpu, point, error):
    gpu.fails = {point: ERRORS[error]}
    with pytest.warns(RuntimeWarning) as caught:
        assert captured(gpu.launch, DEVICE, "DecodePlan: sizes") is None
    assert [str(w.message) for w in caught] == [
        f"DecodePlan: sizes: no CUDA graph ({CAUSES[error]}); launches run one by one"
    ]
    assert gpu.current.cuda_stream == 0
    assert gc.isenabled()
    assert gpu.log[-1] == ("synchronize", 0)
    gpu.fails, gpu.capturing = {}, 0
    assert captured(gpu.launch, DEVICE, "the next one") is not None


def test_the_first_cause_is_named(gpu):
    # The end of a capture that something has broken fails, too, and says less.
    gpu.fails = {"captured run": RuntimeError("the cause"), "end": RuntimeError("invalidated")}
    with pytest.warns(RuntimeWarning, match=r"no CUDA graph \(the cause\)"):
        captured(gpu.launch, DEVICE, "plan")
    assert gpu.current.cuda_stream == 0


def test_what_the_caller_handles_is_no_cause(gpu):
    gpu.fails = {"begin": RuntimeError("the cause")}
    try:
        {}["of before"]
    except KeyError:
        with pytest.warns(RuntimeWarning, match=r"no CUDA graph \(the cause\)"):
            captured(gpu.launch, DEVICE, "plan")


def test_a_device_that_runs_nothing_any_more_is_no_warning(gpu):
    gpu.fails = {"run": RuntimeError("illegal address"), "synchronize": RuntimeError("illegal")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="illegal"):
            captured(gpu.launch, DEVICE, "plan")
    assert gpu.current.cuda_stream == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a mistake")], ids=repr)
def test_other_errors_pass_and_leave_the_stream(gpu, error):
    gpu.fails = {"captured run": error}
    with pytest.raises(type(error)):
        captured(gpu.launch, DEVICE, "plan")
    assert gpu.current.cuda_stream == 0
    assert gc.isenabled()
    gpu.fails = {}
    assert captured(gpu.launch, DEVICE, "the next one") is not None


def test_captures_of_several_threads_wait_for_each_other(gpu):
    inside, at_once = [], []

    def launch():
        inside.append(1)
        at_once.append(len(inside))
        threading.Event().wait(0.005)
        inside.pop()

    threads = [threading.Thread(target=captured, args=(launch, DEVICE, "plan")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == [1] * 8


def test_nothing_is_collected_in_a_capture(gpu):
    # A plan in a cycle would wait for the GPU when it is deleted.
    states = []
    captured(lambda: states.append(gc.isenabled()), DEVICE, "plan")
    assert states == [False, False]
    assert gc.isenabled()
    gc.disable()
    try:
        captured(gpu.launch, DEVICE, "plan")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_stream_with_a_workspace_is_not_captured_on(gpu):
    # Neither that of the warm-ups, nor one that was captured on before: torch has but so many.
    captures = 2 * POOL
    for _ in range(captures):
        captured(gpu.launch, DEVICE, "plan")
    with_workspace, clears = set(), 0
    for what, stream in gpu.log:
        if what == "_cuda_clearCublasWorkspaces":
            with_workspace.clear()
            clears += 1
        elif what == "run":
            with_workspace.add(stream)
        elif what == "captured run":
            assert stream not in with_workspace
            with_workspace.add(stream)
    assert len(set(places(gpu, "run"))) == 1
    assert len(set(places(gpu, "captured run"))) == POOL - 1
    assert clears == 2  # no more than needed: others feel it
