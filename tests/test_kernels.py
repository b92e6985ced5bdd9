"""The kernels that a decode runs on where nobody names them: those known to be right there."""

import warnings

import pytest
import torch
from tiny_pipeline import tiny_pipeline

import lpd_ext.pipeline
from lpd_ext import DecodePlan, LPDPipeline, decode, group_order, verdicts
from lpd_ext.kernels import OPS, REFERENCE, kernels_for
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.self_check import FAILED, VERIFIED, Verdict

CPU = torch.device("cpu")
SIZES = [1, 3, 12]


@pytest.fixture(params=["group_attention", "token_selection"])
def failing(request, monkeypatch, tmp_path):
    """The CPU as a device that is not taken on trust, with one op that fails its check there."""

    def check(op, device):
        return Verdict(FAILED, "differs") if op == request.param else Verdict(VERIFIED, "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdicts, "TESTED_DEVICES", frozenset())
    monkeypatch.setattr(verdicts, "_in_memory", {})
    monkeypatch.setattr(verdicts, "self_check", check)
    return request.param


@pytest.fixture(scope="module")
def model():
    config = LPDConfig(grid=(4, 4), dim=64, depth=2, num_heads=2, vocab_size=8, num_classes=3)
    torch.manual_seed(0)
    return LPD(config).eval()


def arguments(model):
    seeds = torch.tensor([7, 8], device="cpu")
    order = group_order(seeds, model.config.grid, SIZES)
    return model, torch.tensor([2, 0], device="cpu"), SIZES, order


def test_only_the_op_that_fails_is_replaced(failing):
    with pytest.warns(RuntimeWarning, match=f"kernel of {failing} failed"):
        kernels = kernels_for(CPU)
    assert getattr(kernels, failing) is getattr(REFERENCE, failing)
    (other,) = {"group_attention", "token_selection"} - {failing}
    assert getattr(kernels, other) is getattr(OPS, other)


def test_decode_goes_around_it(failing, model, monkeypatch):
    used = []

    def spied(name, kernel):
        def spy(*args, **kwargs):
            used.append(name)
            return kernel(*args, **kwargs)

        return spy

    for kernels in (OPS, REFERENCE):
        for op in ("group_attention", "token_selection"):
            spy = spied((kernels.name, op), getattr(kernels, op))
            monkeypatch.setitem(kernels.__dict__, op, spy)
    with pytest.warns(RuntimeWarning, match=failing):
        decode(*arguments(model), temperature=0)
    (other,) = {"group_attention", "token_selection"} - {failing}
    assert set(used) == {("reference", failing), ("ops", other)}


def test_named_kernels_are_taken_as_they_are(failing, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(*arguments(model), temperature=0, kernels=OPS)
    assert verdicts._in_memory == {}


def test_the_pipeline_goes_through_decode(failing, monkeypatch):
    # A plan knows the ops alone.
    pipeline, seen = tiny_pipeline(), []

    def spy(*args, kernels, **kwargs):
        seen.append(kernels)
        return decode(*args, kernels=kernels, **kwargs)

    monkeypatch.setattr(lpd_ext.pipeline, "decode", spy)
    with pytest.warns(RuntimeWarning, match=failing):
        tokens = pipeline([0, 1], num_steps=4).tokens
    assert [kernels.name for kernels in seen] == [f"ops and reference {failing}"]
    assert torch.equal(tokens, pipeline([0, 1], num_steps=4, kernels=REFERENCE).tokens)


@pytest.mark.parametrize("kernels", [OPS, REFERENCE], ids=lambda k: k.name)
def test_decode_makes_every_tensor_on_the_models_device(model, kernels):
    # With another default device, whatever forgets `device=` lands there and meets the model's.
    given = arguments(model)
    options = {"cfg_scale": 2.0, "uniform": torch.rand(2, 16).double(), "top_k": 3, "top_p": 0.9}
    expected = decode(*given, **options, return_logits=True, kernels=kernels)
    with torch.device("meta"):
        got = decode(*given, **options, return_logits=True, kernels=kernels)
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.zeros(2).sum().item()  # so it would fail
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_plans_are_for_devices_with_kernels():
    config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=8, num_classes=3)
    elsewhere = LPD(config).eval().to("meta")
    with pytest.raises(NotImplementedError, match="expected device cpu or cuda, got meta"):
        DecodePlan(elsewhere, 1, SIZES)


@pytest.mark.cuda
class TestCuda:
    def test_decode_runs_with_what_is_right_there(self, model):
        moved = LPD(model.config).eval().to("cuda")
        moved.load_state_dict(model.state_dict())
        on_cpu = arguments(model)
        labels, sizes, order = on_cpu[1].cuda(), on_cpu[2], on_cpu[3].cuda()
        options = {"temperature": 0, "return_logits": True}
        forced = torch.arange(16).repeat(2, 1) % 8  # else one near-tie would change all that follow
        _, logits = decode(moved, labels, sizes, order, forced_tokens=forced.cuda(), **options)
        _, expected = decode(*on_cpu, forced_tokens=forced, **options)
        assert logits.is_cuda
        assert (logits.cpu() - expected).abs().max() < 1e-3

    def test_the_pipeline_runs(self):
        pipeline = LPDPipeline.from_pretrained("fashion-mnist").to("cuda")
        output = pipeline(["bag", "sneaker"], num_steps=4)
        assert len(output.images) == 2
        assert not output.tokens.is_cuda
