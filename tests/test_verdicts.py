"""Self-checks of a device: run once, remembered, and never in the way. The device is a stand-in."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lpd_ext import self_check, verdicts
from lpd_ext.kernels import OPS, REFERENCE, kernels_for
from lpd_ext.self_check import CHECKS, FAILED, NOT_BUILT, VERIFIED, Verdict

DEVICE = torch.device("meta")  # exists everywhere, and nothing can run there by mistake
FACTS = {"device": "Some GPU", "uuid": "1", "driver": "580.65.06", "torch": "2.13", "build": "a"}


class StandIn:
    """A device whose self-checks find what a test wants, and are counted."""

    def __init__(self, monkeypatch):
        self.facts = dict(FACTS)
        self.found = {}  # op -> verdict, "verified" where there is none
        self.checked = []
        self.answers = True
        self.monkeypatch = monkeypatch
        monkeypatch.setitem(verdicts._FACTS, DEVICE.type, lambda device: dict(self.facts))
        monkeypatch.setattr(verdicts, "self_check", self.check)
        monkeypatch.setattr(verdicts, "_touch", self.touch)
        self.start_again()

    def check(self, op, device):
        assert device == DEVICE
        self.checked.append(op)
        return self.found.get(op, Verdict(VERIFIED, "agrees"))

    def touch(self, device):
        if not self.answers:
            raise RuntimeError("an illegal memory access was encountered")

    def start_again(self):
        """Forget what a new process would not know."""
        self.checked = []
        self.monkeypatch.setattr(verdicts, "_in_memory", {})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lpd_ext"


@pytest.fixture
def gpu(monkeypatch, cache):
    return StandIn(monkeypatch)


def states(found):
    return {op: verdict.state for op, verdict in found.items()}


ALL_VERIFIED = dict.fromkeys(CHECKS, VERIFIED)


class TestMemory:
    def test_each_op_is_checked_once(self, gpu):
        assert states(verdicts.verdicts(DEVICE)) == ALL_VERIFIED
        assert states(verdicts.verdicts(DEVICE)) == ALL_VERIFIED
        assert gpu.checked == list(CHECKS)

    def test_a_verdict_says_when_and_with_which_driver(self, gpu):
        verdict = verdicts.verdicts(DEVICE)["group_attention"]
        assert verdict.driver == FACTS["driver"]
        assert verdict.checked.endswith("+00:00")

    def test_the_cpu_is_not_checked(self, gpu):
        # Its kernels are what the tests run.
        assert kernels_for(torch.device("cpu")) == OPS
        assert gpu.checked == []


class TestDisk:
    def test_a_new_process_remembers(self, gpu):
        first = verdicts.verdicts(DEVICE)
        gpu.start_again()
        assert verdicts.verdicts(DEVICE) == first
        assert gpu.checked == []

    @pytest.mark.parametrize("fact", FACTS)
    def test_another_device_driver_torch_or_build_is_checked_anew(self, gpu, fact):
        verdicts.verdicts(DEVICE)
        gpu.start_again()
        gpu.facts[fact] += "1"
        verdicts.verdicts(DEVICE)
        assert gpu.checked == list(CHECKS)
        gpu.start_again()  # and neither verdict has replaced the other
        gpu.facts = dict(FACTS)
        verdicts.verdicts(DEVICE)
        assert gpu.checked == []

    def test_an_unknown_driver_is_never_the_same(self, gpu, cache):
        gpu.facts["driver"] = ""
        verdicts.verdicts(DEVICE)
        assert not cache.exists()
        gpu.start_again()
        verdicts.verdicts(DEVICE)
        assert gpu.checked == list(CHECKS)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: content[: len(content) // 2],
            lambda content: b"\xff\xfe" + content,
            lambda content: b"[" * 100_000,
            lambda content: b"[]",
            lambda content: b'{"facts": {}, "verdicts": []}',
            lambda content: content.replace(b'"verified"', b'"fine"'),
            lambda content: content.replace(b'"verified"', b"true"),
            lambda content: content.replace(b'"agrees"', b"7"),
            lambda content: content.replace(b'"checked"', b'"seen"'),
            # The right name, but of other facts: a collision, or a copy from elsewhere.
            lambda content: content.replace(b"580.65.06", b"580.65.07"),
        ],
        ids=["empty", "half", "not text", "deep", "a list", "no verdicts", "no such state",
             "no text", "a number", "another field", "other facts"],
    )  # fmt: skip
    def test_a_damaged_file_is_as_good_as_none(self, gpu, cache, damage):
        verdicts.verdicts(DEVICE)
        (path,) = cache.iterdir()
        sound = path.read_bytes()
        path.write_bytes(damage(sound))
        gpu.start_again()
        assert states(verdicts.verdicts(DEVICE)) == ALL_VERIFIED
        assert gpu.checked == list(CHECKS)
        assert json.loads(path.read_text()).keys() == {"facts", "verdicts"}  # mended

    def test_a_folder_that_cannot_be_made(self, gpu, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert states(verdicts.verdicts(DEVICE)) == ALL_VERIFIED

    def test_a_folder_that_cannot_be_written(self, gpu, monkeypatch):
        def refuse(path, content):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(verdicts, "write_atomically", refuse)
        assert states(verdicts.verdicts(DEVICE)) == ALL_VERIFIED

    @pytest.mark.parametrize("given", [None, "", "relative"])
    def test_the_default_folder(self, gpu, tmp_path, monkeypatch, given):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME")
        if given is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", given)
        verdicts.verdicts(DEVICE)
        assert len(list((tmp_path / "home/.cache/lpd_ext").iterdir())) == 1

    def test_an_op_that_came_later_is_added(self, gpu, cache):
        verdicts.verdicts(DEVICE)
        (path,) = cache.iterdir()
        content = json.loads(path.read_text())
        del content["verdicts"]["group_order"]
        path.write_text(json.dumps(content))
        gpu.start_again()
        assert states(verdicts.verdicts(DEVICE)) == ALL_VERIFIED
        assert gpu.checked == ["group_order"]


class TestFailure:
    def test_warns_once_and_uses_the_reference(self, gpu):
        gpu.found["group_attention"] = Verdict(FAILED, "differs from the reference by 7")
        with pytest.warns(RuntimeWarning, match=r"group_attention.*meta.*Some GPU.*by 7") as seen:
            kernels = kernels_for(DEVICE)
        assert len(seen) == 1
        assert kernels.group_attention is REFERENCE.group_attention
        assert kernels.token_selection is OPS.token_selection
        assert kernels.name == "ops and reference group_attention"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert kernels_for(DEVICE) == kernels

    def test_is_remembered_and_told_in_the_next_process(self, gpu):
        gpu.found["token_selection"] = Verdict(FAILED, "differs")
        with pytest.warns(RuntimeWarning, match="token_selection"):
            verdicts.verdicts(DEVICE)
        gpu.start_again()
        with pytest.warns(RuntimeWarning, match="token_selection"):
            kernels = kernels_for(DEVICE)
        assert gpu.checked == []
        assert kernels.token_selection is REFERENCE.token_selection

    def test_a_warning_made_an_error_comes_once(self, gpu):
        gpu.found["group_order"] = Verdict(FAILED, "differs")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning):
                verdicts.verdicts(DEVICE)
            assert verdicts.verdicts(DEVICE)["group_order"].state == FAILED
        assert gpu.checked == list(CHECKS)

    def test_an_op_without_a_kernel_is_replaced_without_a_warning(self, gpu):
        gpu.found = dict.fromkeys(CHECKS, Verdict(NOT_BUILT, "expected device cpu"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kernels = kernels_for(DEVICE)
        assert kernels.group_attention is REFERENCE.group_attention
        assert kernels.token_selection is REFERENCE.token_selection
        assert kernels.name == "ops and reference group_attention and reference token_selection"

    def test_a_kernel_that_ends_the_device_harms_no_other(self, gpu):
        # After an illegal address everything fails in this process, right kernels among it.
        def end(op, device):
            gpu.checked.append(op)
            gpu.answers = False
            return Verdict(FAILED, "an illegal memory access was encountered")

        gpu.monkeypatch.setattr(verdicts, "self_check", end)
        for message in ("group_attention left meta unable", r"^an illegal memory access"):
            with pytest.raises(RuntimeError, match=message):
                verdicts.verdicts(DEVICE)
        assert gpu.checked == ["group_attention"]
        gpu.start_again()
        gpu.answers = True
        gpu.monkeypatch.setattr(verdicts, "self_check", gpu.check)
        with pytest.warns(RuntimeWarning, match="illegal memory"):
            found = verdicts.verdicts(DEVICE)
        assert states(found) == ALL_VERIFIED | {"group_attention": FAILED}
        assert gpu.checked == [op for op in CHECKS if op != "group_attention"]

    def test_a_device_that_was_broken_before_is_no_verdict(self, gpu, cache):
        gpu.answers = False
        with pytest.raises(RuntimeError, match=r"^an illegal memory access"):
            verdicts.verdicts(DEVICE)
        assert (gpu.checked, cache.exists()) == ([], False)

    def test_no_memory_is_no_verdict(self, gpu, cache, monkeypatch):
        def full(device):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setitem(self_check.CHECKS, "group_attention", full)
        monkeypatch.setattr(verdicts, "self_check", self_check.self_check)
        with pytest.raises(torch.OutOfMemoryError):
            verdicts.verdicts(DEVICE)
        assert not cache.exists()


def test_a_device_that_nothing_is_known_of():
    # The real checks on a device without kernels: no failure, and nothing on disk.
    assert verdicts._path(verdicts._nothing(DEVICE)) is None
    found = {op: self_check.self_check(op, DEVICE) for op in CHECKS}
    assert states(found) == dict.fromkeys(CHECKS, NOT_BUILT)
    assert "expected device cpu" in found["group_attention"].detail


def test_facts_of_a_gpu(monkeypatch):
    class Properties:
        name, uuid = "Some GPU", "GPU-1"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(verdicts, "driver_version", lambda: "1.2.3")
    facts = verdicts._cuda_facts(torch.device("cuda:0"))
    assert facts.pop("build") == verdicts._build_id() != ""
    assert facts == {
        "device": "Some GPU",
        "uuid": "GPU-1",
        "driver": "1.2.3",
        "torch": torch.__version__,
    }


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel", "580.65.06"),
        ("NVRM version: a new kind of line", ""),
        (None, ""),
    ],
)
def test_driver_version(tmp_path, monkeypatch, text, version):
    monkeypatch.setattr(verdicts, "_DRIVER_FILE", tmp_path / "version")
    if text is not None:
        (tmp_path / "version").write_text(f"{text}\nGCC version:  gcc version 12.2.0\n")
    assert verdicts.driver_version() == version


PROCESS = f"""
import sys, torch
from lpd_ext import verdicts
from lpd_ext.self_check import Verdict
checked = []
def check(op, device):
    checked.append(op)
    return Verdict("verified", "agrees")
verdicts.self_check, verdicts._touch = check, lambda device: None
verdicts._FACTS["meta"] = lambda device: {FACTS!r}
print("ready", flush=True)
sys.stdin.readline()
verdicts.verdicts(torch.device("meta"))
print(len(checked))
"""


def test_processes_at_the_same_time_and_after(cache):
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def start():
        return subprocess.Popen([sys.executable, "-c", PROCESS], env=environment, **pipes)

    both = [start(), start()]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    # One of them may see what the other has just written.
    counts = [int(process.communicate()[0]) for process in both]
    assert len(CHECKS) in counts
    assert [process.returncode for process in both] == [0, 0]
    assert len(list(cache.iterdir())) == 1  # nothing partial is left
    assert start().communicate("\n")[0] == "ready\n0\n"
