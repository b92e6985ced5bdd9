"""Loading weights: in memory of their own, once, and none of what stands beside them."""

import argparse
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from tiny_checkpoints import CONFIG, tiny_checkpoints

import lpd_ext.models.weight_file
from lpd_ext.models.checkpoint import load_lpd, read_state_dict, save_weights
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.weight_file import read_weight_file


@pytest.fixture
def files(tmp_path):
    return tiny_checkpoints(tmp_path)


def save(model, path, kind):
    """Write the weights of a model in one of the forms a file may have."""
    if kind == "safetensors":
        save_weights(model, path)
        return
    torch.save({"model": model.state_dict()}, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "compressed":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)


KINDS = pytest.mark.parametrize("kind", ["zip", "legacy", "compressed", "safetensors"])


@KINDS
def test_every_form_gives_the_weights(files, tmp_path, kind):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    save(files.model, path, kind)
    loaded = load_lpd(path, CONFIG)
    for name, tensor in files.model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name


@KINDS
def test_the_file_may_be_rewritten_in_place(files, tmp_path, kind):
    # Saving a trained model over the file it came from: a map would show the new bytes, or die.
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    save(files.model, path, kind)
    loaded, state = load_lpd(path, CONFIG), read_state_dict(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for name, tensor in files.model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
        assert state[name].equal(tensor), name


@KINDS
def test_writing_to_the_model_leaves_the_file_alone(files, tmp_path, kind):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    save(files.model, path, kind)
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in load_lpd(path, CONFIG).parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


def test_parameters_are_like_those_of_a_new_model(files):
    loaded = load_lpd(files.lpd_file, CONFIG)
    for name, parameter in loaded.named_parameters():
        assert parameter.requires_grad, name
        assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu"), name
        assert parameter.is_contiguous(), name
        assert parameter.untyped_storage().nbytes() == parameter.nbytes, name
    loaded.train()
    assert loaded.training


def test_tied_and_transposed_weights_come_apart(files, tmp_path):
    # Two names of one memory: training one would change the other.
    state = files.model.state_dict()
    state["head.weight"] = state["token_emb.weight"]
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"].T
    torch.save(state, tmp_path / "tied.pth")
    loaded = load_lpd(tmp_path / "tied.pth", CONFIG)
    assert loaded.head.weight.equal(loaded.token_emb.weight)
    assert loaded.head.weight.data_ptr() != loaded.token_emb.weight.data_ptr()
    assert loaded.blocks[0].attn.proj.weight.equal(state["blocks.0.attn.proj.weight"])
    assert loaded.blocks[0].attn.proj.weight.is_contiguous()


def test_loading_draws_no_random_numbers(files):
    before = torch.get_rng_state()
    load_lpd(files.lpd_file, CONFIG)
    assert torch.get_rng_state().equal(before)


def test_a_file_is_read_once(files, monkeypatch):
    calls, load = [], torch.load
    monkeypatch.setattr(
        lpd_ext.models.weight_file.torch,
        "load",
        lambda *args, **options: calls.append(options) or load(*args, **options),
    )
    load_lpd(files.lpd_file, CONFIG)
    assert [(call["weights_only"], call["mmap"]) for call in calls] == [(True, True)]


def test_what_the_published_training_saves_beside_the_model(files, tmp_path):
    # Its command line is an argparse.Namespace.
    content = {"model": files.model.state_dict(), "optimizer": {"state": {0: torch.zeros(3)}}}
    content |= {"epoch": 3, "scaler": {}, "args": argparse.Namespace(cfg=4.8, order="lpd")}
    torch.save(content, tmp_path / "checkpoint-last.pth")
    loaded = load_lpd(tmp_path / "checkpoint-last.pth", CONFIG)
    assert loaded.head.weight.equal(files.model.head.weight)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_refused_pickle_says_what_it_asks_for(tmp_path, legacy):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it-ran"),)

    path = tmp_path / "a.pth"
    content = {"args": argparse.Namespace(a=Hostile())}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"a.pth: .*UnpicklingError, it asks for \w+\.mkdir\)$"):
        read_weight_file(path)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(3).to_sparse(), torch.empty(3, device="meta")],
    ids=["sparse", "without memory"],
)
def test_tensors_that_are_no_weights(tmp_path, tensor):
    torch.save({"weight": tensor}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="expected tensors by name"):
        read_weight_file(tmp_path / "a.pth")


def test_an_empty_tensor(tmp_path):
    torch.save({"weight": torch.empty(0, 3), "number": torch.tensor(2.0)}, tmp_path / "a.pth")
    state = read_state_dict(tmp_path / "a.pth")
    assert state["weight"].shape == (0, 3)
    assert state["number"].item() == 2


LOAD = """
import sys
from lpd_ext.models.checkpoint import load_lpd
from lpd_ext.models.config import LPDConfig

def peak():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024

small = LPDConfig(grid=(2, 2), dim=32, depth=1, num_heads=1, vocab_size=4, num_classes=1)
load_lpd("small.pth", small)  # what the first call imports is not what is measured
before = peak()
for path in ("large.pth", "large.safetensors"):
    load_lpd(path, LPDConfig(dim=512, depth=3, num_heads=8))
    print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's accounting")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    # In a process of its own. A second copy of the weights, or reading the optimizer's state that
    # stands beside them, would take twice their size and more.
    small = LPDConfig(grid=(2, 2), dim=32, depth=1, num_heads=1, vocab_size=4, num_classes=1)
    torch.save(LPD(small).state_dict(), tmp_path / "small.pth")
    model = LPD(LPDConfig(dim=512, depth=3, num_heads=8))
    state = model.state_dict()
    nbytes = sum(tensor.nbytes for tensor in state.values())
    assert nbytes > 100e6
    momentum = {name: tensor.clone() for name, tensor in state.items()}
    torch.save({"model": state, "optimizer": momentum}, tmp_path / "large.pth")
    save_weights(model, tmp_path / "large.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    of_pth, of_both = map(int, done.stdout.split())
    assert 0.5 * nbytes < of_pth <= of_both < 1.5 * nbytes
