"""From class labels to images: what an image depends on, what a call refuses, folders."""

import json

import numpy as np
import pytest
import torch
from tiny_pipeline import CLASS_NAMES, GRID, SEQ_LEN, tiny_pipeline

import lpd_ext.pipeline
from lpd_ext import philox
from lpd_ext.decode import InvalidLogitsError, decode
from lpd_ext.kernels import OPS, REFERENCE
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.ops import group_order
from lpd_ext.orders import ORDERS
from lpd_ext.pipeline import LPDPipeline
from lpd_ext.schedule import group_sizes
from lpd_ext.settings import GenerationSettings

KERNELS = pytest.mark.parametrize("kernels", [OPS, REFERENCE], ids=lambda k: k.name)


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def pixels(output):
    return [np.asarray(image).tolist() for image in output.images]


class TestOneImage:
    def test_is_decode_with_order_and_uniform_of_its_seed(self, pipeline):
        # The pipeline adds nothing of its own to the documented recipe.
        sizes, seeds = group_sizes(SEQ_LEN, 5), torch.tensor([7, 8])
        expected = decode(
            pipeline.model,
            torch.tensor([2, -1]),
            sizes,
            group_order(seeds, GRID, sizes, repulsion_threshold=1),
            uniform=philox.uniform(seeds, SEQ_LEN),
            cfg_scale=2.5,
        )
        output = pipeline([2, -1], seed=7)
        assert output.tokens.equal(expected)
        assert output.tokens.dtype == torch.int64
        assert output.seeds == [7, 8]
        assert output.class_labels == [2, -1]

    def test_shows_what_the_tokenizer_decodes(self, pipeline):
        output = pipeline([1])
        with torch.no_grad():
            expected = pipeline.vq.decode(output.tokens, GRID)[0, 0].clamp(-1, 1)
        shown = torch.from_numpy(np.asarray(output.images[0]).astype(np.float32)) / 127.5 - 1
        assert output.images[0].size == (8, 8)
        torch.testing.assert_close(shown, expected, atol=0.5 / 127.5 + 1e-6, rtol=0)

    def test_rgb(self):
        image = tiny_pipeline(channels=3)([0]).images[0]
        assert (image.mode, image.size) == ("RGB", (8, 8))

    @pytest.mark.parametrize("order", sorted(ORDERS))
    def test_steps_say_when_a_position_was_decoded(self, pipeline, order):
        # The animation relies on it: as many positions a step as its group has.
        output = pipeline([0, 1], order=order, num_steps=6)
        sizes = group_sizes(SEQ_LEN, 6)
        assert [torch.bincount(row).tolist() for row in output.steps] == [sizes, sizes]
        if order == "raster":
            assert output.steps.equal(output.steps.sort(1).values)

    @pytest.mark.parametrize(
        ("option", "values"),
        [
            ("class_labels", ([0], [2])),
            ("seed", (0, 1)),
            ("num_steps", (2, 16)),
            ("order", ("locality", "raster")),
            ("repulsion_threshold", (0, 3)),
            ("cfg_scale", (1.0, 6.0)),
            ("cfg_schedule", ("linear", "constant")),
            ("temperature", (0.5, 2.0)),
            ("top_k", (0, 2)),
            ("top_p", (1.0, 0.2)),
        ],
    )
    def test_every_option_arrives(self, pipeline, option, values):
        # An option that is dropped on its way would change nothing.
        first, second = (
            pipeline(**({"class_labels": [0, 1, 2]} | {option: value})) for value in values
        )
        assert not torch.equal(first.tokens[:1], second.tokens[:1])

    def test_none_is_the_default_of_the_model(self, pipeline):
        explicit = pipeline([1], num_steps=5, cfg_scale=2.5, order="locality", temperature=1.0)
        assert pipeline([1]).tokens.equal(explicit.tokens)
        assert pipeline([1]).settings == pipeline.defaults == explicit.settings


class TestIndependence:
    @KERNELS
    @pytest.mark.parametrize("cfg_scale", [1.0, 3.0], ids=["unguided", "guided"])
    def test_neighbours_and_place_do_not_matter(self, pipeline, kernels, cfg_scale):
        options = {"batch_size": 4, "cfg_scale": cfg_scale, "kernels": kernels}
        labels, seeds = [0, 1, 2, -1], [10, 11, 12, 13]
        together = pipeline(labels, seed=seeds, **options)
        swapped = pipeline(labels[::-1], seed=seeds[::-1], **options)
        assert together.tokens.equal(swapped.tokens.flip(0))
        assert pixels(together) == pixels(swapped)[::-1]
        for i in range(4):
            alone = pipeline([labels[i]], seed=seeds[i], **options)
            assert alone.tokens[0].equal(together.tokens[i])
            assert pixels(alone)[0] == pixels(together)[i]

    def test_a_partial_last_batch_is_padded(self, pipeline, monkeypatch):
        # 5 images in batches of 2: the fifth must see a batch of 2, or its bits could differ.
        sizes = []

        def spy(model, class_labels, *args, **kwargs):
            sizes.append(len(class_labels))
            return decode(model, class_labels, *args, **kwargs)

        monkeypatch.setattr(lpd_ext.pipeline, "decode", spy)
        options = {"batch_size": 2, "kernels": REFERENCE}
        output = pipeline([0, 1, 2, 0, 1], **options)
        assert sizes == [2, 2, 2]
        assert len(output.images) == len(output.tokens) == len(output.steps) == 5
        assert output.seeds == [0, 1, 2, 3, 4]
        one = pipeline([1], seed=4, **options)
        assert one.tokens[0].equal(output.tokens[4])
        assert pixels(one)[0] == pixels(output)[4]

    def test_default_batch_is_all_up_to_64(self, pipeline):
        assert pipeline([0] * 3, num_steps=1).batch_size == 3
        assert pipeline([0] * 65, num_steps=1).batch_size == 64

    def test_same_call_same_bits(self, pipeline):
        first, second = (pipeline([0, 2], seed=5) for _ in range(2))
        assert first.tokens.equal(second.tokens)
        assert pixels(first) == pixels(second)

    @pytest.mark.parametrize(
        ("option", "values"),
        [
            ("cfg_scale", [1.5, 4.0, 2.0]),
            ("temperature", [0.0, 0.7, 1.3]),
            ("top_k", [0, 3, 1]),
            ("top_p", [1.0, 0.5, 0.0]),
        ],
    )
    @pytest.mark.parametrize(
        "kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"]
    )
    def test_one_value_an_image(self, pipeline, option, values, kind):
        # Across a batch border, so that the values must travel with their images.
        output = pipeline([0, 1, 2], batch_size=2, **{option: kind(values)})
        for i, value in enumerate(values):
            alone = pipeline([i], seed=i, batch_size=2, **{option: value})
            assert alone.tokens[0].equal(output.tokens[i])

    @pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["array", "tensor"])
    def test_a_number_without_dimensions_is_a_number(self, pipeline, kind):
        # What indexing an array or a tensor gives.
        numbers = {"cfg_scale": 2.0, "top_k": 7, "seed": 3, "num_steps": 4, "batch_size": 2}
        wrapped = {name: kind(value) for name, value in numbers.items()}
        output, expected = pipeline([0, 1], **wrapped), pipeline([0, 1], **numbers)
        assert (output.settings, output.seeds) == (expected.settings, [3, 4])
        assert output.tokens.equal(expected.tokens)
        scalar = pipeline([0], cfg_scale=np.float32(2), seed=np.int64(3))
        assert type(scalar.settings.cfg_scale) is float

    def test_guidance_off_for_one_image_only(self, pipeline):
        # A sequence always runs the unconditional half; scale 1 must still mean no guidance.
        output = pipeline([0, 1], cfg_scale=[1.0, 3.0], batch_size=2)
        assert output.tokens[0].equal(pipeline([0], cfg_scale=1.0, batch_size=2).tokens[0])

    def test_kernels_agree(self, pipeline):
        options = {"top_k": 9, "top_p": 0.9, "temperature": 0.9}
        by_ops = pipeline([0, 1, 2, -1], **options)
        by_reference = pipeline([0, 1, 2, -1], kernels=REFERENCE, **options)
        assert by_ops.tokens.equal(by_reference.tokens)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_narrow_dtypes(self, dtype):
        pipeline = tiny_pipeline().to("cpu", dtype)
        assert pipeline.model.dtype == dtype
        assert next(pipeline.vq.parameters()).dtype == torch.float32
        labels, seeds = [0, 1, 2], [4, 5, 6]
        together = pipeline(labels, seed=seeds)
        backwards = pipeline(labels[::-1], seed=seeds[::-1])
        assert together.tokens.equal(backwards.tokens.flip(0))


class TestLabels:
    def test_numbers_and_names(self, pipeline):
        by_name = pipeline(["bag", "t-SHIRT", None, "unconditional"])
        assert by_name.class_labels == [2, 0, -1, -1]
        assert by_name.tokens.equal(pipeline(torch.tensor([2, 0, -1, -1])).tokens)

    def test_numpy_integers(self, pipeline):
        assert pipeline([np.int64(2), np.int32(0)]).class_labels == [2, 0]

    def test_a_model_without_names(self, pipeline):
        nameless = LPDPipeline(pipeline.model, pipeline.vq)
        assert nameless([1, "unconditional"], num_steps=2).class_labels == [1, -1]
        with pytest.raises(ValueError, match="names of unconditional, got 'bag'"):
            nameless(["bag"])
        assert nameless.classes.name(1) == "1"


def test_progress_counts_over_all_batches(pipeline):
    calls = []
    output = pipeline(
        [0, 1, 2],
        batch_size=2,
        num_steps=4,
        progress=lambda done, total, tokens: calls.append((done, total, tokens)),
    )
    assert [call[:2] for call in calls] == [(i + 1, 8) for i in range(8)]
    assert [len(call[2]) for call in calls] == [2] * 4 + [1] * 4  # padding is not shown
    for step in range(4):
        known = calls[4 + step][2] >= 0
        assert known.equal(output.steps[2:] <= step)
    assert calls[-1][2].equal(output.tokens[2:])


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"class_labels": [3]}, ValueError, r"`class_labels`: .*\[0, 3\).*got 3"),
            ({"class_labels": [-2]}, ValueError, "`class_labels`: .*got -2"),
            ({"class_labels": ["boat"]}, ValueError, "ankle boot, bag, unconditional, got 'boat'"),
            ({"class_labels": "bag"}, TypeError, "`class_labels`: .*sequence.*got 'bag'"),
            ({"class_labels": 2}, TypeError, "`class_labels`"),
            ({"class_labels": [True]}, TypeError, "`class_labels`: .*got True"),
            ({"class_labels": [1.0]}, TypeError, "`class_labels`: .*got 1.0"),
            ({"class_labels": []}, ValueError, "`class_labels`: .*at least one"),
            ({"num_steps": 0}, ValueError, "`num_steps`"),
            ({"num_steps": 17}, ValueError, "`num_steps`: expected 1 to 16, got 17"),
            ({"num_steps": 2.0}, TypeError, "`num_steps`"),
            ({"order": "spiral"}, ValueError, "`order`: .*locality.*got 'spiral'"),
            ({"order": 3}, TypeError, "`order`"),
            ({"cfg_schedule": "cosine"}, ValueError, "`cfg_schedule`: .*linear.*got 'cosine'"),
            ({"repulsion_threshold": -1}, ValueError, "`repulsion_threshold`"),
            ({"cfg_scale": float("nan")}, ValueError, "`cfg_scale`: .*finite.*got nan"),
            ({"cfg_scale": 1e39}, ValueError, "`cfg_scale`"),  # infinite in float32
            ({"cfg_scale": "3"}, TypeError, "`cfg_scale`"),
            ({"cfg_scale": [1.0]}, ValueError, "`cfg_scale`: .*each of 2 images, got 1"),
            ({"cfg_scale": [1.0, float("inf")]}, ValueError, r"`cfg_scale\[1\]`: .*got inf"),
            ({"temperature": -0.1}, ValueError, "`temperature`: .*got -0.1"),
            ({"temperature": True}, TypeError, "`temperature`"),
            ({"temperature": [1.0, -1.0]}, ValueError, r"`temperature\[1\]`"),
            ({"top_k": -1}, ValueError, "`top_k`"),
            ({"top_k": 2.5}, TypeError, "`top_k`: .*integer.*got 2.5"),
            ({"top_k": [1, 2, 3]}, ValueError, "`top_k`: .*got 3"),
            ({"top_p": 1.5}, ValueError, "`top_p`"),
            ({"top_p": [0.5, None]}, TypeError, r"`top_p\[1\]`"),
            ({"seed": [1]}, ValueError, "`seed`: expected one for each of 2 images, got 1"),
            ({"seed": 0.5}, TypeError, "`seed`"),
            ({"seed": [0.5, 1]}, TypeError, "`seed`"),
            ({"seed": 2**63 - 1}, ValueError, "`seed`: .*64-bit"),  # the second image's overflows
            ({"batch_size": 0}, ValueError, "`batch_size`"),
            ({"batch_size": "8"}, TypeError, "`batch_size`"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_bad_arguments(self, pipeline, arguments, error, message):
        with pytest.raises(error, match=message):
            pipeline(**({"class_labels": [0, 1]} | arguments))

    def test_an_invalid_image_is_named_by_its_place_in_the_call(self):
        # decode only knows its batch; the caller counts over all of them.
        pipeline = tiny_pipeline()
        with torch.no_grad():
            pipeline.model.class_emb.weight[2] = float("nan")
        with pytest.raises(InvalidLogitsError, match=r"image 4, step 0: .*NaN"):
            pipeline([0, 1, 0, 1, 2, 0], batch_size=3)
        assert len(pipeline([0, 1]).images) == 2

    def test_other_runtime_errors_pass_unchanged(self, pipeline):
        def fail(done, total, tokens):
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match=r"^stop$"):
            pipeline([0], progress=fail)

    def test_to(self, pipeline):
        with pytest.raises(TypeError, match=r"`dtype`: .*got torch\.int8"):
            pipeline.to(dtype=torch.int8)
        with pytest.raises(ValueError, match=r"`device`: .*got 'abacus'"):
            pipeline.to("abacus")
        with pytest.raises(ValueError, match=r"`device`: .*got 'cuda:99'"):
            pipeline.to("cuda:99")
        assert pipeline.to() is pipeline

    def test_parts_that_do_not_fit(self, pipeline):
        small = VQModel(VQConfig(channels=32, channel_mult=(1,), codebook_size=18))
        with pytest.raises(ValueError, match=r"`vq`: .*19 tokens"):
            LPDPipeline(pipeline.model, small)
        two = VQModel(VQConfig(in_channels=2, channels=32, channel_mult=(1,), codebook_size=19))
        with pytest.raises(ValueError, match="`vq`: expected 1 or 3 channels"):
            LPDPipeline(pipeline.model, two)
        for names, message in [
            (["a", "b"], "3 names, got 2"),
            (["a", "b", "A"], "different names"),
            (["a", "b", "Unconditional"], "different names"),
        ]:
            with pytest.raises(ValueError, match=message):
                LPDPipeline(pipeline.model, pipeline.vq, names)
        with pytest.raises(TypeError, match="`class_names`"):
            LPDPipeline(pipeline.model, pipeline.vq, ["a", "b", 3])
        with pytest.raises(ValueError, match="`num_steps`"):
            LPDPipeline(pipeline.model, pipeline.vq, defaults=GenerationSettings(num_steps=17))
        defaults = GenerationSettings(num_steps=4, cfg_scale=(1.0, 2.0))
        with pytest.raises(ValueError, match="`defaults`: expected numbers"):
            LPDPipeline(pipeline.model, pipeline.vq, defaults=defaults)

    def test_default_steps_fit_a_small_grid(self):
        # 20 steps do not exist for 4 positions.
        config = LPDConfig(grid=(2, 2), dim=32, depth=1, num_heads=1, vocab_size=4, num_classes=1)
        vq = VQModel(VQConfig(channels=32, channel_mult=(1,), codebook_size=4))
        assert LPDPipeline(LPD(config), vq).defaults.num_steps == 4


class TestFolders:
    def test_round_trip(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path / "model")
        loaded = LPDPipeline.from_pretrained(tmp_path / "model")
        assert loaded.classes.names == CLASS_NAMES
        assert loaded.defaults == pipeline.defaults
        assert loaded([0, 1]).tokens.equal(pipeline([0, 1]).tokens)
        assert LPDPipeline.from_pretrained(str(tmp_path / "model")).defaults == pipeline.defaults

    def test_half_size_storage(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path, dtype=torch.float16)
        loaded = LPDPipeline.from_pretrained(tmp_path)
        assert loaded.model.dtype == torch.float32
        expected = pipeline.model.head.weight.half().float()
        assert loaded.model.head.weight.equal(expected)

    def test_unknown_name(self):
        with pytest.raises(FileNotFoundError, match=r"`name_or_path`: .*got 'imagenet'$"):
            LPDPipeline.from_pretrained("imagenet")

    @pytest.mark.parametrize("name", ["lpd.safetensors", "vq.safetensors", "pipeline.json"])
    def test_missing_file(self, pipeline, tmp_path, name):
        pipeline.save_pretrained(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"without {name}$"):
            LPDPipeline.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "JSONDecodeError"),
            ("[]", "TypeError"),
            ('{"class_names": null}', "KeyError: 'defaults'"),
            ('{"class_names": null, "defaults": {"steps": 3}}', "steps"),
            ('{"class_names": null, "defaults": {"top_p": 3}}', "top_p"),
            ('{"class_names": ["a"], "defaults": {"num_steps": 3}}', "3 names"),
        ],
        ids=["truncated", "list", "no defaults", "unknown setting", "bad setting", "one name"],
    )
    def test_damaged_description(self, pipeline, tmp_path, text, message):
        pipeline.save_pretrained(tmp_path)
        (tmp_path / "pipeline.json").write_text(text)
        with pytest.raises(ValueError, match=rf"pipeline\.json is damaged.*{message}"):
            LPDPipeline.from_pretrained(tmp_path)

    def test_damaged_weights(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        weights = tmp_path / "lpd.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"lpd\.safetensors: truncated"):
            LPDPipeline.from_pretrained(tmp_path)

    def test_a_folder_that_cannot_be_made(self, pipeline, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(OSError, match="file"):
            pipeline.save_pretrained(tmp_path / "file" / "model")

    def test_description_is_readable(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        described = json.loads((tmp_path / "pipeline.json").read_text())
        assert described["class_names"] == list(CLASS_NAMES)
        assert described["defaults"]["cfg_scale"] == 2.5
