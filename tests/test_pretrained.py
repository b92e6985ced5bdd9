"""Pipelines from published files and names on the hub, with a hub that is a folder."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny_checkpoints import CONFIG, SETTINGS, VQ_CONFIG, publish, tiny_checkpoints
from tiny_pipeline import tiny_pipeline

from lpd_ext import pretrained
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.hub import PUBLISHED_VQ
from lpd_ext.models.vq import VQModel
from lpd_ext.pipeline import LPDPipeline


@pytest.fixture
def files(tmp_path, monkeypatch):
    publish(monkeypatch)
    return tiny_checkpoints(tmp_path)


class FakeHub:
    """huggingface_hub as far as it is used; `served` and `cached` map repositories to files."""

    def __init__(self, served, cached):
        self.served, self.cached, self.online, self.asked = served, cached, True, []

    def list_repo_files(self, repo):
        self.asked.append(repo)
        self._connect()
        return ["README.md", *(path.name for path in self.served[repo])]

    def hf_hub_download(self, repo, file):
        self.asked.append(f"{repo} {file}")
        self._connect()
        return str(next(path for path in self.served[repo] if path.name == file))

    def snapshot_download(self, repo, *, local_files_only, allow_patterns):
        assert local_files_only
        if repo not in self.cached:
            raise FileNotFoundError("no snapshot")
        return str(self.cached[repo])

    def _connect(self):
        if not self.online:
            raise ConnectionError("cannot reach the hub\nas HF_HUB_OFFLINE is set")


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    """A hub with the published repositories; nothing of it cached."""
    vq_file = tmp_path / "vq_ds16_c2i.pt"
    vq_file.write_bytes(files.vq_file.read_bytes())
    other = tmp_path / "vq_ds8_c2i.pt"
    other.write_bytes(b"")
    served = {"a-lab/lpd_tiny": [files.lpd_file], "FoundationVision/LlamaGen": [vq_file, other]}
    fake = FakeHub(served, {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def cache(hub, tmp_path, repo):
    """Put a repository into the cache, as snapshots are laid out: links to blobs."""
    folder = tmp_path / "cache" / repo.replace("/", "--")
    folder.mkdir(parents=True)
    for path in hub.served[repo]:
        (folder / path.name).symlink_to(path)
    hub.cached[repo] = folder


def assert_same(pipeline, files):
    for model, loaded in ((files.model, pipeline.model), (files.vq, pipeline.vq)):
        for name, tensor in model.state_dict().items():
            assert loaded.state_dict()[name].equal(tensor), name


class TestFiles:
    def test_a_transformer_and_its_tokenizer(self, files):
        pipeline = LPDPipeline.from_pretrained(files.lpd_file, vq=files.vq_file)
        assert_same(pipeline, files)
        assert (pipeline.model.config, pipeline.vq.config) == (CONFIG, VQ_CONFIG)
        assert (pipeline.defaults, pipeline.classes.names) == (SETTINGS, None)
        assert pipeline([2]).images[0].size == (8, 8)

    def test_configurations_may_be_given(self, tmp_path):
        # Not published: the weights alone do not say the heads, nor the groups of the norms.
        small = tiny_pipeline()
        torch.save(small.model.state_dict(), tmp_path / "a.pth")
        torch.save(small.vq.state_dict(), tmp_path / "b.pt")
        pipeline = LPDPipeline.from_pretrained(
            str(tmp_path / "a.pth"),
            vq=str(tmp_path / "b.pt"),
            config=small.model.config,
            vq_config=small.vq.config,
        )
        assert pipeline.defaults.num_steps == 16  # at most seq_len
        options = {"num_steps": 5, "cfg_scale": 2.5, "repulsion_threshold": 1}
        assert pipeline([0], **options).tokens.equal(small([0]).tokens)
        with pytest.raises(ValueError, match="num_heads is not in the weights"):
            LPDPipeline.from_pretrained(tmp_path / "a.pth", vq=tmp_path / "b.pt")

    def test_another_grid_resizes_the_position_embedding(self, files):
        config = replace(CONFIG, grid=(8, 8))
        pipeline = LPDPipeline.from_pretrained(files.lpd_file, vq=files.vq_file, config=config)
        assert pipeline.model.pos_embed.shape == (1, 65, 64)
        assert pipeline.model.pos_embed[:, 0].equal(files.model.pos_embed[:, 0])
        assert pipeline([1], num_steps=4).images[0].size == (16, 16)

    def test_a_tokenizer_for_a_folder(self, files, tmp_path):
        LPDPipeline(files.model, files.vq, ("a", "b", "c")).save_pretrained(tmp_path / "model")
        other = VQModel(VQ_CONFIG)
        torch.save(other.state_dict(), tmp_path / "other.pt")
        pipeline = LPDPipeline.from_pretrained(tmp_path / "model", vq=tmp_path / "other.pt")
        assert pipeline.vq.state_dict()["quant_conv.weight"].equal(other.quant_conv.weight)
        assert pipeline.classes.names == ("a", "b", "c")

    def test_a_tokenizer_is_needed(self, files):
        with pytest.raises(FileNotFoundError, match=rf"`vq` \(--vq\).*{PUBLISHED_VQ}"):
            LPDPipeline.from_pretrained(files.lpd_file)

    def test_a_tokenizer_of_fewer_tokens(self, files, tmp_path):
        torch.save(VQModel(replace(VQ_CONFIG, codebook_size=7)).state_dict(), tmp_path / "b.pt")
        message = r"lpd_tiny.pth draws from 19 tokens, but the codebook of .*b.pt has 7"
        with pytest.raises(ValueError, match=message):
            LPDPipeline.from_pretrained(files.lpd_file, vq=tmp_path / "b.pt")

    def test_files_in_each_others_place(self, files):
        with pytest.raises(ValueError, match=r"vq_tiny.pt: not a checkpoint of an LPD: missing "):
            LPDPipeline.from_pretrained(files.vq_file, vq=files.lpd_file)
        with pytest.raises(ValueError, match=r"lpd_tiny.pth: not a checkpoint of a VQModel: miss"):
            LPDPipeline.from_pretrained(files.lpd_file, vq=files.lpd_file)

    def test_weights_of_another_architecture(self, files, tmp_path):
        state = files.model.state_dict()
        state["blocks.0.attn.wqkv.weight"] = state.pop("blocks.0.attn.qkv.weight")
        torch.save(state, tmp_path / "a.pth")
        message = (
            r"a.pth: not .* LPD: missing blocks.0.attn.qkv.weight; unexpected blocks.0.attn.wq"
        )
        with pytest.raises(ValueError, match=message):
            LPDPipeline.from_pretrained(tmp_path / "a.pth", vq=files.vq_file)

    def test_a_truncated_file(self, files):
        content = files.vq_file.read_bytes()
        files.vq_file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"vq_tiny.pt: truncated"):
            LPDPipeline.from_pretrained(files.lpd_file, vq=files.vq_file)

    def test_a_hostile_pickle_runs_nothing(self, files, tmp_path):
        trace = tmp_path / "it-ran"

        class Hostile:
            def __reduce__(self):
                return os.mkdir, (str(trace),)

        torch.save({"model": {"pos_embed": Hostile()}}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="no checkpoint of weights alone"):
            LPDPipeline.from_pretrained(tmp_path / "a.pth", vq=files.vq_file)
        assert not trace.exists()

    @pytest.mark.parametrize(
        "name", ["missing.pth", "models/missing.safetensors", "../x/y", "a b/c"]
    )
    def test_a_path_that_is_none(self, hub, files, name):
        with pytest.raises(FileNotFoundError, match=rf"`name_or_path`: .*, got '{name}'$"):
            LPDPipeline.from_pretrained(name)
        with pytest.raises(FileNotFoundError, match=rf"{name}: no such file, and no name on the h"):
            LPDPipeline.from_pretrained(files.lpd_file, vq=name)
        assert hub.asked == []

    def test_another_kind_of_file(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"")
        with pytest.raises(ValueError, match=r"a.zip: expected a file that ends in .pth, .pt, "):
            LPDPipeline.from_pretrained(tmp_path / "a.zip")


class TestHub:
    def test_a_published_name(self, hub, files):
        pipeline = LPDPipeline.from_pretrained("a-lab/lpd_tiny")
        assert_same(pipeline, files)
        assert hub.asked == [
            "a-lab/lpd_tiny",
            "a-lab/lpd_tiny lpd_tiny.pth",
            "FoundationVision/LlamaGen vq_ds16_c2i.pt",
        ]

    def test_a_file_of_a_repository(self, hub, files):
        pipeline = LPDPipeline.from_pretrained("a-lab/lpd_tiny/lpd_tiny.pth", vq=files.vq_file)
        assert_same(pipeline, files)
        assert hub.asked == ["a-lab/lpd_tiny lpd_tiny.pth"]

    def test_a_tokenizer_from_the_hub(self, hub, files):
        assert_same(LPDPipeline.from_pretrained(files.lpd_file, vq=PUBLISHED_VQ), files)

    def test_offline_from_the_cache(self, hub, files, tmp_path):
        for repo in hub.served:
            cache(hub, tmp_path, repo)
        hub.online = False
        assert_same(LPDPipeline.from_pretrained("a-lab/lpd_tiny"), files)

    @pytest.mark.parametrize(
        ("cached", "download"),
        [
            ([], "a-lab/lpd_tiny"),
            (["a-lab/lpd_tiny"], "FoundationVision/LlamaGen vq_ds16_c2i.pt"),
        ],
        ids=["nothing cached", "no tokenizer cached"],
    )
    def test_offline_and_not_in_the_cache(self, hub, tmp_path, cached, download):
        for repo in cached:
            cache(hub, tmp_path, repo)
        hub.online = False
        with pytest.raises(FileNotFoundError) as failure:
            LPDPipeline.from_pretrained("a-lab/lpd_tiny")
        message = str(failure.value)
        assert message.startswith("checkpoint ")
        assert "cache of the hub" in message
        assert "ConnectionError: cannot reach the hub" in message
        assert f"`hf download {download}`, or unset HF_HUB_OFFLINE" in message
        assert "\n" not in message

    @pytest.mark.parametrize("online", [True, False])
    @pytest.mark.parametrize("names", [["a.pth", "b.safetensors"], []], ids=["two", "none"])
    def test_which_file_is_meant(self, hub, tmp_path, online, names):
        for name in names:
            (tmp_path / name).write_bytes(b"")
        hub.served["a-lab/many"] = [tmp_path / name for name in names]
        cache(hub, tmp_path, "a-lab/many")
        hub.online = online
        found = "a.pth, b.safetensors" if names else "none"
        message = rf"a-lab/many: expected one file .*, found {found}; say which: a-lab/many/FILE"
        with pytest.raises(ValueError, match=message):
            LPDPipeline.from_pretrained("a-lab/many")

    def test_no_huggingface_hub(self, files, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(ImportError, match=r"a-lab/lpd_tiny.*pip install 'lpd_ext\[hub\]'"):
            LPDPipeline.from_pretrained("a-lab/lpd_tiny")
        assert_same(LPDPipeline.from_pretrained(files.lpd_file, vq=files.vq_file), files)


OFFLINE = """
from lpd_ext import LPDPipeline
from lpd_ext.models.config import PUBLISHED, LPDConfig

PUBLISHED["lpd-tiny"] = LPDConfig((4, 4), 64, 2, 2, 19, 3)
for name in ("a-lab/lpd_tiny", "mit-han-lab/lpd_l_256"):
    try:
        print(LPDPipeline.from_pretrained(name).model.config.dim)
    except FileNotFoundError as error:
        print(error)
"""


@pytest.mark.skipif(not importlib.util.find_spec("huggingface_hub"), reason="an extra")
def test_the_cache_of_huggingface_hub_itself(files, tmp_path):
    # In a process of its own: the library reads its environment when it is imported.
    for repo, source, name in (
        ("a-lab/lpd_tiny", files.lpd_file, "lpd_tiny.pth"),
        ("FoundationVision/LlamaGen", files.vq_file, "vq_ds16_c2i.pt"),
    ):
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (folder / "snapshots" / "f447b83").mkdir(parents=True)
        (folder / "snapshots" / "f447b83" / name).write_bytes(source.read_bytes())
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("f447b83")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    cached, missing = done.stdout.splitlines()
    assert cached == "64"
    assert "mit-han-lab/lpd_l_256: neither here nor in the cache" in missing
    assert "OfflineModeIsEnabled" in missing


def test_settings_of_the_published_models():
    steps = {256: 20, 1024: 48}
    for name in ("lpd-l-256", "lpd-xl-256", "lpd-xxl-256", "lpd-l-512", "lpd-xl-512"):
        config = LPDConfig.named(name)
        settings = pretrained.published_settings(config)
        assert settings.num_steps == steps[config.seq_len]
        assert (settings.cfg_schedule, settings.order) == ("linear", "locality")
    assert pretrained.published_settings(LPDConfig.named("lpd-l-256")).cfg_scale == 4.8
    assert pretrained.published_settings(CONFIG) is None
