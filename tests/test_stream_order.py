"""Calls on several streams: what one queues waits for what the call before queued elsewhere."""

import gc
import sys
import weakref
from contextlib import contextmanager

import pytest
import torch
from fake_streams import DEVICE, FakeStreams, Stream
from test_decode import SIZES
from test_image_plan import GRID, some_codes
from test_plan import call
from tiny_pipeline import tiny_pipeline

from lpd_ext import DecodePlan, ImagePlan, packed_model, plan, plan_buffers
from lpd_ext.stream_order import StreamOrder

image_plan = sys.modules["lpd_ext.image_plan"]


@pytest.fixture
def gpu(monkeypatch):
    return FakeStreams(monkeypatch)


class Owner:
    """Holds memory."""


def test_a_turn_waits_for_the_one_before_on_another_stream(gpu):
    order = StreamOrder(DEVICE)
    for number in (1, 2):
        with torch.cuda.stream(Stream(gpu, number)), order.turn():
            gpu.launch()
    assert gpu.log == [
        ("waits for the event of None", 1),  # not recorded yet: no wait
        ("run", 1),
        ("records", 1),
        ("waits for the event of 1", 2),
        ("run", 2),
        ("records", 2),
    ]


def test_work_queued_before_an_error_counts(gpu):
    order = StreamOrder(DEVICE)
    gpu.fails = {"run": ValueError("midway")}
    with pytest.raises(ValueError, match="midway"), order.turn():
        gpu.launch()
    assert gpu.log[-1] == ("records", 0)


def test_the_host_waits_before_memory_is_given_back(gpu):
    order, owner = StreamOrder(DEVICE), Owner()
    order.wait_before_deleting(owner)
    with order.turn():
        gpu.launch()
    order.wait()
    waits = ("host waits for the event of 0", None)
    assert gpu.log.count(waits) == 1
    owner.itself = owner  # a cycle
    del owner
    gc.collect()
    assert gpu.log.count(waits) == 2


def test_nothing_is_waited_for_at_exit(gpu, monkeypatch):
    # The driver may be gone then.
    made = []

    class Finalizer(weakref.finalize):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(weakref, "finalize", Finalizer)
    owner = Owner()
    StreamOrder(DEVICE).wait_before_deleting(owner)
    assert [finalizer.atexit for finalizer in made] == [False]


def test_a_cpu_has_no_streams(gpu):
    order = StreamOrder(torch.device("cpu"))
    order.wait_before_deleting(Owner())
    with order.turn():
        pass
    order.wait()
    assert gpu.log == []


class Spy(StreamOrder):
    """Knows whether a turn is on, and what happened outside of one."""

    def __init__(self, device):
        super().__init__(device)
        self.on, self.log, self.owners = 0, [], []
        Spy.last = self

    @contextmanager
    def turn(self):
        self.on += 1
        yield
        self.on -= 1

    def wait_before_deleting(self, owner):
        self.owners.append(owner)

    def wait(self):
        self.log.append("waits")

    def watch(self, monkeypatch, place, name):
        """Write down each call of a function, and whether it is a turn's."""
        function = getattr(place, name)

        def watched(*args, **kwargs):
            self.log.append((name, self.on > 0))
            return function(*args, **kwargs)

        monkeypatch.setattr(place, name, watched)


def test_a_decode_plan_uses_its_memory_in_turns(monkeypatch):
    monkeypatch.setattr(packed_model, "StreamOrder", Spy)
    made = DecodePlan(tiny_pipeline().model, 4, SIZES)
    spy = Spy.last
    assert spy.owners == [made.packed, made]
    spy.watch(monkeypatch, plan.PackedModel, "refresh")
    for name in ("take", "take_class_rows"):
        spy.watch(monkeypatch, plan_buffers.PlanBuffers, name)
    monkeypatch.setattr(made, "_graph", Replayed(spy, made._launch_all))
    made(**call())
    names = {name for name, _ in spy.log}
    assert names == {"refresh", "take", "take_class_rows", "replay"}
    assert all(in_turn for _, in_turn in spy.log)
    spy.log.clear()
    made.release()
    assert spy.log == ["waits"]


def test_an_image_plan_uses_its_memory_in_turns(monkeypatch):
    monkeypatch.setattr(image_plan, "StreamOrder", Spy)
    made = ImagePlan(tiny_pipeline().vq, 4, GRID)
    spy = Spy.last
    assert spy.owners == [made]
    spy.watch(monkeypatch, made, "_refresh")
    monkeypatch.setattr(made, "_graph", Replayed(spy, made._launch))
    made(some_codes())
    assert spy.log == [("_refresh", True), ("replay", True)]
    spy.log.clear()
    made.release()
    assert spy.log == ["waits"]


@pytest.mark.parametrize("what", ["weights", "buffers", "capture"])
def test_planning_is_a_turn(monkeypatch, what):
    # A call on another stream may follow at once.
    spies = []

    def spied(device):
        spies.append(Spy(device))
        return spies[-1]

    monkeypatch.setattr(packed_model, "StreamOrder", spied)
    place, name = {
        "weights": (packed_model, "pack_linear"),
        "buffers": (plan_buffers.PlanBuffers, "take_any"),
        "capture": (plan, "captured"),
    }[what]
    function, in_turn = getattr(place, name), []

    def watched(*args, **kwargs):
        in_turn.append(spies[-1].on > 0)
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, watched)
    DecodePlan(tiny_pipeline().model, 4, SIZES)
    assert in_turn
    assert all(in_turn)


class Replayed:
    """A graph that launches."""

    def __init__(self, spy, launches):
        self._spy, self._launches = spy, launches

    def replay(self):
        self._spy.log.append(("replay", self._spy.on > 0))
        self._launches()
