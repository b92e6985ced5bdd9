"""A planned decode against `decode` and the published one, and what an image's bits depend on."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
from test_decode import CONFIG, SIZES, request
from test_lpd import golden_model
from tiny_pipeline import tiny_pipeline

from lpd_ext import (
    LPD,
    DecodePlan,
    LPDConfig,
    LPDPipeline,
    decode,
    group_order,
    group_sizes,
    philox,
)
from lpd_ext.decode import InvalidLogitsError

FORCED = torch.randint(19, (4, 16), generator=torch.Generator().manual_seed(3))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline().model


def call(**options):
    """Arguments of a plan for `SIZES`."""
    arguments = request(**options)
    del arguments["group_sizes"]
    return arguments


def images(arguments, chosen):
    """The same arguments for some of the images."""
    return {k: v[chosen] if torch.is_tensor(v) else v for k, v in arguments.items()}


def all_buffers(plan):
    """Every storage a plan owns, each whole."""
    own = vars(plan._buffers).values()
    tensors = chain(*(value if isinstance(value, list) else [value] for value in own))
    return [tensor for tensor in tensors if torch.is_tensor(tensor)]


PUBLISHED = ["lpd_grid8", "lpd_grid8_nocfg", "lpd_grid16_20steps"]


@pytest.mark.parametrize("case", PUBLISHED)
def test_matches_published(golden_folder, case, variant):
    assert_matches_published(golden_folder / f"{case}.npz")


def assert_matches_published(path, **options):
    """Assert that a plan with these options gives the tokens and logits of a golden file."""
    golden = np.load(path)
    config = json.loads(str(golden["config"]))
    labels = torch.from_numpy(golden["labels"]).long()
    model, sizes = golden_model(golden).eval(), golden["group_sizes"].tolist()
    tokens, logits = DecodePlan(model, len(labels), sizes, guided=config["cfg"] != 1, **options)(
        labels,
        torch.from_numpy(golden["orders"]).long(),
        cfg_scale=config["cfg"],
        cfg_schedule=config["cfg_schedule"],
        temperature=0,
        return_logits=True,
    )
    assert tokens.tolist() == golden["tokens"].tolist()
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits"]), atol=1e-4, rtol=0)


def test_packaged_model_draws_the_tokens_of_decode():
    # Matrices of real size: more features than one block of any kernel.
    pipeline = LPDPipeline.from_pretrained("fashion-mnist")
    config, seeds = pipeline.model.config, torch.arange(6)
    sizes = group_sizes(config.seq_len, 12)
    arguments = {
        "class_labels": torch.tensor([0, 3, 9, 5, -1, 7]),
        "order": group_order(seeds, config.grid, sizes),
        "uniform": philox.uniform(seeds, config.seq_len),
        "cfg_scale": 3.0,
        "top_p": 0.95,
    }
    plan = DecodePlan(pipeline.model, 6, sizes)
    assert plan(**arguments).equal(decode(pipeline.model, group_sizes=sizes, **arguments))


SETTINGS = {
    "plain": {},
    "constant schedule": {"cfg_schedule": "constant"},
    "scale an image": {"cfg_scale": torch.tensor([1.0, 2.0, 3.0, 8.0])},
    "unguided": {"cfg_scale": 1.0},
    "greedy": {"temperature": 0, "uniform": None},
    "filters": {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    "filters an image": {
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0]),
        "top_k": torch.tensor([0, 1, 5, 100]),
        "top_p": torch.tensor([1.0, 0.5, 0.9, 0.2]),
    },
    "forced": {"forced_tokens": FORCED},
}


@pytest.mark.parametrize("sizes", [SIZES, [16], [1] * 16, [7, 1, 8]], ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_float32_is_decode(model, sizes, settings):
    assert_is_decode(model, sizes, settings)


def test_rows_of_no_whole_blocks():
    torch.manual_seed(0)
    config = LPDConfig((4, 4), dim=80, depth=2, num_heads=1, vocab_size=19, num_classes=3)
    assert config.dim % 32 != 0
    assert_is_decode(LPD(config).eval(), SIZES, {})


def assert_is_decode(model, sizes, settings, **options):
    """Assert that a plan with these options draws the tokens of `decode` from its logits."""
    r = request(**settings) | {"group_sizes": sizes, "order": any_order(4)}
    expected, expected_logits = decode(model, **r, return_logits=True)
    del r["group_sizes"]
    guided = torch.is_tensor(r["cfg_scale"]) or r["cfg_scale"] != 1
    plan = DecodePlan(model, 4, sizes, guided=guided, **options)
    tokens, logits = plan(**r, return_logits=True)
    assert tokens.equal(expected)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
    assert plan(**r).equal(expected)


def any_order(batch):
    """Any order that suits every list of group sizes."""
    return torch.stack([torch.randperm(16, generator=seeded(image)) for image in range(batch)])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@DTYPES
def test_guidance_planned_for_but_not_asked_for(model, dtype):
    # One plan serves both; scale 1 is then computed as a scale.
    arguments = call(cfg_scale=1.0, forced_tokens=FORCED, return_logits=True)
    guided = DecodePlan(model, 4, SIZES, dtype=dtype)(**arguments)[1]
    unguided = DecodePlan(model, 4, SIZES, guided=False, dtype=dtype)(**arguments)[1]
    torch.testing.assert_close(guided, unguided, atol=1e-5, rtol=1e-5)
    per_image = call(cfg_scale=torch.ones(4), forced_tokens=FORCED, return_logits=True)
    assert DecodePlan(model, 4, SIZES, dtype=dtype)(**per_image)[1].equal(guided)


@pytest.mark.parametrize("forced", [False, True])
def test_known_positions(model, forced):
    known = torch.full((4, 16), -1)
    known[:, :5] = torch.arange(20).view(4, 5) % 19
    sizes = [3, 8]
    order = group_order(torch.arange(4), CONFIG.grid, sizes, known=known >= 0)
    arguments = {
        "class_labels": torch.tensor([0, 1, -1, 2]),
        "order": order,
        "uniform": torch.rand(4, 11, dtype=torch.float64, generator=seeded(0)),
        "cfg_scale": 2.0,
        "known_tokens": known,
        "forced_tokens": FORCED if forced else None,
        "return_logits": True,
    }
    plan = DecodePlan(model, 5, sizes)  # and one place for padding
    expected, expected_logits = decode(model, group_sizes=sizes, **arguments)
    tokens, logits = plan(**arguments)
    assert tokens.equal(expected)
    assert tokens[:, :5].equal(known[:, :5])
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)


def test_progress_reports_every_step_of_the_images_asked_for(model):
    seen, expected = [], []
    arguments = images(call(), slice(3))
    tokens = DecodePlan(model, 4, SIZES)(**arguments, progress=lambda *a: seen.append(a))
    decode(model, group_sizes=SIZES, **arguments, progress=lambda *a: expected.append(a))
    assert [call[:2] for call in seen] == [(done, 4) for done in range(1, 5)]
    assert all(now[2].equal(then[2]) for now, then in zip(seen, expected, strict=True))
    assert seen[-1][2].equal(tokens)


class TestBits:
    """An image's logits are the same bits wherever it stands."""

    @DTYPES
    @pytest.mark.parametrize("guided", [True, False])
    def test_place_neighbours_batch_size_and_padding(self, model, dtype, guided, variant):
        scale = torch.tensor([1.0, 2.0, 3.0, 8.0]) if guided else 1.0
        arguments = call(cfg_scale=scale, forced_tokens=FORCED, return_logits=True)
        tokens, logits = DecodePlan(model, 4, SIZES, guided=guided, dtype=dtype)(**arguments)
        for batch_size, chosen in [
            (4, [3, 1, 0, 2]),
            (4, [2]),  # padded
            (7, [1, 3, 3]),
            (1, [3]),
            (2, [0, 2]),
            (33, [3, 0, 1, 2] * 8 + [2]),  # more rows than one tile of any kernel
        ]:
            plan = DecodePlan(model, batch_size, SIZES, guided=guided, dtype=dtype)
            some_tokens, some_logits = plan(**images(arguments, chosen))
            assert some_tokens.equal(tokens[chosen])
            assert some_logits.equal(logits[chosen])

    @DTYPES
    def test_threads_and_repetition(self, model, dtype, variant):
        arguments = call(return_logits=True)
        plan = DecodePlan(model, 4, SIZES, dtype=dtype)
        tokens, logits = plan(**arguments)
        for threads in (2, 1, 2):
            torch.set_num_threads(threads)
            again = plan(**arguments)
            assert again[0].equal(tokens)
            assert again[1].equal(logits)

    @DTYPES
    @pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1, 2**40])
    def test_nothing_is_read_before_it_is_written(self, model, dtype, garbage):
        # Caches beyond their length, rows of another step, the call before.
        plan = DecodePlan(model, 5, SIZES, dtype=dtype)
        arguments = call(return_logits=True)
        tokens, logits = plan(**arguments)
        for buffer in all_buffers(plan):
            whole = buffer.is_floating_point() or garbage in (-1, 2**40)
            buffer.fill_(garbage if whole else -(2**62))
        again = plan(**arguments)
        assert again[0].equal(tokens)
        assert again[1].equal(logits)

    def test_one_call_leaves_nothing_to_the_next(self, model):
        plan = DecodePlan(model, 4, SIZES)
        first = plan(**call())
        plan(**call(seed=9, forced_tokens=FORCED, top_k=1, temperature=torch.full((4,), 0.1)))
        assert plan(**call()).equal(first)

    def test_inside_and_outside_inference_mode(self, model):
        # Tensors made in that mode cannot be written outside of it.
        expected = DecodePlan(model, 4, SIZES)(**call())
        with torch.inference_mode():
            plan = DecodePlan(model, 4, SIZES)
            assert plan(**call()).equal(expected)
        assert plan(**call()).equal(expected)


def test_the_buffers_are_all_that_is_poisoned(model):
    # The test above proves nothing if a buffer is missing from the list.
    plan = DecodePlan(model, 3, SIZES)
    buffers = all_buffers(plan)
    assert sum(buffer.nbytes for buffer in buffers) == plan.shape.nbytes
    storages = {buffer.untyped_storage().data_ptr() for buffer in buffers}
    for step in plan._steps:
        assert step.logits.untyped_storage().data_ptr() in storages


def test_invalid_logits_name_image_and_step(model):
    broken = tiny_pipeline().model
    with torch.no_grad():
        broken.class_emb.weight[2] = float("nan")
    plan = DecodePlan(broken, 5, SIZES)
    calls = []
    with pytest.raises(InvalidLogitsError, match="image 3, step 0") as caught:
        plan(**call(), progress=lambda *a: calls.append(a))
    assert (caught.value.image, caught.value.step) == (3, 0)
    expected = decode(model, **images(request(), slice(3)))
    assert calls[-1][2][:3].equal(expected)  # the neighbours are unharmed
    assert plan(**images(call(), slice(3))).equal(expected)  # and so is the plan
