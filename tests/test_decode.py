"""The decode loop against the published one, image independence, editing, and its refusals."""

import json

import numpy as np
import pytest
import torch
from test_lpd import golden_model

from lpd_ext import LPD, LPDConfig, decode, group_order
from lpd_ext.decode import InvalidLogitsError
from lpd_ext.kernels import OPS, REFERENCE

KERNELS = pytest.mark.parametrize("kernels", [OPS, REFERENCE], ids=lambda k: k.name)
SIZES = [1, 3, 5, 7]
CONFIG = LPDConfig(
    grid=(4, 4), dim=64, depth=2, num_heads=2, vocab_size=19, num_classes=3, mlp_ratio=2
)


def spread_model(config):
    """Random weights, logits spread wide: near-ties would prove nothing."""
    torch.manual_seed(0)
    model = LPD(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim >= 2 else None
    return model


@pytest.fixture(scope="module")
def model():
    return spread_model(CONFIG)


def request(batch=4, seed=0, **options):
    """Arguments of `decode` for a batch of different images."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {
        "class_labels": torch.arange(batch) % 4 - 1,
        "group_sizes": SIZES,
        "order": group_order(torch.arange(batch) + seed, CONFIG.grid, SIZES),
        "uniform": torch.rand(batch, 16, dtype=torch.float64, generator=generator),
        "cfg_scale": 3.0,
    }
    return arguments | options


@KERNELS
@pytest.mark.parametrize("case", ["lpd_grid8", "lpd_grid8_nocfg", "lpd_grid16_20steps"])
def test_matches_published(golden_folder, case, kernels):
    golden = np.load(golden_folder / f"{case}.npz")
    config = json.loads(str(golden["config"]))
    tokens, logits = decode(
        golden_model(golden),
        torch.from_numpy(golden["labels"]).long(),
        golden["group_sizes"].tolist(),
        torch.from_numpy(golden["orders"]).long(),
        cfg_scale=config["cfg"],
        cfg_schedule=config["cfg_schedule"],
        temperature=0,
        return_logits=True,
        kernels=kernels,
    )
    assert tokens.tolist() == golden["tokens"].tolist()
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits"]), atol=1e-4, rtol=0)


def test_forced_tokens_repeat_the_training_pass(model):
    # Teacher forcing step by step must give the loss of the one-pass training mask.
    r = request()
    forced = torch.randint(19, (4, 16), generator=torch.Generator().manual_seed(3))
    _, logits = decode(model, **r | {"cfg_scale": 1.0}, forced_tokens=forced, return_logits=True)
    targets = forced.gather(1, r["order"])
    stepwise = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    with torch.no_grad():
        at_once = model.training_loss(forced, r["class_labels"], SIZES, r["order"])
    torch.testing.assert_close(stepwise, at_once, atol=1e-5, rtol=0)


@KERNELS
def test_an_image_does_not_see_its_neighbours(model, kernels):
    r = request()
    tokens = decode(model, **r, kernels=kernels)
    others = request(seed=50)
    for place in range(4):
        mixed = {k: v.clone() if torch.is_tensor(v) else v for k, v in others.items()}
        for name in ("class_labels", "order", "uniform"):
            mixed[name][place] = r[name][1]
        assert torch.equal(decode(model, **mixed, kernels=kernels)[place], tokens[1])


def test_per_image_settings_are_those_of_the_image_alone(model):
    settings = {
        "cfg_scale": torch.tensor([1.0, 2.0, 3.0, 8.0]),
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0]),
        "top_k": torch.tensor([0, 1, 5, 100]),
        "top_p": torch.tensor([1.0, 0.5, 0.9, 0.2]),
    }
    together = decode(model, **request(**settings))
    for image in range(4):
        same = {k: v[image : image + 1].expand(4).contiguous() for k, v in settings.items()}
        assert torch.equal(decode(model, **request(**same))[image], together[image])


def test_ops_and_reference_choose_the_same_tokens(model):
    assert torch.equal(decode(model, **request()), decode(model, **request(), kernels=REFERENCE))


def test_guidance_scales_by_schedule(model):
    r = request(forced_tokens=torch.zeros(4, 16, dtype=torch.int64), return_logits=True)
    conditional = decode(model, **r | {"cfg_scale": 1.0})[1]
    unguided = r | {"cfg_scale": 1.0, "class_labels": torch.full((4,), -1)}
    unconditional = decode(model, **unguided)[1]
    for schedule, scale in [
        ("constant", torch.full((16,), 3.0)),
        ("linear", 1 + 2 * torch.arange(16) / 16),
    ]:
        guided = decode(model, **r, cfg_schedule=schedule)[1]
        expected = unconditional + scale[:, None] * (conditional - unconditional)
        torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


def test_progress_reports_every_step(model):
    seen = []
    tokens = decode(model, **request(), progress=lambda *a: seen.append(a))
    assert [(done, total) for done, total, _ in seen] == [(k, 4) for k in range(1, 5)]
    assert [int((t[0] >= 0).sum()) for *_, t in seen] == [1, 4, 9, 16]
    assert torch.equal(seen[-1][2], tokens)


@KERNELS
def test_known_positions_stay_and_inform(model, kernels):
    known = torch.full((2, 16), -1)
    known[:, :5] = torch.arange(5)
    sizes = [3, 8]
    order = group_order(torch.arange(2), CONFIG.grid, sizes, known=known >= 0)
    options = {
        "class_labels": torch.tensor([0, 1]),
        "group_sizes": sizes,
        "order": order,
        "temperature": 0,
        "cfg_scale": 2.0,
        "return_logits": True,
        "kernels": kernels,
    }
    tokens, logits = decode(model, **options, known_tokens=known)
    assert torch.equal(tokens[:, :5], known[:, :5])
    assert logits.shape == (2, 11, 19)
    assert (tokens >= 0).all()
    known[:, :5] = known[:, :5].flip(1)
    assert not torch.equal(decode(model, **options, known_tokens=known)[1], logits)


def test_the_whole_grid_in_one_group(model):
    r = request(group_sizes=[16], order=torch.arange(16).repeat(4, 1))
    assert decode(model, **r).shape == (4, 16)


def test_more_groups_than_a_published_schedule(model):
    r = request(group_sizes=[1] * 16, order=torch.arange(16).repeat(4, 1))
    assert decode(model, **r).shape == (4, 16)


def test_no_position_known_is_as_none_given(model):
    known = torch.full((4, 16), -1)
    assert torch.equal(decode(model, **request(known_tokens=known)), decode(model, **request()))


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple], ids=["array", "tensor", "tuple"])
def test_group_sizes_of_any_integers(model, kind):
    sizes = request(group_sizes=kind(SIZES))
    assert torch.equal(decode(model, **sizes), decode(model, **request()))


@KERNELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_stay_near_float32(model, dtype, kernels):
    forced = torch.randint(19, (4, 16), generator=torch.Generator().manual_seed(3))
    r = request(forced_tokens=forced, return_logits=True, kernels=kernels, cfg_scale=1.0)
    wide = decode(model, **r)[1]
    narrow = LPD(CONFIG).eval()
    narrow.load_state_dict(model.state_dict())
    logits = decode(narrow.to(dtype), **r)[1]
    assert logits.dtype == torch.float32
    error = (logits - wide).abs().max() / wide.abs().max()
    assert error < 12 * torch.finfo(dtype).eps


def test_invalid_logits_name_image_and_step_once(model):
    broken = LPD(CONFIG).eval()
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.class_emb.weight[2] = float("nan")
    calls = []
    with pytest.raises(InvalidLogitsError, match="image 3, step 0") as caught:
        decode(broken, **request(), progress=lambda *a: calls.append(a))
    assert (caught.value.image, caught.value.step) == (3, 0)
    assert len(calls) == 4  # carried through to the end
    assert (calls[-1][2][:3] >= 0).all()  # the neighbours are unharmed


NOT_A_PERMUTATION = torch.arange(16).repeat(4, 1).index_fill(1, torch.tensor([3]), 2)


@KERNELS
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"class_labels": [0, 1, 2, 0]}, TypeError, "class_labels.*list"),
        ({"class_labels": torch.zeros(4, 1).long()}, ValueError, r"class_labels.*\[batch\]"),
        ({"class_labels": torch.tensor([0, 1, 2, 3])}, ValueError, "class_labels.*3"),
        ({"class_labels": torch.tensor([0, 1, 2, -2])}, ValueError, "class_labels"),
        ({"class_labels": torch.tensor([0, 1, 2, 0], dtype=torch.int32)}, TypeError, "class_lab"),
        ({"class_labels": torch.empty(0, dtype=torch.int64)}, ValueError, "at least one image"),
        ({"class_labels": torch.tensor(0)}, ValueError, r"class_labels.*expected \[batch\]"),
        ({"group_sizes": [1, 3, 5]}, ValueError, "sum to 16"),
        ({"group_sizes": [17, -1]}, ValueError, "group_sizes"),
        ({"group_sizes": []}, ValueError, "group_sizes"),
        ({"group_sizes": [1, 3, 5, 7.5]}, TypeError, "group_sizes.*ints"),
        ({"group_sizes": 16}, TypeError, "group_sizes.*ints"),
        ({"order": torch.arange(16).repeat(4, 1).tolist()}, TypeError, "order.*list"),
        ({"order": NOT_A_PERMUTATION}, ValueError, "order.*permutation"),
        ({"order": torch.arange(16)[None]}, ValueError, "order"),
        ({"order": torch.arange(16).repeat(4, 1).float()}, TypeError, "order"),
        ({"order": torch.zeros(4, 16, dtype=torch.int64, device="meta")}, ValueError, "device"),
        ({"uniform": None}, ValueError, "uniform"),
        ({"uniform": [[0.5] * 16] * 4}, TypeError, "uniform.*list"),
        ({"uniform": torch.rand(4, 16)}, TypeError, "uniform"),
        ({"uniform": torch.ones(4, 16, dtype=torch.float64)}, ValueError, r"\[0, 1\)"),
        ({"uniform": torch.zeros(4, 15, dtype=torch.float64)}, ValueError, "uniform"),
        ({"cfg_schedule": "cosine"}, ValueError, "cfg_schedule.*cosine"),
        ({"cfg_scale": float("nan")}, ValueError, "cfg_scale"),
        ({"cfg_scale": torch.ones(3)}, ValueError, "cfg_scale"),
        ({"cfg_scale": "4"}, TypeError, "cfg_scale"),
        ({"cfg_scale": 1e39}, ValueError, "cfg_scale"),  # infinite in float32
        ({"cfg_scale": torch.tensor([1.0, 1.0, 1.0, float("inf")])}, ValueError, "cfg_scale"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": float("inf")}, ValueError, "temperature"),
        ({"temperature": None}, TypeError, "temperature"),
        ({"temperature": torch.ones(3)}, ValueError, "temperature"),
        ({"temperature": torch.ones(4).double()}, TypeError, "temperature"),
        ({"temperature": torch.ones(4, device="meta")}, ValueError, "temperature.*device"),
        ({"temperature": torch.tensor([1, 1, 1, -1.0])}, ValueError, "temperature"),
        ({"temperature": torch.tensor([1, 1, 1, float("nan")])}, ValueError, "temperature"),
        ({"top_k": -1}, ValueError, "top_k"),
        ({"top_k": 2**63}, ValueError, "top_k"),
        ({"top_k": 2.0}, TypeError, "top_k"),
        ({"top_k": torch.tensor([1, 1, 1, -1])}, ValueError, "top_k"),
        ({"top_k": torch.ones(4)}, TypeError, "top_k"),
        ({"top_p": 1.5}, ValueError, "top_p"),
        ({"top_p": float("nan")}, ValueError, "top_p"),
        ({"top_p": torch.tensor([1, 1, 1, 1.5])}, ValueError, "top_p"),
        ({"top_p": torch.ones(1)}, ValueError, "top_p"),
        ({"forced_tokens": [[0] * 16] * 4}, TypeError, "forced_tokens"),
        ({"forced_tokens": torch.full((4, 16), 19)}, ValueError, "forced_tokens"),
        ({"known_tokens": torch.zeros(4, 16, dtype=torch.int64)}, ValueError, "unknown"),
        ({"known_tokens": torch.eye(4, 16).long() - 1}, ValueError, "order.*known"),
        ({"known_tokens": torch.ones(4, 16).tril().long() - 1}, ValueError, "same number"),
    ],
)
def test_bad_input_is_refused(model, change, error, match, kernels):
    with pytest.raises(error, match=f"^decode: argument .*{match}"):
        decode(model, **request(**change), kernels=kernels)


def test_guidance_counts_known_positions(model):
    # The schedule goes by the place in `order`: the first generated token is the sixth.
    known = torch.full((1, 16), -1)
    known[:, :5] = torch.arange(5)
    sizes = [3, 8]
    options = {
        "group_sizes": sizes,
        "order": group_order(torch.tensor([0]), CONFIG.grid, sizes, known=known >= 0),
        "uniform": torch.zeros(1, 11, dtype=torch.float64),
        "known_tokens": known,
        "forced_tokens": torch.zeros(1, 16, dtype=torch.int64),
        "return_logits": True,
    }
    conditional, unconditional, guided = (
        decode(model, torch.tensor([label]), **options, cfg_scale=scale)[1]
        for label, scale in [(1, 1.0), (-1, 1.0), (1, 3.0)]
    )
    scale = 1 + 2 * torch.arange(5, 16) / 16
    expected = unconditional + scale[:, None] * (conditional - unconditional)
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)
