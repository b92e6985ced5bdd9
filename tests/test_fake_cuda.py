"""The plugin that judges tests on fake CUDA tensors, on planted tests."""

import fake_cuda
import pytest

from lpd_ext.ops.launch import device_types

pytest_plugins = ["pytester"]

if "cuda" not in device_types("group_attention"):
    pytest.skip("this build has no CUDA kernels; make cuda-build has", allow_module_level=True)

PASS = """
def test_stops_where_it_looks_at_a_value():
    assert torch.ones(3, device="cuda").tolist() == [2, 2, 2]

def test_gets_its_error():
    with pytest.raises(RuntimeError, match="broadcast"):
        torch.ones(3, device="cuda") + torch.ones(4, device="cuda")
"""
FAIL = """
def test_mixes_devices():
    torch.ones(3, device="cuda") + torch.ones(3)

def test_gets_no_error():
    with pytest.raises(RuntimeError):
        torch.ones(3, device="cuda")

def test_gets_another_error():
    with pytest.raises(RuntimeError, match="device cpu"):
        torch.ones(3, device="cuda") + torch.ones(4, device="cuda")

def test_looks_at_a_value_where_an_error_is_due():
    with pytest.raises(RuntimeError, match="broadcast"):
        torch.ones(torch.ones(3, device="cuda").tolist())

def test_is_judged_all_the_same():
    with pytest.raises(RuntimeError):
        torch.ones(3, device="cuda") + torch.ones(4, device="cuda")
"""
NOT_RUN = """
def test_expects_nothing():
    raise AssertionError
"""
HEAD = "import pytest\nimport torch\n"
CUDA = HEAD + "pytestmark = pytest.mark.cuda\n"


def test_planted_tests(pytester, monkeypatch):
    excused = {"test_planted.py::test_is_judged_all_the_same": "planted"}
    monkeypatch.setattr(fake_cuda, "NOT_JUDGED", excused)
    pytester.makepyfile(test_planted=CUDA + PASS + FAIL)
    pytester.makepyfile(test_other=HEAD + NOT_RUN)
    result = pytester.runpytest_inprocess("-p", "fake_cuda")
    result.assert_outcomes(passed=2, failed=5)
    result.stdout.fnmatch_lines(["*XPASS(strict)*planted*"])


def test_an_excuse_without_a_test(pytester, monkeypatch):
    monkeypatch.setattr(fake_cuda, "NOT_JUDGED", {"test_planted.py::test_gone": "planted"})
    pytester.makepyfile(test_planted=CUDA + PASS)
    result = pytester.runpytest_inprocess("-p", "fake_cuda")
    result.stderr.fnmatch_lines(["*no such tests: *test_gone*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
