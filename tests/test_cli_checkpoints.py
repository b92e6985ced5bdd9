"""The command line with published files: convert them, or generate from them as they are."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import publish, tiny_checkpoints

from lpd_ext.cli import main
from lpd_ext.models.checkpoint import load_lpd
from lpd_ext.pipeline import LPDPipeline
from lpd_ext.render import METADATA_KEY


@pytest.fixture
def files(tmp_path, monkeypatch):
    publish(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tiny_checkpoints(tmp_path)


def error_of(capsys, arguments, code):
    assert main(list(map(str, arguments))) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("lpd-ext: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def tokens_of(*arguments):
    command = ["generate", "--classes", "0", "2", "--tokens", "t.npy", *map(str, arguments)]
    assert main(command) == 0
    return np.load("t.npy").tolist()


def test_generate_from_files_and_from_what_convert_makes_of_them(files, capsys):
    pipeline = LPDPipeline.from_pretrained(files.lpd_file, vq=files.vq_file)
    expected = pipeline([0, 2]).tokens.tolist()
    assert tokens_of("--model", "lpd_tiny.pth", "--vq", "vq_tiny.pt") == expected
    with Image.open("lpd.png") as image:
        about = json.loads(image.text[METADATA_KEY])
    assert (about["model"], about["vq"]) == ("lpd_tiny.pth", "vq_tiny.pt")
    assert [entry["class"] for entry in about["images"]] == ["0", "2"]

    assert main(["convert", "lpd_tiny.pth", "model", "--vq", "vq_tiny.pt"]) == 0
    output = capsys.readouterr().out
    assert output.count("sha256 ") == 2
    assert "wrote model (tensors, each compared with its source: " in output
    assert tokens_of("--model", "model") == expected

    assert main(["convert", "lpd_tiny.pth", "a.safetensors", "--dtype", "bfloat16"]) == 0
    assert load_lpd("a.safetensors").head.weight.equal(files.model.head.weight.bfloat16().float())


def test_generate_in_the_orders_of_a_file(files):
    orders = [torch.randperm(16).tolist() for _ in range(3)]
    with open("orders.json", "w") as file:
        json.dump(orders, file)
    pipeline = LPDPipeline.from_pretrained(files.lpd_file, vq=files.vq_file)
    expected = pipeline([0, 2], order=torch.tensor(orders)).tokens.tolist()
    model = ("--model", "lpd_tiny.pth", "--vq", "vq_tiny.pt")
    assert tokens_of(*model, "--order-file", "orders.json") == expected
    assert tokens_of(*model) != expected
    assert tokens_of(*model, "--order-file", "orders.json") == expected
    with Image.open("lpd.png") as image:
        about = json.loads(image.text[METADATA_KEY])
    assert (about["order_file"], about["settings"]["order"]) == ("orders.json", "given")


def test_refusals(files, tmp_path, capsys):
    with open("few.json", "w") as file:
        json.dump([list(range(16))], file)
    before = sorted(tmp_path.iterdir())
    model = ["generate", "--model", "lpd_tiny.pth", "--classes", "0,1"]
    whole = [*model, "--vq", "vq_tiny.pt"]
    convert = ["convert", "lpd_tiny.pth"]
    for arguments, code, message in (
        (model, 2, "give the tokenizer as `vq` (--vq)"),
        ([*model, "--vq", "missing.pt"], 2, "missing.pt: no such file"),
        ([*model, "--vq", "lpd_tiny.pth"], 1, "not a checkpoint of a VQModel"),
        ([*whole, "--order-file", "few.json"], 2, "expected at least 2 orders, got 1"),
        ([*whole, "--order-file", "missing.json"], 2, "missing.json: no such file"),
        ([*whole, "--order", "raster", "--order-file", "few.json"], 2, "not allowed with"),
        (["convert", "missing.pth", "a.safetensors"], 2, "missing.pth: no such file"),
        ([*convert, "model"], 1, "ends in .safetensors"),
        ([*convert, "missing/a.safetensors"], 2, "missing"),
        ([*convert], 2, "DESTINATION"),
        ([*convert, "a.safetensors", "--dtype", "int8"], 2, "--dtype"),
    ):
        assert message in error_of(capsys, arguments, code)
    assert sorted(tmp_path.iterdir()) == before


def test_no_huggingface_hub(files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    arguments = ["generate", "--model", "mit-han-lab/lpd_l_256"]
    assert "pip install 'lpd_ext[hub]'" in error_of(capsys, arguments, 1)


def test_starting_imports_no_hub():
    # The command must start fast, and work where the extra is not installed.
    script = "import sys, lpd_ext.cli; print('huggingface_hub' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
