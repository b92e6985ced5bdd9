"""Orders that are given: files as the published generator writes them, and tensors."""

import json

import pytest
import torch
from tiny_pipeline import SEQ_LEN, tiny_pipeline

from lpd_ext.decode import decode
from lpd_ext.kernels import OPS, REFERENCE
from lpd_ext.orders import read_orders
from lpd_ext.philox import uniform
from lpd_ext.schedule import group_sizes
from lpd_ext.settings import GenerationSettings


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def read(tmp_path):
    """Write a text and read the orders of a 2x2 grid from it."""
    path = tmp_path / "orders.json"

    def write_and_read(text, count=None):
        path.write_text(text)
        return read_orders(path, (2, 2), count).tolist()

    return write_and_read


def some_orders(count):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(SEQ_LEN, generator=generator) for _ in range(count)])


class TestFiles:
    def test_published_orders(self, golden_folder, tmp_path):
        for published in json.loads((golden_folder / "orders.json").read_text()):
            path = tmp_path / "orders.json"
            path.write_text(json.dumps(published["orders"]))
            orders = read_orders(path, tuple(published["grid"]))
            assert orders.dtype == torch.int64
            assert orders.tolist() == published["orders"]

    @pytest.mark.parametrize(
        "text", ["[[0,1,2,3],[3,1,2,0]]", " [ [0, 1,2,3 ]\n,\t[3,1,2,0]]\n"], ids=["dense", "loose"]
    )
    def test_white_space(self, read, text):
        assert read(text) == [[0, 1, 2, 3], [3, 1, 2, 0]]

    def test_only_the_first(self, read):
        # A published file holds 60000: what no image needs is not read.
        assert read("[[0,1,2,3],[3,1,2,0],[0,0", 2) == [[0, 1, 2, 3], [3, 1, 2, 0]]
        assert read("[[0,1,2,3],[3,1,2,0]]", 1) == [[0, 1, 2, 3]]

    @pytest.mark.parametrize(
        ("text", "got"),
        [
            ("", "no end behind 0 entries"),
            ("{}", "no end behind 0 entries"),
            ("[]", "Expecting value"),
            ("[[0,1,2,3]", "no end behind 1 entries"),
            ("[[0,1,2,3],", "Expecting value"),
            ("[[0,1,2,3],]", "Expecting value"),
            ("[[0,1,2,3][0,1,2,3]]", "no end behind 1 entries"),
            ("[[0,1,2,3]] [", "no end behind 1 entries"),
            ("[[0,1,2,3],[0,1", "Expecting ','"),
            ("[0,1,2,3]", "entry 0: 0"),
            ('[[0,1,2,3],{"a":1}]', "entry 1: {'a': 1}"),
            ("[[0,1,2,3],[0,1,2,true]]", r"entry 1: \[0, 1, 2, True\]"),
            ("[[0,1,2,3.0]]", r"entry 0: \[0, 1, 2, 3.0\]"),
            ("[[0,1,2,3],[]]", "entry 1: 0 positions, 0 different ones, None to None"),
            ("[[0,1,2,3],[0,1,2]]", "entry 1: 3 positions, 3 different ones, 0 to 2"),
            ("[[0,1,2,2]]", "entry 0: 4 positions, 3 different ones, 0 to 2"),
            ("[[1,2,3,4]]", "entry 0: 4 positions, 4 different ones, 1 to 4"),
            (f"[[0,1,2,{10**30}]]", f"entry 0: 4 positions, 4 different ones, 0 to {10**30}"),
            ("[" * 100_000, "recursion"),
        ],
        ids=lambda text: text[:24],
    )
    def test_damaged(self, read, text, got):
        wanted = r"orders.json: expected a JSON list of permutations of the 4 positions of a 2x2 gr"
        with pytest.raises(ValueError, match=rf"{wanted}id, got .*{got}"):
            read(text)

    def test_no_text(self, tmp_path):
        (tmp_path / "orders.json").write_bytes(b"[[0,1,2,3],\xff")
        with pytest.raises(ValueError, match=r"orders.json: expected .* got 'utf-8' codec"):
            read_orders(tmp_path / "orders.json", (2, 2))

    def test_too_few(self, read):
        with pytest.raises(ValueError, match=r"orders.json: expected at least 3 orders, got 2"):
            read("[[0,1,2,3],[3,1,2,0]]", 3)

    def test_none(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"missing.json: no such file"):
            read_orders(tmp_path / "missing.json", (2, 2))


class TestPipeline:
    @pytest.mark.parametrize("kernels", [OPS, REFERENCE], ids=lambda k: k.name)
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_image_i_is_decoded_in_order_i(self, pipeline, kernels, batch_size):
        orders, sizes, seeds = some_orders(4), group_sizes(SEQ_LEN, 5), torch.tensor([7, 8, 9])
        expected = decode(
            pipeline.model,
            torch.tensor([2, -1, 0]),
            sizes,
            orders[:3],
            uniform=uniform(seeds, SEQ_LEN),
            cfg_scale=2.5,
        )
        output = pipeline([2, -1, 0], seed=7, order=orders, kernels=kernels, batch_size=batch_size)
        assert output.tokens.equal(expected)
        assert output.settings.order == "given"
        step = torch.arange(5).repeat_interleave(torch.tensor(sizes))
        assert output.steps.gather(1, orders[:3]).equal(step.expand(3, -1))

    def test_the_next_call_draws_its_own(self, pipeline):
        before = pipeline([1]).tokens
        pipeline([1], order=some_orders(1))
        assert pipeline([1]).tokens.equal(before)

    @pytest.mark.parametrize(
        ("order", "error", "message"),
        [
            (some_orders(2), ValueError, r"`order`: .*here \[3 or more, 16\], got \[2, 16\]"),
            (some_orders(3)[:, :9], ValueError, r"got \[3, 9\]"),
            (some_orders(3)[0], ValueError, r"images or more, seq_len"),
            (some_orders(3).int(), TypeError, "int64"),
            (some_orders(3).clamp(max=14), ValueError, "permutation of 0..15"),
            ("given", TypeError, "`order`: expected a tensor"),
            ("spiral", ValueError, "spiral"),
        ],
        ids=["too few", "too short", "one row", "int32", "no permutation", "none", "name"],
    )
    def test_refusals(self, pipeline, order, error, message):
        with pytest.raises(error, match=message):
            pipeline([0, 1, 2], order=order)

    def test_a_mistake_behind_the_images_is_nobodys(self, pipeline):
        orders = some_orders(3)
        orders[2] = 0
        assert pipeline([0, 1], order=orders, num_steps=2).tokens.shape == (2, SEQ_LEN)

    def test_settings_say_so(self):
        assert GenerationSettings(order="given").order == "given"
