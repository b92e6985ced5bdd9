"""The training and evaluation scripts of examples/fashion_mnist, on data a test can make."""

import gzip
import importlib
import json
import re
import struct
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parent.parent / "examples/fashion_mnist"


@pytest.fixture(autouse=True)
def example_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:  # the scripts' names are common ones
        if getattr(sys.modules[name], "__file__", None) and EXAMPLE.as_posix() in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def load(name):
    return importlib.import_module(name)


def write_idx(folder, count, compress):
    pixels = bytes(i % 251 for i in range(count * 28 * 28))
    files = {
        "train-images-idx3-ubyte": struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28) + pixels,
        "train-labels-idx1-ubyte": struct.pack(">4Bi", 0, 0, 8, 1, count)
        + bytes(i % 10 for i in range(count)),
    }
    for name, content in files.items():
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)


class TestData:
    @pytest.mark.parametrize("compress", [True, False])
    def test_idx_files_come_padded(self, tmp_path, compress):
        write_idx(tmp_path, 12, compress)
        images, labels = load("data").load("train", tmp_path)
        assert images.shape == (12, 1, 32, 32)
        assert images[0, 0, 2, 2:5].tolist() == [0, 1, 2]
        assert images[:, :, :2].sum() == images[:, :, :, 30:].sum() == 0
        assert labels.tolist() == [i % 10 for i in range(12)]

    def test_missing_files_say_how_to_get_them(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
            load("data").load("train", tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03abc", b"PK\3\4 something else"])
    def test_other_files_are_refused(self, tmp_path, content):
        write_idx(tmp_path, 2, compress=False)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match="train-images"):
            load("data").load("train", tmp_path)

    def test_a_truncated_archive_is_refused(self, tmp_path):
        write_idx(tmp_path, 12, compress=True)
        path = tmp_path / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ValueError, match=r"train-images.*damaged"):
            load("data").load("train", tmp_path)

    def test_an_epoch_visits_every_image_once(self):
        batches = [load("data").batch_indices(12, 4, step, seed=1) for step in range(6)]
        assert torch.cat(batches[:3]).sort().values.tolist() == list(range(12))
        assert torch.cat(batches[3:]).tolist() != torch.cat(batches[:3]).tolist()


class TestTraining:
    def options(self, run, steps=7):
        return Namespace(run=run, steps=steps, lr=0.1, device="cpu", save_every=2)

    def run(self, folder, fail_at=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def compute_loss(step):
            if step == fail_at:
                raise KeyboardInterrupt
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

        return load("training").train(model, compute_loss, self.options(folder))

    def test_an_interrupted_run_ends_where_a_whole_one_does(self, tmp_path):
        whole = self.run(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "resumed", fail_at=5)
        resumed = self.run(tmp_path / "resumed")
        assert torch.equal(whole.weight, resumed.weight)
        assert torch.equal(whole.bias, resumed.bias)
        log = [json.loads(line) for line in (tmp_path / "resumed/log.jsonl").open()]
        assert [line["first_step"] for line in log if "options" in line] == [0, 4]
        steps = [line["step"] for line in log if "step" in line]
        assert steps == [0, 1, 2, 3, 4, 4, 5, 6]  # step 4 was not saved, so it came again

    def test_rate_warms_up_and_falls(self):
        rates = [load("training").learning_rate(step, 1000, 1.0) for step in (0, 99, 100, 999)]
        assert rates == pytest.approx([0.01, 1.0, 1.0, 0.01], abs=1e-3)


class TestSchedules:
    def test_groups_fill_the_grid_and_orders_are_permutations(self):
        train_lpd = load("train_lpd")
        large = 0
        for seed in range(60):
            sizes, order = train_lpd.draw_schedule(3, torch.Generator().manual_seed(seed))
            assert sum(sizes) == 256
            assert order.sort(1).values.tolist() == [list(range(256))] * 3
            large += sizes[0] >= 16
        assert 2 <= large <= 25  # 15 % start with a large group, as editing does

    def test_regions_have_the_count_asked_for(self):
        regions = load("train_lpd").random_regions(5, 70, torch.Generator().manual_seed(0))
        assert regions.sum(1).tolist() == [70] * 5


class TestPatches:
    def test_each_patch_gets_its_own_centroid(self):
        patches = load("patches")
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=generator)
        centroids = patches.split(images)[1].float()
        assert patches.assign(images, centroids)[1].tolist() == list(range(16))

    def test_patches_are_in_raster_order(self):
        image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
        expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
        assert load("patches").split(image)[0].tolist() == expected


class TestEvaluation:
    def test_frechet_distance_of_shifted_features(self):
        features = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
        distance = load("evaluate").frechet_distance
        assert distance(features, features) == pytest.approx(0, abs=1e-6)
        assert distance(features, features + 2) == pytest.approx(6 * 4)
        wide = features.double()
        spread = float(wide.T.cov().trace() + wide.mean(0).square().sum())
        assert distance(features, features * 3) == pytest.approx(4 * spread, rel=1e-6)

    def test_recall_sees_missing_modes(self):
        recall = load("evaluate").recall
        real = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 100])
        assert recall(real, real) == 1
        assert recall(real, real[:50]) == pytest.approx(0.5)


COMMANDS = re.findall(r"^    python (\w+)\.py (.+)$", (EXAMPLE / "README.md").read_text(), re.M)


@pytest.mark.parametrize(("script", "options"), COMMANDS, ids=[script for script, _ in COMMANDS])
def test_recipe_names_scripts_and_options_there_are(script, options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match="0"):
        load(script).main()
    known = capsys.readouterr().out
    assert all(option in known for option in re.findall(r"--[\w-]+", options))


def test_recipe_is_whole():
    assert [script for script, _ in COMMANDS] == [
        "fit_patches", "train_tokenizer", "train_lpd", "package", "classifier", "evaluate",
    ]  # fmt: skip
