"""The benchmark from labels to images, on the CPU and a tiny model."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_image_plan import CONFIG as VQ_CONFIG

from lpd_ext import LPDConfig

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import image_duel
from report import BASELINES, fill
from roofline import H200
from roofline_images import image_floor

CONFIG = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=16, num_classes=9)
PUBLISHED = {"float32", "bfloat16"}  # how its tokenizer runs


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(LPDConfig, "named", staticmethod({"tiny": CONFIG}.__getitem__))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    captured = SimpleNamespace(capture=lambda run: run)
    monkeypatch.setattr(image_duel, "current_gpu", lambda: captured)


def duel(images):
    """Run it; returns the images of each contender and what goes to the JSON."""
    shown, results = {}, {}

    def versus(op, case, ours, baselines, *, rounds, device, loop, **notes):
        assert (op, device, loop) == ("decode_images", "cpu", True)
        assert baselines.keys() <= BASELINES.keys()
        assert baselines["published_loop"].keys() == PUBLISHED
        calls = {"ours": ours, **baselines, **baselines["published_loop"]}
        del calls["published_loop"]
        results.update({name: call() for name, call in calls.items()})
        shown.update(notes, op=op, case=case)

    image_duel.image_duel_on_gpu(versus, torch.device("cpu"), "tiny", 5, images, VQ_CONFIG)
    return results, shown


@pytest.mark.parametrize("images", [1, 5])
def test_every_contender_makes_images(card, images):
    results, shown = duel(images)
    assert {tuple(r.shape) for r in results.values()} == {(images, 3, 8, 8)}
    assert results.keys() == {"ours", "sdpa_graph"} | PUBLISHED
    assert shown["images"] == images
    assert (
        0 < shown["image_error"]["vq_float32"]["max"] < shown["image_error"]["vq_autocast"]["max"]
    )
    floor = image_floor(VQ_CONFIG, CONFIG.grid, images, H200)
    assert shown["floor_us"] > 1e6 * floor > 0


def test_a_wrong_image_is_not_timed(card, monkeypatch):
    # Ids read in another order: the errors of rounding stay far below.
    plan = image_duel.ImagePlan
    monkeypatch.setattr(plan, "__call__", wrong(plan.__call__))
    with pytest.raises(AssertionError, match="image_plan"):
        duel(2)


def wrong(call):
    return lambda self, codes: call(self, codes.flip(1))


def test_the_simple_tokenizer_is_the_eager_one(card):
    vq = image_duel.random_tokenizer(VQ_CONFIG)
    loop = image_duel.SDPALoop(image_duel.random_model(CONFIG), 2, [1, 15])
    options = {"uniform": torch.full((2, 16), 0.5), "cfg_scale": 2.0}
    request = torch.tensor([1, 2]), torch.arange(16).repeat(2, 1)
    images = image_duel.SDPAToImages(loop, vq, CONFIG.grid)(*request, **options)
    tokens = loop(*request, **options)
    expected = image_duel.eager_images(vq, tokens, CONFIG.grid, torch.float32)
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=1e-5)


def test_the_report_shows_the_errors(card):
    _, shown = duel(1)
    spread = {"median_us": 2.0, "iqr_us": 0.1}
    shown |= {
        "device": "cuda",
        "ours": spread,
        "baselines": {"sdpa_graph": spread | {"ratio": 2.0}},
    }
    region = "<!-- report:begin decode_images -->\n<!-- report:end decode_images -->"
    text = fill(region, {"here": {"benchmarks": [{"extra_info": shown}]}})
    assert "with the tokenizer: largest / mean error of the images, float64 being exact:" in text
    assert "| over the best baseline |" in text
