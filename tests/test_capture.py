"""What plans ask of a GPU: nothing in a capture that waits or is not there, few waits outside."""

import sys
from pathlib import Path

import pytest
import torch
from fake_gpu import DEVICE, fake_gpu
from tiny_pipeline import GRID, SEQ_LEN, tiny_pipeline

import lpd_ext
from lpd_ext import DecodePlan, ImagePlan, decode
from lpd_ext.cuda_graph import captured
from lpd_ext.ops.launch import device_types

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from published_model import block_causal, published_model

if "cuda" not in device_types("group_attention"):
    pytest.skip("this build has no CUDA kernels; make cuda-build has", allow_module_level=True)

SIZES = [1, 5, 10]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

# Every wait of the host for the GPU, by the function that waits and the operator it waits for. Each
# costs a call the time of what is queued: one more needs a reason.
CAPTURED = {"plan._captured: equal": 1}  # is a replay what the launches are?
WEIGHTS = {"watched_weights.holds: equal": 1}
REQUEST = {
    "checks.check_range: _local_scalar_dense": 2,  # of the labels
    "checks.check_permutations: nonzero": 1,
    "decode_request._checked_uniform: _local_scalar_dense": 1,
}
INVALID = {"decode.raise_for_invalid: nonzero": 1}
PER_IMAGE = {"decode_request._check_per_image: _local_scalar_dense": 4}
FORCED = {"checks.check_range: _local_scalar_dense": 4}
KNOWN = {
    "checks.check_range: _local_scalar_dense": 4,
    "decode_request._count_known: _local_scalar_dense": 3,
}
CODES = {"checks.check_range: _local_scalar_dense": 2}
ACCELERATE = {
    "accelerate._check_mask: _to_copy": 1,  # the mask that the call should have
    "accelerate._check_mask: _local_scalar_dense": 1,
    "accelerate._integers: _to_copy": 1,  # orders, drawn on the CPU
}
PIPELINE = {  # a batch
    "pipeline._decode: _to_copy": 3,  # seeds, labels and numbers of steps
    "vq.decode: _local_scalar_dense": 2,
    "render.to_images: _to_copy": 1,
    "pipeline.__call__: _to_copy": 2,  # tokens and steps
}


@pytest.fixture
def gpu(monkeypatch):
    with fake_gpu(monkeypatch) as gpu:
        yield gpu
        assert gpu.faults == []


@pytest.fixture
def pipeline(gpu):
    with DEVICE:
        return tiny_pipeline(channels=3)


def full(value, *shape, dtype=torch.int64):
    return torch.full(shape, value, dtype=dtype, device=DEVICE)


def call(**changes):
    return {
        "class_labels": full(0, 3),
        "order": full(0, 3, SEQ_LEN),
        "uniform": full(0, 3, SEQ_LEN, dtype=torch.float64),
        "cfg_scale": 3.0,
    } | changes


@pytest.mark.parametrize(
    ("dtype", "guided"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.float32, False)],
)
def test_a_decode_is_one_graph_and_allocates_nothing(gpu, pipeline, dtype, guided):
    plan = DecodePlan(pipeline.model, 4, SIZES, dtype=dtype, guided=guided)
    assert gpu.waits_so_far() == CAPTURED
    assert gpu.allocations == {}
    assert (gpu.captures, gpu.replays) == (1, 1)
    for _ in range(2):
        plan(**call(cfg_scale=3.0 if guided else 1))
        assert gpu.waits_so_far() == WEIGHTS | REQUEST | INVALID
    assert (gpu.captures, gpu.replays) == (1, 3)


def test_numbers_of_each_image_are_looked_at(gpu, pipeline):
    plan = DecodePlan(pipeline.model, 4, SIZES)
    gpu.waits_so_far()
    values = {"cfg_scale": 3.0, "temperature": 1.0, "top_p": 0.5}
    numbers = {name: full(value, 3, dtype=torch.float32) for name, value in values.items()}
    plan(**call(**numbers, top_k=full(5, 3)))
    assert gpu.waits_so_far() == WEIGHTS | REQUEST | INVALID | PER_IMAGE


@DTYPES
def test_a_call_that_looks_inside_waits_no_more(gpu, pipeline, dtype):
    plan = DecodePlan(pipeline.model, 4, SIZES, dtype=dtype)
    gpu.waits_so_far()
    plan(**call(), return_logits=True, progress=lambda done, steps, tokens: None)
    assert gpu.waits_so_far() == WEIGHTS | REQUEST | INVALID
    plan(**call(), forced_tokens=full(0, 3, SEQ_LEN))
    assert gpu.waits_so_far() == WEIGHTS | REQUEST | INVALID | FORCED
    assert gpu.replays == 1


def test_known_tokens_are_counted(gpu, pipeline):
    plan = DecodePlan(pipeline.model, 4, SIZES[1:])
    gpu.waits_so_far()
    gpu.numbers["decode_request._count_known"] = 1
    uniform = full(0, 3, SEQ_LEN - 1, dtype=torch.float64)
    plan(**call(uniform=uniform), known_tokens=full(-1, 3, SEQ_LEN))
    assert gpu.waits_so_far() == WEIGHTS | REQUEST | INVALID | KNOWN


def test_decode(gpu, pipeline):
    decode(pipeline.model, group_sizes=SIZES, **call())
    assert gpu.waits_so_far() == REQUEST | INVALID
    assert gpu.captures == 0


@DTYPES
def test_an_image_is_one_graph(gpu, pipeline, dtype):
    plan = ImagePlan(pipeline.vq, 4, GRID, dtype=dtype)
    assert gpu.waits_so_far() == {}
    plan(full(0, 3, SEQ_LEN))
    assert gpu.waits_so_far() == WEIGHTS | CODES
    assert (gpu.captures, gpu.replays) == (1, 1)


def test_accelerate(gpu):
    with DEVICE:
        model = published_model()
    mask = block_causal(SIZES).to(DEVICE)
    accelerated = lpd_ext.accelerate(model)
    arguments = {"labels": full(0, 3), "group_sizes": SIZES, "attn_mask": mask}
    gpu.waits_so_far()
    model.sample_tokens(3, 3.0, **arguments)
    assert gpu.waits_so_far() == CAPTURED | ACCELERATE | WEIGHTS | REQUEST | INVALID
    model.sample_tokens(3, 3.0, **arguments, orders=full(0, 3, SEQ_LEN))
    assert gpu.waits_so_far() == WEIGHTS | REQUEST | INVALID  # a mask seen before is not read
    assert (gpu.captures, gpu.replays) == (1, 3)
    assert accelerated.nbytes > 0


def test_a_pipeline(gpu, pipeline):
    pipeline([0, 1, 2])
    assert gpu.waits_so_far() == CAPTURED | PIPELINE | WEIGHTS | REQUEST | INVALID
    pipeline([0, 1, 2])
    assert gpu.waits_so_far() == PIPELINE | WEIGHTS | REQUEST | INVALID
    assert (gpu.captures, gpu.replays) == (1, 3)


# What is planted -> the fault found.
PLANTED = {
    "a value": (lambda x: bool((x < 0).any()), "_local_scalar_dense in a capture"),
    "values": (lambda x: x.tolist(), "_local_scalar_dense in a capture"),
    "a comparison": (lambda x: x.equal(x), "equal in a capture"),
    "a copy to the CPU": (lambda x: x.cpu(), "_to_copy in a capture"),
    "a copy from the CPU": (lambda x: x.copy_(torch.ones(3)), "copy_ in a capture"),
    "a number on the CPU": (lambda x: x.add_(torch.ones(())), "aten::add_ mixes devices"),
    "a tensor on the CPU": (lambda x: torch.ones(3), "aten::ones with a CPU tensor"),
    "a wait": (lambda x: torch.cuda.synchronize(DEVICE), "synchronize in a capture"),
    "an event": (
        lambda x: torch.cuda.Event().record(torch.cuda.current_stream(DEVICE)),
        "record in a capture",
    ),
    "another stream": (
        lambda x: torch.cuda.current_stream(DEVICE).wait_stream(torch.cuda.Stream(DEVICE)),
        "wait_stream in a capture",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_in_a_capture_is_found(monkeypatch, planted):
    run, fault = PLANTED[planted]
    with fake_gpu(monkeypatch) as gpu:
        x = torch.zeros(3, device=DEVICE)
        assert captured(lambda: run(x), DEVICE, "planted") is not None
    assert any(fault in found for found in gpu.faults), gpu.faults


def test_an_allocation_in_a_capture_is_found(gpu):
    captured(lambda: torch.empty(3, device=DEVICE), DEVICE, "planted")
    assert gpu.allocations == {"cuda_graph._capture: aten::empty": 1}


def test_a_call_that_the_stand_in_does_not_know_is_an_error(gpu):
    with pytest.raises(AssertionError, match=r"knows no torch\.cuda\.memory_allocated"):
        torch.cuda.memory_allocated()
