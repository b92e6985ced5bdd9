"""The command line: what it writes, what it refuses, and that it leaves nothing half-done."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tiny_pipeline import GRID, SEQ_LEN, tiny_pipeline

import lpd_ext.cli
from lpd_ext import cpu_variant
from lpd_ext.cli import main
from lpd_ext.pipeline import LPDPipeline
from lpd_ext.render import METADATA_KEY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as a user would name it with --model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    return LPDPipeline.from_pretrained(folder)


@pytest.fixture
def generate(folder, tmp_path, monkeypatch):
    """Run `lpd-ext generate` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["generate", "--model", folder, *map(str, arguments)])


def metadata(path):
    with Image.open(path) as image:
        return json.loads(image.text[METADATA_KEY])


def arrays(images):
    return [np.asarray(image).tolist() for image in images]


class TestGrid:
    def test_default_is_every_class_once(self, generate, tmp_path, capsys):
        assert generate() == 0
        assert [path.name for path in tmp_path.iterdir()] == ["lpd.png"]
        assert [entry["class"] for entry in metadata("lpd.png")["images"]] == [
            "T-shirt",
            "ankle boot",
            "bag",
        ]
        assert "wrote lpd.png (images: 3, " in capsys.readouterr().out

    def test_one_row_a_sample(self, generate):
        # 8 pixels at zoom 16 are 128; three columns, two rows, captions and gaps between.
        assert generate("-n", 2, "-o", "grid.png") == 0
        with Image.open("grid.png") as image:
            assert image.size == (3 * 132 + 4, 2 * (14 + 132) + 4)
        about = metadata("grid.png")
        assert about["columns"] == 3
        assert [entry["seed"] for entry in about["images"]] == [0, 1, 2, 3, 4, 5]

    def test_shows_the_images_of_the_pipeline(self, generate, pipeline):
        # Cut the cells out again: pixels, not just sizes.
        assert generate("--classes", "bag,1", "--seed", 3, "--zoom", 10, "-o", "a.png") == 0
        expected = pipeline([2, 1], seed=3).images
        with Image.open("a.png") as sheet:
            cells = [sheet.crop((4 + 84 * i, 18, 84 + 84 * i, 98)) for i in range(2)]
        assert arrays(cell.resize((8, 8), Image.Resampling.NEAREST) for cell in cells) == arrays(
            expected
        )

    def test_many_of_one_class_are_laid_out_square(self, generate):
        assert generate("--classes", "bag", "-n", 9, "--zoom", 1, "--steps", 1) == 0
        assert metadata("lpd.png")["columns"] == 3

    def test_narrow_images_leave_room_for_captions(self, generate):
        assert generate("--classes", "ankle boot", "--zoom", 1, "--steps", 1) == 0
        with Image.open("lpd.png") as image:
            assert image.width > 40

    def test_same_command_same_bytes(self, generate, tmp_path):
        options = ("--seed", 9, "--gif", "a.gif", "--tokens", "a.npz")
        names = ("lpd.png", "a.gif", "a.npz")
        assert generate(*options) == 0
        first = [(tmp_path / name).read_bytes() for name in names]
        assert generate(*options) == 0
        assert [(tmp_path / name).read_bytes() for name in names] == first

    def test_colour(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tiny_pipeline(channels=3).save_pretrained(tmp_path / "model")
        assert main(["generate", "--model", "model", "--gif", "a.gif", "--steps", "3"]) == 0
        with Image.open("lpd.png") as image:
            assert image.mode == "RGB"
        with Image.open("a.gif") as image:
            assert image.n_frames == 3


class TestMetadata:
    def test_says_how_to_make_it_again(self, generate, folder, pipeline):
        options = {"num_steps": 4, "order": "halton", "cfg_scale": 3.5, "cfg_schedule": "constant"}
        options |= {"temperature": 0.8, "top_k": 9, "top_p": 0.9}
        command = [
            *("--classes", "0", "bag", "--seed", "5", "--steps", "4", "--order", "halton"),
            *("--cfg", "3.5", "--cfg-schedule", "constant", "--temperature", "0.8"),
            *("--top-k", "9", "--top-p", "0.9", "--batch-size", "2", "--tokens", "t.npy"),
        ]
        assert generate(*command) == 0
        about = metadata("lpd.png")
        assert about["settings"] == options | {"repulsion_threshold": 1}
        assert about["images"] == [
            {"class": "T-shirt", "label": 0, "seed": 5},
            {"class": "bag", "label": 2, "seed": 6},
        ]
        assert about["model"] == folder
        assert (about["device"], about["dtype"], about["batch_size"]) == ("cpu", "float32", 2)
        assert about["threads"] == 1
        assert about["cpu_variant"] == cpu_variant.cpu_variant()
        assert set(about["versions"]) == {"lpd_ext", "torch", "python"}
        again = pipeline([0, 2], seed=5, batch_size=2, **options)
        assert np.load("t.npy").tolist() == again.tokens.tolist()

    def test_software(self, generate):
        assert generate() == 0
        with Image.open("lpd.png") as image:
            assert image.text["Software"].startswith("lpd_ext ")


class TestSeparate:
    def test_one_file_an_image(self, generate, tmp_path, pipeline):
        assert generate("--separate", "-o", "out", "-n", 2, "--seed", 7) == 0
        names = [path.name for path in sorted((tmp_path / "out").iterdir())]
        stems = ("T-shirt-7", "ankle-boot-8", "bag-9", "T-shirt-10", "ankle-boot-11", "bag-12")
        assert names == sorted(f"{stem}.png" for stem in stems)
        with Image.open("out/bag-12.png") as image:  # as the model made it, not enlarged
            assert arrays([image]) == arrays(pipeline([2], seed=12).images)
        assert metadata("out/bag-12.png")["images"] == [{"class": "bag", "label": 2, "seed": 12}]

    def test_zoom(self, generate):
        assert generate("--separate", "--zoom", 3, "--classes", "unconditional") == 0
        with Image.open("lpd-images/unconditional-0.png") as image:
            assert image.size == (24, 24)

    def test_into_a_folder_that_exists(self, generate, tmp_path):
        (tmp_path / "out").mkdir()
        assert generate("--separate", "-o", "out", "--classes", -1) == 0
        assert (tmp_path / "out/unconditional-0.png").exists()


class TestGif:
    def test_one_frame_a_step(self, generate):
        assert generate("--gif", "steps.gif", "--steps", 6) == 0
        with Image.open("steps.gif") as gif:
            assert gif.n_frames == 6
            assert gif.info["loop"] == 0
            durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
        assert durations == [200] * 5 + [2000]  # rests on the finished picture

    def test_undecoded_positions_are_grey(self, generate, pipeline):
        # Over a batch border too: all images of the grid advance together.
        assert generate("--gif", "a.gif", "--zoom", 10, "--batch-size", 2) == 0
        output = pipeline([0, 1, 2], batch_size=2)
        with Image.open("a.gif") as gif, Image.open("lpd.png") as picture:
            frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
            final = np.asarray(picture)
        assert len(frames) == 5
        for step, frame in enumerate(frames):
            for image in range(3):
                x = 4 + image * (frame.shape[1] - 4) // 3
                cell = (slice(18, 98), slice(x, x + 80))
                decoded = (output.steps[image] <= step).reshape(GRID).numpy()
                decoded = decoded.repeat(20, axis=0).repeat(20, axis=1)
                assert (frame[cell] == np.where(decoded, final[cell], 128)).all()


class TestTokens:
    def test_npy(self, generate, pipeline):
        assert generate("--tokens", "ids.npy", "--classes", "2,0", "--seed", 4) == 0
        tokens = np.load("ids.npy")
        assert tokens.dtype == np.int64
        assert tokens.tolist() == pipeline([2, 0], seed=4).tokens.tolist()

    def test_npz_holds_labels_and_seeds(self, generate, pipeline):
        assert generate("--tokens", "ids.npz", "--classes", "2,0", "--seed", 4) == 0
        with np.load("ids.npz") as saved:
            assert saved["tokens"].shape == (2, SEQ_LEN)
            assert saved["tokens"].tolist() == pipeline([2, 0], seed=4).tokens.tolist()
            assert saved["class_labels"].tolist() == [2, 0]
            assert saved["seeds"].tolist() == [4, 5]


class TestClasses:
    @pytest.mark.parametrize(
        ("words", "labels"),
        [
            (["bag"], [2]),
            (["ankle boot", "0"], [1, 0]),
            (["bag,1, t-shirt"], [2, 1, 0]),
            (["2,", "-1"], [2, -1]),
            (["all", "unconditional"], [0, 1, 2, -1]),
        ],
        ids=str,
    )
    def test_spellings(self, generate, words, labels):
        assert generate("--classes", *words, "--steps", 1) == 0
        assert [entry["label"] for entry in metadata("lpd.png")["images"]] == labels


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--classes", "boat"], "boat"),
            (["--classes", "3"], "class_labels"),
            (["--classes", ","], "at least one image"),
            (["--steps", "17"], "num_steps"),
            (["--steps", "0"], "num_steps"),
            (["--steps", "x"], "--steps"),
            (["--order", "spiral"], "--order"),
            (["--cfg", "nan"], "cfg_scale"),
            (["--cfg-schedule", "cosine"], "--cfg-schedule"),
            (["--temperature", "-1"], "temperature"),
            (["--top-k", "-1"], "top_k"),
            (["--top-p", "2"], "top_p"),
            (["--seed", str(2**63)], "seed"),
            (["-n", "0"], "--per-class"),
            (["--zoom", "0"], "--zoom"),
            (["--batch-size", "0"], "--batch-size"),
            (["--threads", "0"], "--threads"),
            (["--dtype", "int8"], "--dtype"),
            (["--device", "abacus"], "device"),
            (["--device", "cuda:99"], "device"),
            (["--model", "imagenet"], "imagenet"),
            (["--nonsense"], "--nonsense"),
            (["-o", "picture.jpg"], "ends in .png"),
            (["-o", "picture"], "ends in .png"),
            (["-o", "folder.png"], "got a folder"),
            (["-o", "missing/picture.png"], "no folder missing"),
            (["-o", "file/picture.png"], "no folder file"),
            (["--separate", "-o", "file"], "got a file"),
            (["--separate", "-o", "missing/out"], "no folder missing"),
            (["--separate", "-o", "file/out"], "no folder file"),
            (["--gif", "steps.png"], "ends in .gif"),
            (["--gif", "file/steps.gif"], "no folder file"),
            (["--tokens", "ids.txt"], "ends in .npy or .npz"),
            (["--tokens", "missing/ids.npy"], "no folder missing"),
        ],
        ids=" ".join,
    )
    def test_bad_usage(self, generate, tmp_path, capsys, arguments, message):
        (tmp_path / "file").write_text("a regular file")
        (tmp_path / "folder.png").mkdir()
        assert generate(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("lpd-ext: error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
        assert captured.out == ""
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]

    def test_nothing_asked(self, capsys):
        assert main([]) == 2
        assert "lpd-ext: error: " in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--output", "--gif", "--tokens"])
    def test_outputs_are_checked_before_the_work(self, generate, monkeypatch, option):
        # Minutes of decoding must not end in "no such folder".
        def too_early(name):
            raise AssertionError("the model was loaded first")

        monkeypatch.setattr(LPDPipeline, "from_pretrained", too_early)
        assert generate(option, "missing/a.png") == 2

    def test_folder_without_permission(self, generate, monkeypatch, capsys):
        # Tests may run as root, whom no mode keeps out: ask the question, fake the answer.
        monkeypatch.setattr(lpd_ext.cli.os, "access", lambda path, mode: False)
        assert generate() == 2
        assert "cannot be written" in capsys.readouterr().err

    def test_a_full_disk_leaves_nothing(self, generate, tmp_path, monkeypatch, capsys):
        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("lpd_ext.files.os.replace", full)
        assert generate() == 1
        assert capsys.readouterr().err == "lpd-ext: error: [Errno 28] No space left on device\n"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("before", ["nothing", "old files"])
    @pytest.mark.parametrize(
        ("options", "names"),
        [
            (["--separate", "-o", "out"], ["out/T-shirt-0.png", "out/ankle-boot-1.png"]),
            (["--gif", "steps.gif"], ["lpd.png", "steps.gif"]),
        ],
        ids=["separate", "gif"],
    )
    def test_a_disk_full_halfway_leaves_what_was_there(
        self, generate, tmp_path, monkeypatch, options, names, before
    ):
        if before == "old files":
            (tmp_path / names[0]).parent.mkdir(exist_ok=True)
            for name in names:
                (tmp_path / name).write_text("old")
        calls, replace = [], os.replace

        def full(source, target):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            replace(source, target)

        monkeypatch.setattr("lpd_ext.files.os.replace", full)
        assert generate("--steps", 1, *options) == 1
        if before == "nothing":
            assert list(tmp_path.iterdir()) == []
        else:
            found = {path for path in tmp_path.rglob("*") if path.is_file()}
            assert found == {tmp_path / name for name in names}
            assert all(path.read_text() == "old" for path in found)

    def test_a_damaged_model(self, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        tiny_pipeline().save_pretrained(tmp_path / "model")
        (tmp_path / "model/vq.safetensors").write_bytes(b"not weights")
        assert main(["generate", "--model", "model"]) == 1
        assert "vq.safetensors: truncated" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_invalid_logits(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        pipeline = tiny_pipeline()
        with torch.no_grad():
            pipeline.model.class_emb.weight[1] = float("nan")
        pipeline.save_pretrained(tmp_path / "model")
        assert main(["generate", "--model", "model"]) == 1
        assert capsys.readouterr().err.startswith("lpd-ext: error: image 1, step 0")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_interrupted(self, generate, monkeypatch, tmp_path, capsys):
        def interrupt(self, *args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(LPDPipeline, "__call__", interrupt)
        assert generate() == 130
        assert capsys.readouterr().err == "lpd-ext: error: interrupted\n"
        assert list(tmp_path.iterdir()) == []


class TestInfo:
    def test_text(self, capsys):
        assert main(["info"]) == 0
        text = capsys.readouterr().out
        words = ("lpd_ext", "torch", "build:", "cpu:", "CPU kernels:", cpu_variant.cpu_variant())
        for word in (*words, "group_attention", "fused_linear", "verified"):
            assert word in text

    def test_json(self, capsys):
        assert main(["info", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["kernels"]["token_selection"]["cpu"]["state"] == "verified"

    @pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
    def test_a_wrong_kernel_is_a_failure(self, monkeypatch, capsys, options):
        broken = {"state": "failed", "detail": "differs"}
        report = lpd_ext.cli.info() | {"kernels": {"group_order": {"cpu": broken}}}
        monkeypatch.setattr(lpd_ext.cli, "info", lambda: report)
        assert main(["info", *options]) == 1
        assert "failed" in capsys.readouterr().out


def test_threads(generate):
    try:
        assert generate("--threads", 2, "--steps", 1) == 0
        assert metadata("lpd.png")["threads"] == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "lpd" in capsys.readouterr().out


def test_progress_bar_on_a_terminal(generate, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert generate("--steps", 4, "--batch-size", 2) == 0
    assert "8/8" in sys.stderr.getvalue()  # two batches of four steps


def test_as_a_process(folder, tmp_path):
    # The only test through a real process: exit codes and streams as a shell sees them.
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "lpd_ext.cli", "generate", "--model", folder, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    good = run("--classes", "bag", "--threads", "1")
    assert (good.returncode, good.stderr) == (0, "")
    assert metadata(tmp_path / "lpd.png")["images"][0]["class"] == "bag"
    bad = run("--classes", "boat")
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
