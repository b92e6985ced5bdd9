"""What the README promises works as written."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from test_pretrained import FakeHub
from tiny_checkpoints import publish, tiny_checkpoints

from lpd_ext import LPD, LPDConfig
from lpd_ext.cli import _parser, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_ten_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert (tmp_path / "bag.png").stat().st_size > 100
    assert len(BLOCKS[0].strip().splitlines()) <= 10


def test_loop_runs(tmp_path, monkeypatch):
    # With a small model in place of the 337 M parameters the text names.
    monkeypatch.chdir(tmp_path)
    small = LPDConfig(dim=32, depth=1, num_heads=1, vocab_size=64)
    monkeypatch.setattr(LPDConfig, "named", staticmethod({"lpd-l-256": small}.__getitem__))
    torch.save({"model": LPD(small).state_dict()}, "lpd_l_256.pth")
    names = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    assert names["tokens"].shape == (2, 256)


def test_published_checkpoints_load(tmp_path, monkeypatch):
    # With small models under the published names, and a hub that is a folder.
    publish(monkeypatch)
    monkeypatch.chdir(tmp_path)
    files = tiny_checkpoints(tmp_path)
    served = {
        "mit-han-lab/lpd_l_256": [files.lpd_file.rename("lpd_l_256.pth")],
        "FoundationVision/LlamaGen": [files.vq_file.rename("vq_ds16_c2i.pt")],
    }
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(served, {}))
    names = {}
    exec(compile(BLOCKS[2].replace("[207, 88]", "[0, 1]"), "README.md", "exec"), names)
    assert len(names["images"]) == 2


def test_published_command_lines_are_complete():
    commands = re.findall(r"^lpd-ext ([^#\n]+)", README, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["generate", "generate", "convert"]
    for command in commands:
        _parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("block", BLOCKS)
def test_imported_names_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert targets == ["image", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_command_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"`lpd-ext ([^`]+)`", README)
    assert len(commands) >= 2
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert (tmp_path / "steps.gif").exists()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
