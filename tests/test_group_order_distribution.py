"""`group_order` draws as the published generator does: a two-sample test of their orders.

tests/golden/orders.json holds orders that generator drew. What is compared is where a group lies:
how far its positions are from what earlier groups decoded, and from each other. Cells of one image
depend on each other, so an image is one observation, a vector of such features; the two samples are
exchangeable if their images come from one distribution, and then the distance between the means of
the samples is as large as that of any other split of all images into two such samples. The test is
a permutation test and exact, however the features are distributed.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from lpd_ext import group_order
from lpd_ext.orders import ORDERS

GOLDEN = json.loads((Path(__file__).parent / "golden" / "orders.json").read_text())
SPLITS = 4000
REJECTED = 0.001
BINS = torch.tensor([1, 2, 4, 5, 8, 9, 10, 13, 16, 25]).float()  # squared distances, from each on


def images_of(golden):
    return 300 if golden["grid"] == [16, 16] else 100


def features(orders, golden):
    """One row an image.

    For every group its mean distance to the context and the least distance inside it; for the whole
    image histograms of both, of each position's nearest neighbour there.
    """
    width = golden["grid"][1]
    cells = torch.stack([orders // width, orders % width], dim=2).float()
    columns, to_context, inside = [], [], []
    begin = 0
    for size in golden["group_sizes"]:
        context, group = cells[:, :begin], cells[:, begin : begin + size]
        if begin > 0:
            to_context.append(torch.cdist(group, context).amin(2))
            columns.append(to_context[-1].mean(1))
        if size > 1:
            inside.append((torch.cdist(group, group) + 1000 * torch.eye(size)).amin(2))
            columns.append(inside[-1].amin(1))
        begin += size
    for nearest in (torch.cat(to_context, 1), torch.cat(inside, 1)):
        bins = torch.bucketize(nearest.square().round(), BINS, right=True)
        columns += [(bins == i).float().mean(1) for i in range(len(BINS) + 1)]
    return torch.stack(columns, dim=1)


def p_value(sample, others):
    """Of the hypothesis that the images of both come from one distribution."""
    images = torch.cat([sample, others])
    spread = images.std(0)
    images = ((images - images.mean(0)) / spread)[:, spread > 0]
    generator = torch.Generator().manual_seed(0)  # the first one: not picked
    chance = torch.rand(1 + SPLITS, len(images), generator=generator).argsort(1) < len(sample)
    chance[0] = torch.arange(len(images)) < len(sample)  # the split as it is
    distances = (chance.float() @ images).square().sum(1)
    return (distances >= distances[0]).float().mean().item()


def draw(golden, first_seed, count, **changes):
    names = ("proximity_threshold", "repulsion_threshold")
    options = {name: golden[name] for name in names} | changes
    seeds = torch.arange(first_seed, first_seed + count)
    return group_order(seeds, tuple(golden["grid"]), golden["group_sizes"], **options)


@cache
def ours(index):
    """Features of the orders of the first seeds: 0, 1, 2, ..., none picked."""
    golden = GOLDEN[index]
    return features(draw(golden, 0, images_of(golden)), golden)


def name_of(index):
    golden = GOLDEN[index]
    return f"{golden['grid'][0]}-{len(golden['group_sizes'])}-{golden['repulsion_threshold']}"


@pytest.fixture(params=range(len(GOLDEN)), ids=name_of)
def index(request):
    return request.param


def test_orders_are_those_of_the_published_generator(index):
    golden = GOLDEN[index]
    assert p_value(features(torch.tensor(golden["orders"]), golden), ours(index)) > REJECTED


@pytest.mark.parametrize("name", ["random", "raster", "halton"])
def test_other_orders_are_told_from_them(index, name):
    golden = GOLDEN[index]
    other = ORDERS[name](torch.arange(len(golden["orders"])), tuple(golden["grid"]))
    assert p_value(features(other, golden), ours(index)) < REJECTED


@pytest.mark.parametrize(
    "changes", [{"proximity_threshold": 1.5}, {"repulsion_threshold": 5}], ids=str
)
def test_other_thresholds_are_told_from_them(index, changes):
    golden = GOLDEN[index]
    other = draw(golden, 10_000, len(golden["orders"]), **changes)
    assert p_value(features(other, golden), ours(index)) < REJECTED
