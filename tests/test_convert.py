"""Checkpoints to safetensors: the same weights, proved by hashes, or no file at all."""

import hashlib
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from tiny_checkpoints import CONFIG, SETTINGS, VQ_CONFIG, publish, tiny_checkpoints

import lpd_ext.convert
from lpd_ext.convert import convert
from lpd_ext.models.checkpoint import load_lpd, load_vq, read_state_dict
from lpd_ext.models.vq import VQModel
from lpd_ext.pipeline import LPDPipeline


@pytest.fixture
def files(tmp_path, monkeypatch):
    publish(monkeypatch)
    return tiny_checkpoints(tmp_path)


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


class TestOneFile:
    def test_holds_weights_configuration_and_source(self, files, tmp_path):
        (done,) = convert(files.lpd_file, tmp_path / "a.safetensors")
        state = read_state_dict(tmp_path / "a.safetensors")
        assert state.keys() == files.model.state_dict().keys()
        for name, tensor in files.model.state_dict().items():
            assert state[name].equal(tensor), name
        about = metadata(tmp_path / "a.safetensors")
        assert json.loads(about["config"])["num_heads"] == 2
        assert about["source"] == "lpd_tiny.pth"
        sha256 = hashlib.sha256(files.lpd_file.read_bytes()).hexdigest()
        assert (about["source_sha256"], done.source_sha256) == (sha256, sha256)
        assert load_lpd(tmp_path / "a.safetensors").config == CONFIG

    def test_a_tokenizer(self, files, tmp_path):
        convert(files.vq_file, tmp_path / "vq.safetensors")
        assert load_vq(tmp_path / "vq.safetensors").config == VQ_CONFIG
        names = read_state_dict(tmp_path / "vq.safetensors").keys()
        assert names == files.vq.state_dict().keys()  # without the training's usage window

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_dtype(self, files, tmp_path, dtype):
        convert(files.lpd_file, tmp_path / "a.safetensors", dtype=dtype)
        state = read_state_dict(tmp_path / "a.safetensors")
        for name, tensor in files.model.state_dict().items():
            assert state[name].dtype == dtype
            assert state[name].equal(tensor.to(dtype)), name
        # Converting again keeps what is stored.
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
        assert read_state_dict(tmp_path / "b.safetensors")["head.weight"].dtype == dtype

    def test_given_configuration(self, files, tmp_path):
        larger = replace(CONFIG, grid=(6, 8))
        convert(files.lpd_file, tmp_path / "a.safetensors", config=larger)
        assert load_lpd(tmp_path / "a.safetensors").pos_embed.shape == (1, 49, 64)

    def test_over_its_own_source(self, files, tmp_path):
        convert(files.lpd_file, tmp_path / "a.safetensors")
        convert(tmp_path / "a.safetensors", tmp_path / "a.safetensors", dtype=torch.bfloat16)
        state = read_state_dict(tmp_path / "a.safetensors")
        assert state["head.weight"].equal(files.model.head.weight.bfloat16())


class TestFolder:
    @pytest.mark.parametrize("exists", [False, True])
    def test_is_what_from_pretrained_reads(self, files, tmp_path, exists):
        folder = tmp_path / "model"
        if exists:
            folder.mkdir()
            (folder / "lpd.safetensors").write_text("old")
            (folder / "notes.txt").write_text("mine")
        convert(files.lpd_file, folder, vq=files.vq_file)
        pipeline = LPDPipeline.from_pretrained(folder)
        expected = LPDPipeline.from_pretrained(files.lpd_file, vq=files.vq_file)
        assert pipeline.defaults == SETTINGS
        assert pipeline([0, 2]).tokens.equal(expected([0, 2]).tokens)
        wanted = ["lpd.safetensors", "pipeline.json", "vq.safetensors"]
        assert left_in(folder) == sorted(wanted + (["notes.txt"] if exists else []))

    @pytest.mark.parametrize("exists", [False, True])
    def test_a_failure_leaves_what_was_there(self, files, tmp_path, monkeypatch, exists):
        folder = tmp_path / "model"
        if exists:
            folder.mkdir()
            (folder / "lpd.safetensors").write_text("old")
        calls, replace_file = [], os.replace

        def full(source, target):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            replace_file(source, target)

        monkeypatch.setattr("lpd_ext.files.os.replace", full)
        with pytest.raises(OSError, match="No space"):
            convert(files.lpd_file, folder, vq=files.vq_file)
        assert folder.exists() == exists
        if exists:
            assert left_in(folder) == ["lpd.safetensors"]
            assert (folder / "lpd.safetensors").read_text() == "old"


class TestRefusals:
    def refuse(self, error, message, tmp_path, *args, **options):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(error, match=message):
            convert(*args, **options)
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before

    @pytest.mark.parametrize("way", ["another value", "another name"])
    @pytest.mark.parametrize("old", [False, True])
    def test_what_reads_back_otherwise(self, files, tmp_path, monkeypatch, way, old):
        # A disk that loses a bit: only reading again can tell.
        write = lpd_ext.convert.write_safetensors

        def lose(path, tensors, metadata):
            tensors = dict(tensors)
            weight = tensors.pop("norm.weight")
            if way == "another value":
                weight.view(torch.int32)[3] ^= 1
                tensors["norm.weight"] = weight
            write(path, tensors, metadata)

        monkeypatch.setattr(lpd_ext.convert, "write_safetensors", lose)
        if old:
            (tmp_path / "a.safetensors").write_text("old")
        message = "norm.weight reads back otherwise" if way == "another value" else "other names"
        destination = tmp_path / "a.safetensors"
        self.refuse(OSError, message, tmp_path, files.lpd_file, destination)

    def test_a_tokenizer_of_fewer_tokens(self, files, tmp_path):
        torch.save(VQModel(replace(VQ_CONFIG, codebook_size=7)).state_dict(), tmp_path / "b.pt")
        message = "lpd_tiny.pth draws from 19 tokens, but the codebook of .*b.pt has 7"
        arguments = (files.lpd_file, tmp_path / "model")
        self.refuse(ValueError, message, tmp_path, *arguments, vq=tmp_path / "b.pt")
        assert not (tmp_path / "model").exists()

    def test_destinations(self, files, tmp_path):
        message = r"`destination`: expected a file that ends in .safetensors, or `vq`"
        self.refuse(ValueError, message, tmp_path, files.lpd_file, tmp_path / "model")
        options = {"vq": files.vq_file}
        self.refuse(OSError, "missing", tmp_path, files.lpd_file, tmp_path / "missing/m", **options)
        self.refuse(OSError, "lpd_tiny", tmp_path, files.lpd_file, files.lpd_file, **options)

    def test_dtypes(self, files, tmp_path):
        state = files.model.state_dict()
        torch.save(state | {"norm.bias": state["norm.bias"].half()}, tmp_path / "mixed.pth")
        torch.save({name: t.double() for name, t in state.items()}, tmp_path / "double.pth")
        destination = tmp_path / "a.safetensors"
        for name in ("mixed.pth", "double.pth"):
            self.refuse(TypeError, f"`dtype`.*{name}", tmp_path, tmp_path / name, destination)
        self.refuse(
            TypeError, "float64", tmp_path, files.lpd_file, destination, dtype=torch.float64
        )
        convert(tmp_path / "double.pth", destination, dtype=torch.float32)
        assert load_lpd(destination).head.weight.equal(files.model.head.weight)

    def test_weights_of_another_architecture(self, files, tmp_path):
        torch.save({"tok_embeddings.weight": torch.zeros(3)}, tmp_path / "a.pth")
        destination = tmp_path / "a.safetensors"
        message = r"a.pth: not .* of an LPD: missing pos_embed, .*found tok_embeddings.weight"
        self.refuse(ValueError, message, tmp_path, tmp_path / "a.pth", destination)

    def test_a_hostile_pickle(self, tmp_path):
        trace = tmp_path / "it-ran"

        class Hostile:
            def __reduce__(self):
                return os.mkdir, (str(trace),)

        torch.save({"model": {"pos_embed": Hostile()}}, tmp_path / "a.pth")
        arguments = (tmp_path / "a.pth", tmp_path / "a.safetensors")
        self.refuse(ValueError, "no checkpoint of weights alone", tmp_path, *arguments)
        assert not trace.exists()
