"""What everybody gets: the Fashion-MNIST model, offline."""

from pathlib import Path

import numpy as np
import pytest
import torch

import lpd_ext
from lpd_ext.kernels import OPS, REFERENCE
from lpd_ext.pipeline import LPDPipeline

KERNELS = pytest.mark.parametrize("kernels", [OPS, REFERENCE], ids=lambda k: k.name)
PACKAGED = Path(lpd_ext.__file__).parent / "weights" / "fashion-mnist"


@pytest.fixture(scope="module")
def fashion():
    return LPDPipeline.from_pretrained("fashion-mnist")


def test_ten_named_classes(fashion):
    assert len(fashion.classes.names) == 10
    assert fashion.classes.label("Bag") == 8


def test_classes_look_their_part(fashion):
    # Trousers leave the sides empty, sneakers the upper half; bags fill both.
    names = ["trouser", "sneaker", "bag"]
    output = fashion([name for name in names for _ in range(8)])
    images = np.stack([np.asarray(image) for image in output.images]) / 255.0
    images = images.reshape(3, 8, 32, 32).mean(1)
    top, middle = images[:, :14].mean((1, 2)), images[:, :, 12:20].mean((1, 2))
    sides = images[:, :, [*range(6), *range(26, 32)]].mean((1, 2))
    assert middle[0] > 0.3
    assert sides[0] < 0.3 * sides[1:].min()
    assert top[1] < 0.7 * min(top[0], top[2])


@KERNELS
@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_and_place_do_not_matter(fashion, kernels, threads):
    # Matrices of real size, where a kernel may split rows otherwise than in a tiny model.
    torch.set_num_threads(threads)
    options = {"kernels": kernels, "num_steps": 20 if kernels is OPS else 5}
    seeds = [70 + i for i in range(8)]
    together = fashion(range(8), seed=seeds, **options)
    for shift in (0, 3, 6):  # the odd images move, the even ones become others
        rows = [(i + shift) % 8 for i in range(8)]
        mixed = fashion(
            [i if i % 2 else 9 - i for i in rows],
            seed=[seeds[i] if i % 2 else 900 + shift + i for i in rows],
            **options,
        )
        for place, i in enumerate(rows):
            assert mixed.tokens[place].equal(together.tokens[i]) == bool(i % 2)


def test_ops_and_reference_draw_the_same_image(fashion):
    by_ops = fashion([3, 9], seed=1)
    by_reference = fashion([3, 9], seed=1, kernels=REFERENCE)
    assert by_ops.tokens.equal(by_reference.tokens)


def test_small_enough_for_a_package():
    assert sum(path.stat().st_size for path in PACKAGED.glob("*")) <= 16 * 2**20


def test_a_wheel_holds_it():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    package = PACKAGED.parent.parent
    project = tomllib.loads((package.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["lpd_ext"]
    declared = {path for pattern in patterns for path in package.glob(pattern)}
    assert {path for path in PACKAGED.parent.rglob("*") if path.is_file()} <= declared
    assert package / "py.typed" in declared
