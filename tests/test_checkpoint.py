"""Weights in and out: round trips, and files that are damaged, foreign or hostile."""

import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lpd_ext.models.checkpoint import (
    load_lpd,
    load_vq,
    load_weights,
    read_state_dict,
    resize_pos_embed,
    save_weights,
)
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel

CONFIG = LPDConfig(
    grid=(4, 4), dim=32, depth=1, num_heads=1, vocab_size=7, num_classes=3, mlp_ratio=2
)
VQ_CONFIG = VQConfig(
    in_channels=1,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=8,
    codebook_size=7,
    codebook_dim=4,
    norm_groups=4,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LPD(CONFIG)


@pytest.fixture
def vq():
    torch.manual_seed(0)
    return VQModel(VQ_CONFIG)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model, state):
    current = model.state_dict()
    assert current.keys() == state.keys()
    for name, tensor in state.items():
        assert current[name].equal(tensor), name


class TestRoundTrip:
    def test_safetensors_remember_their_configuration(self, model, vq, tmp_path):
        save_weights(model, tmp_path / "lpd.safetensors")
        save_weights(vq, tmp_path / "vq.safetensors")
        loaded, loaded_vq = (
            load_lpd(tmp_path / "lpd.safetensors"),
            load_vq(tmp_path / "vq.safetensors"),
        )
        assert loaded.config == CONFIG
        assert loaded_vq.config == VQ_CONFIG
        assert_same(loaded, snapshot(model))
        assert_same(loaded_vq, snapshot(vq))
        assert not loaded.training
        assert not loaded_vq.training

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_size_on_disk_float32_in_memory(self, model, tmp_path, dtype):
        path = tmp_path / "lpd.safetensors"
        save_weights(model, path, dtype)
        assert {tensor.dtype for tensor in read_state_dict(path).values()} == {dtype}
        assert_same(load_lpd(path), {k: v.to(dtype).float() for k, v in snapshot(model).items()})

    @pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}])
    def test_pth_at_the_top_or_under_model(self, model, tmp_path, wrap):
        # The published files carry optimizer and epoch beside "model".
        torch.save(wrap(model.state_dict()), tmp_path / "lpd.pth")
        assert_same(load_lpd(tmp_path / "lpd.pth", CONFIG), snapshot(model))

    def test_published_tokenizer_carries_a_usage_window(self, vq, tmp_path):
        state = vq.state_dict() | {"quantize.codebook_used": torch.zeros(65536)}
        torch.save({"model": state}, tmp_path / "vq.pt")
        assert_same(load_vq(tmp_path / "vq.pt", VQ_CONFIG), snapshot(vq))

    def test_given_configuration_wins(self, model, tmp_path):
        # A model of a larger grid starts from a checkpoint of a smaller one.
        save_weights(model, tmp_path / "lpd.safetensors")
        larger = load_lpd(tmp_path / "lpd.safetensors", replace(CONFIG, grid=(8, 8)))
        assert larger.pos_embed.shape == (1, 65, 32)
        assert larger.pos_embed[:, 0].equal(model.pos_embed[:, 0])

    def test_saving_replaces_the_file_in_one_step(self, model, tmp_path, monkeypatch):
        path = tmp_path / "lpd.safetensors"
        save_weights(model, path)
        before = path.read_bytes()

        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with torch.no_grad():
            model.head.weight.zero_()
        with pytest.raises(OSError, match="No space"):
            save_weights(model, path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


class TestDamagedFiles:
    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    def test_missing(self, tmp_path, name):
        with pytest.raises(FileNotFoundError, match=name):
            read_state_dict(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=name):
            load_lpd(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=name):
            load_vq(tmp_path / name, VQ_CONFIG)

    @pytest.mark.parametrize("kept", [0, 1, 8, 100, 0.5, 0.99])
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_truncated(self, model, tmp_path, kind, kept):
        # An interrupted download, cut in the header, in the tensors or just before the end.
        path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
        if kind == "safetensors":
            save_weights(model, path)
        else:
            torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
        whole = path.read_bytes()
        path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
        with pytest.raises(ValueError, match=rf"checkpoint .*{path.name}: truncated"):
            load_lpd(path, CONFIG)

    @pytest.mark.parametrize(
        "content",
        [b"<!DOCTYPE html><html>", b"\x89PNG\r\n\x1a\n", b".", b"\x80\x02.", b"]]]]a.", b"PK\3\4"],
        ids=["html", "png", "empty stack", "empty pickle", "bad opcodes", "zip header"],
    )
    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    def test_foreign_bytes(self, tmp_path, name, content):
        # An unpickler fails on foreign bytes in many ways; the caller should see one.
        path = tmp_path / name
        path.write_bytes(content * 3)
        with pytest.raises(ValueError, match=rf"checkpoint .*{name}: truncated"):
            read_state_dict(path)

    @pytest.mark.parametrize(
        "content",
        [
            [torch.zeros(1)],
            {"weight": torch.zeros(1), "epoch": 3},
            7,
            {"model": [1]},
            {0: torch.zeros(1)},
        ],
        ids=["list", "number among tensors", "number", "model is a list", "a number as name"],
    )
    def test_something_else_inside(self, tmp_path, content):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="expected tensors by name"):
            read_state_dict(tmp_path / "a.pth")

    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
    def test_a_hostile_pickle_runs_nothing(self, tmp_path, legacy):
        trace = tmp_path / "it-ran"

        class Hostile:
            def __reduce__(self):
                return os.mkdir, (str(trace),)

        path = tmp_path / "a.pth"
        torch.save(
            {"model": {"weight": Hostile()}}, path, _use_new_zipfile_serialization=not legacy
        )
        with pytest.raises(ValueError, match="no checkpoint of weights alone"):
            read_state_dict(path)
        path.write_bytes(pickle.dumps(Hostile(), protocol=2))
        with pytest.raises(ValueError, match="no checkpoint of weights alone"):
            read_state_dict(path)
        assert not trace.exists()
        pickle.loads(path.read_bytes())  # the trap itself works
        assert trace.exists()


class TestConfigurationInTheFile:
    def test_none(self, model, tmp_path):
        # Weights say all but the heads, which only the published widths and depths tell.
        save_file(model.state_dict(), tmp_path / "a.safetensors")
        torch.save(model.state_dict(), tmp_path / "a.pth")
        for name in ("a.safetensors", "a.pth"):
            with pytest.raises(ValueError, match=rf"{name}: num_heads is not .* as `config`$"):
                load_lpd(tmp_path / name)

    def test_of_another_kind(self, model, vq, tmp_path):
        save_weights(model, tmp_path / "lpd.safetensors")
        save_weights(vq, tmp_path / "vq.safetensors")
        with pytest.raises(ValueError, match="holds no LPDConfig"):
            load_lpd(tmp_path / "vq.safetensors")
        with pytest.raises(ValueError, match="holds no VQConfig"):
            load_vq(tmp_path / "lpd.safetensors")

    @pytest.mark.parametrize(
        "config", ["{", "[]", "7", '{"dim": -1}', '{"dim": 64.0}', '{"grid": 4}', '{"width": 3}']
    )
    def test_damaged(self, model, tmp_path, config):
        save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"config": config})
        with pytest.raises(ValueError, match="holds no LPDConfig"):
            load_lpd(tmp_path / "a.safetensors")


class TestAllOrNothing:
    def refuse(self, model, state, message):
        before = snapshot(model)
        with pytest.raises(ValueError, match=message):
            load_weights(model, state, source="checkpoint x.pth")
        assert_same(model, before)

    def altered(self, model, **changes):
        """Weights unlike the model's, with some entries replaced (None removes)."""
        state = {name: tensor + 1 for name, tensor in model.state_dict().items()} | changes
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    def test_missing_and_unexpected_names(self, model):
        state = self.altered(model, **{"norm.bias": None, "head.bias": torch.zeros(7)})
        message = r"^checkpoint x\.pth: not a checkpoint of this LPD: missing norm\.bias; "
        self.refuse(model, state, message + r"unexpected head\.bias$")

    def test_long_lists_are_cut(self, model):
        self.refuse(model, {}, r"missing .*blocks\.0.* and \d+ more; unexpected none$")

    def test_the_other_model(self, model, vq):
        self.refuse(model, vq.state_dict(), "not a checkpoint of this LPD: missing .*; unexpected")
        self.refuse(vq, model.state_dict(), "not a checkpoint of this VQModel")

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("head.weight", (8, 32)),  # another vocabulary
            ("class_emb.weight", (4, 32)),  # other classes
            ("blocks.0.attn.qkv.weight", (32, 96)),  # transposed, of the same size
            ("norm.weight", (1, 32)),  # would broadcast
            ("pos_embed", (1, 17, 16)),  # another width
            ("pos_embed", (1, 13, 32)),  # from a grid that is no square
            ("pos_embed", (1, 1, 32)),  # no positions at all
            ("pos_embed", (17, 32)),  # no batch dimension
            ("pos_embed", (17,)),
        ],
        ids=str,
    )
    def test_wrong_shape(self, model, name, shape):
        state = self.altered(model, **{name: torch.zeros(shape)})
        wanted = list(model.state_dict()[name].shape)
        message = f"{name}: expected {wanted}, got ".replace("[", r"\[").replace("]", r"\]")
        self.refuse(model, state, message)

    def test_wrong_depth(self, model):
        deeper = LPD(replace(CONFIG, depth=2))
        self.refuse(model, deeper.state_dict(), r"missing none; unexpected blocks\.1\.")
        self.refuse(deeper, model.state_dict(), r"missing blocks\.1\..*; unexpected none")

    def test_the_given_dict_is_left_alone(self, model):
        larger = LPD(replace(CONFIG, grid=(6, 6)))
        state = model.state_dict()
        load_weights(larger, state)
        assert state["pos_embed"].shape == (1, 17, 32)

    def test_dtype_of_the_model_stays(self, model):
        half = {name: tensor.half() for name, tensor in snapshot(model).items()}
        load_weights(model, half)
        assert model.dtype == torch.float32


class TestResizePosEmbed:
    def test_as_torch_resizes_images(self):
        # Bicubic with torch's defaults, one channel at a time, the class entry untouched.
        generator = torch.Generator().manual_seed(0)
        old = torch.randn(1, 17, 3, generator=generator)
        new = resize_pos_embed(old, (6, 9))
        assert new.shape == (1, 55, 3)
        assert new[:, 0].equal(old[:, 0])
        for channel in range(3):
            image = old[0, 1:, channel].reshape(1, 1, 4, 4)
            expected = F.interpolate(image, size=(6, 9), mode="bicubic")
            torch.testing.assert_close(new[0, 1:, channel].reshape(6, 9), expected[0, 0])

    def test_rows_stay_rows(self):
        # A ramp down the rows: mixing up height and width would turn it.
        ramp = torch.arange(4.0).repeat_interleave(4)[None, :, None]
        new = resize_pos_embed(torch.cat([torch.zeros(1, 1, 1), ramp], dim=1), (8, 8))
        image = new[0, 1:, 0].reshape(8, 8)
        torch.testing.assert_close(image, image[:, :1].expand(8, 8))
        assert (image[1:, 0] > image[:-1, 0]).all()

    def test_dtype_stays(self):
        assert resize_pos_embed(torch.randn(1, 5, 2).half(), (4, 4)).dtype == torch.float16

    @pytest.mark.parametrize("grid", [(4, 4), (2, 8)])
    def test_same_length_is_left_alone(self, grid):
        old = torch.randn(1, 17, 2)
        assert resize_pos_embed(old, grid) is old

    def test_no_square_is_left_alone(self):
        old = torch.randn(1, 13, 2)
        assert resize_pos_embed(old, (4, 4)) is old
