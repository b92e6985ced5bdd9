"""The transformer against the published one: names, training mask and loss, dtypes."""

import json

import numpy as np
import pytest
import torch
from golden_weights import golden_state_dict

from lpd_ext import LPD, LPDConfig
from lpd_ext.models.lpd import training_mask

TINY = LPDConfig(
    grid=(3, 4), dim=32, depth=2, num_heads=1, vocab_size=11, num_classes=3, mlp_ratio=2
)
TINY_ORDER = torch.tensor([[5, 0, 7, 3, 11, 1, 2, 4, 6, 8, 9, 10], list(range(12))])


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return LPD(TINY)


@pytest.mark.parametrize("name", ["l", "xl", "xxl"])
def test_names_and_shapes_are_the_published_ones(golden_folder, name):
    keys = json.loads((golden_folder / "checkpoint_keys.json").read_text())[f"lpd_{name}_256"]
    with torch.device("meta"):
        model = LPD(LPDConfig.named(f"lpd-{name}-256"))
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == keys


@pytest.mark.parametrize("case", ["lpd_grid8", "lpd_grid8_nocfg", "lpd_grid16_20steps"])
def test_training_loss_matches_published(golden_folder, case):
    golden = np.load(golden_folder / f"{case}.npz")
    model = golden_model(golden)
    with torch.no_grad():
        loss = model.training_loss(
            torch.from_numpy(golden["train_tokens"]).long(),
            torch.from_numpy(golden["labels"]).long(),
            golden["group_sizes"].tolist(),
            torch.from_numpy(golden["orders"]).long(),
        )
    assert abs(loss.item() - float(golden["train_loss"])) < 1e-5


def golden_model(golden) -> LPD:
    c = json.loads(str(golden["config"]))
    side = c["img_size"] // c["vqgan_stride"]
    model = LPD(
        LPDConfig(
            grid=(side, side),
            dim=c["embed_dim"],
            depth=c["depth"],
            num_heads=c["num_heads"],
            vocab_size=c["vocab_size"],
            num_classes=c["num_classes"],
            mlp_ratio=c["mlp_ratio"],
        )
    )
    model.load_state_dict(golden_state_dict(model.state_dict(), c["seed"], c["scale"]))
    return model.eval()


def test_training_mask_by_hand():
    # Groups of 1, 2, 1. Rows: class, a, b, c | query A, queries B C, query D.
    expected = """
        1 0 0 0 | 0 0 0 0
        1 1 0 0 | 0 0 0 0
        1 1 1 1 | 0 0 0 0
        1 1 1 1 | 0 0 0 0
        1 0 0 0 | 1 0 0 0
        1 1 0 0 | 0 1 1 0
        1 1 0 0 | 0 1 1 0
        1 1 1 1 | 0 0 0 1
    """
    rows = [line.replace("|", "").split() for line in expected.strip().splitlines()]
    assert training_mask([1, 2, 1]).int().tolist() == [[int(x) for x in row] for row in rows]


def test_queries_of_other_groups_leave_no_trace(tiny):
    # The loss of a group must not depend on how later positions are grouped.
    tokens = torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, -1])

    def rows(sizes):
        captured = []
        tiny.head.register_forward_hook(lambda m, i, o: captured.append(o))
        tiny.training_loss(tokens, labels, sizes, TINY_ORDER)
        return captured[0]

    torch.testing.assert_close(rows([2, 3, 7])[:, :5], rows([2, 3, 1, 6])[:, :5])


def test_dropped_label_reads_the_fake_latent(tiny):
    row = tiny.embed_class(torch.tensor([-1, 2]))
    fake = tiny.z_proj_ln(tiny.fake_latent + tiny.pos_embed[:, 0])
    torch.testing.assert_close(row[0], fake)
    torch.testing.assert_close(
        row[1], tiny.z_proj_ln(tiny.class_emb.weight[2:3] + tiny.pos_embed[:, 0])
    )


def test_bfloat16_keeps_norms_residual_and_logits_wide(tiny):
    tiny.to(torch.bfloat16)
    for name, parameter in tiny.named_parameters():
        wide = "norm" in name or "z_proj_ln" in name
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name
    context = tiny.embed_context(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0, 1]]))
    assert context.dtype == torch.float32
    seen = []

    def attend(layer, qkv):
        seen.append(qkv.dtype)
        return qkv[:, :, 0].flatten(2)

    out = tiny.transform(context, attend)
    assert seen == [torch.bfloat16] * 2
    assert out.dtype == tiny.logits(out).dtype == torch.float32


def test_norm_weights_survive_the_way_to_bfloat16_and_back(tiny):
    with torch.no_grad():
        tiny.norm.weight.add_(1e-4)
    before = tiny.norm.weight.clone()
    assert torch.equal(tiny.to(torch.bfloat16).float().norm.weight, before)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"sizes": [4, 4]}, ValueError, "group_sizes.*sum to 12"),
        ({"sizes": [12, 0]}, ValueError, "group_sizes"),
        ({"sizes": [4.5, 7.5]}, TypeError, "group_sizes"),
        ({"tokens": torch.zeros(2, 11, dtype=torch.int64)}, ValueError, "tokens"),
        ({"tokens": torch.full((2, 12), 11)}, ValueError, r"tokens.*\[0, 11\)"),
        ({"tokens": torch.full((2, 12), -1)}, ValueError, "tokens"),
        ({"tokens": torch.zeros(2, 12, dtype=torch.int32)}, TypeError, "tokens.*int32"),
        ({"tokens": [[0] * 12] * 2}, TypeError, "tokens.*list"),
        ({"tokens": torch.zeros(0, 12).long(), "labels": torch.zeros(0).long(),
          "order": torch.zeros(0, 12).long()}, ValueError, "at least one image"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "class_labels"),
        ({"labels": torch.tensor([0, 3])}, ValueError, r"class_labels.*\[-1, 3\)"),
        ({"labels": torch.tensor([0, -2])}, ValueError, "class_labels"),
        ({"labels": torch.zeros(2)}, TypeError, "class_labels.*float32"),
        ({"order": torch.zeros(2, 12, dtype=torch.int64)}, ValueError, "order.*permutation"),
        ({"order": TINY_ORDER + 1}, ValueError, "order.*permutation"),
        ({"order": TINY_ORDER.int()}, TypeError, "order.*int32"),
    ],
)  # fmt: skip
def test_training_loss_refuses(tiny, change, error, match):
    good = {
        "tokens": torch.zeros(2, 12, dtype=torch.int64),
        "labels": torch.zeros(2, dtype=torch.int64),
        "sizes": [4, 8],
        "order": TINY_ORDER,
    }
    bad = {**good, **change}
    with pytest.raises(error, match=match):
        tiny.training_loss(bad["tokens"], bad["labels"], bad["sizes"], bad["order"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"dim": 33, "num_heads": 2}, ValueError),
        ({"depth": 0}, ValueError),
        ({"grid": (0, 4)}, ValueError),
        ({"grid": (4,)}, ValueError),
        ({"num_classes": 0}, ValueError),
        ({"dim": 64.0}, TypeError),
        ({"depth": True}, TypeError),
        ({"grid": 16}, TypeError),
        ({"grid": (4.0, 4)}, TypeError),
        ({"vocab_size": "8"}, TypeError),
    ],
    ids=str,
)
def test_config_refuses(change, error):
    with pytest.raises(error, match=rf"LPDConfig: `{next(iter(change))}`"):
        LPDConfig(**change)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="lpd-l-256, lpd-xl-256"):
        LPDConfig.named("lpd-s-256")
