"""Floors of the GPU: the published table of the design notes, and one case by hand."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lpd_ext import LPDConfig, VQConfig, VQModel, group_sizes

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import roofline
from roofline import H200, Gpu, Step, Work
from roofline_images import image_floor, image_work

# "Floors per image" in the design notes of this project (PERFORMANCE.md): ms of the weights and of
# everything at batch 1, images a second at batch 64; guidance on, bfloat16, without the tokenizer.
PUBLISHED = [
    ("lpd-l-256", 20, "2.97", "3.05", "1262"),
    ("lpd-xl-256", 20, "6.78", "6.93", "548"),
    ("lpd-xxl-256", 20, "12.9", "13.1", "288"),
    ("lpd-l-512", 48, "7.12", "7.92", "291"),
    ("lpd-xl-512", 48, "16.3", "17.8", "128"),
]


def decode_floor(name, num_steps, images):
    config = LPDConfig.named(name)
    work = roofline.decode_work(config, group_sizes(config.seq_len, num_steps), images, H200)
    return roofline.decode_floor(work, H200), work


@pytest.mark.parametrize(("name", "num_steps", "weights", "floor", "rate"), PUBLISHED)
def test_floors_are_the_published_ones(name, num_steps, weights, floor, rate):
    # Each to the digits it was published with.
    seconds, work = decode_floor(name, num_steps, 1)
    milliseconds = 1e3 * sum(parts["weights"].floor(H200) for parts in work)
    assert f"{milliseconds:.{len(weights.partition('.')[2])}f}" == weights
    assert f"{1e3 * seconds:.{len(floor.partition('.')[2])}f}" == floor
    assert f"{64 / decode_floor(name, num_steps, 64)[0]:.0f}" == rate


def test_steps_of_a_schedule():
    assert list(roofline.steps([1, 2, 4])) == [Step(1, 1, 0), Step(1, 2, 1), Step(2, 4, 2)]
    last = list(roofline.steps(group_sizes(256, 20)))[-1]
    assert (last.rows, last.keys) == (40, 257)


def test_group_attention_by_hand():
    # 3 heads of 32 in 2 sequences: 192 numbers a row. 2 context rows and 3 queries on 7 keys:
    # 5 rows of q, k, v, out; 7 cached keys and values read, 2 written: 20 + 14 + 4 = 38 rows.
    work = roofline.group_attention_work(Step(2, 3, 7), 2, num_heads=3, head_dim=32)
    assert work.num_bytes == 38 * 192 * 2
    # 5 rows x 12 keys x 32 products and sums, for scores and for results, in 6 pairs.
    assert work.operations == 6 * 2 * 2 * (5 * 12 * 32)
    slow_memory = Gpu("slow memory", bandwidth=1e3, arithmetic=1e9, l2_share=0)
    slow_units = Gpu("slow units", bandwidth=1e9, arithmetic=1e3, l2_share=0)
    assert work.floor(slow_memory) == pytest.approx(14.592)
    assert work.floor(slow_units) == pytest.approx(46.08)


def test_a_step_is_bound_by_its_longer_half_and_steps_add_up():
    gpu = Gpu("one", bandwidth=1, arithmetic=1, l2_share=0)
    parts = [{"a": Work(5, 1), "b": Work(2, 3)}, {"a": Work(1, 9)}]
    assert roofline.decode_floor(parts, gpu) == 7 + 9


def test_activations_cross_memory_once_they_outgrow_l2():
    config, step = LPDConfig.named("lpd-l-256"), Step(20, 20, 217)
    few, many = (roofline.step_work(config, step, n, H200)["activations"] for n in (40, 64))
    assert few == Work()  # 26 MB alive
    assert many.num_bytes == 24 * 20 * 1024 * 64 * 40 * 2


def test_without_guidance_half_the_sequences():
    config, sizes = LPDConfig.named("lpd-l-256"), group_sizes(256, 20)
    guided = roofline.decode_work(config, sizes, 1, H200)
    plain = roofline.decode_work(config, sizes, 2, H200, guided=False)
    assert guided == plain


def test_only_known_cards_have_ceilings():
    assert roofline.known_gpu("NVIDIA H200") is H200
    assert roofline.known_gpu("NVIDIA A100-SXM4-80GB") is None


def test_command_line_prints_both_tables(capsys):
    roofline.main()
    text = capsys.readouterr().out
    assert "Floors, not measurements" in text
    assert "| lpd-l-256, 20 | 2.97 ms | 3.05 ms (328 img/s) |" in text
    assert re.search(r"\| lpd-xl-512, 48: 67 x 1025 \| [\d.]+ us \|", text)


SMALL = VQConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, norm_groups=8)


@pytest.mark.parametrize(("config", "grid"), [(VQConfig(), (16, 16)), (SMALL, (3, 4))])
@torch.no_grad()
def test_work_of_the_tokenizer_is_what_torch_counts(config, grid):
    with torch.device("meta"):
        vq = VQModel(config).eval()
        latents = torch.empty(2, grid[0] * grid[1], config.codebook_dim)
    weights, moved = [], []

    def count(conv, inputs, out, doubled):
        weights.append(conv.weight.numel())
        moved.append(inputs[0].numel() // doubled + out.numel())

    for name, module in vq.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            doubled = 4 if name.endswith("upsample.conv") else 1  # pixels, made on the fly
            module.register_forward_hook(partial(count, doubled=doubled))
    with FlopCounterMode(display=False) as counted:
        vq.image_of(latents, grid)
    large, none = (Gpu("", 1, 1, l2_share=share) for share in (1e12, 0))
    in_l2, crossing = (sum(image_work(config, grid, 2, gpu), Work()) for gpu in (large, none))
    assert in_l2.operations == crossing.operations == counted.get_total_flops()
    assert in_l2.num_bytes == 2 * sum(weights)
    assert crossing.num_bytes == 2 * (sum(weights) + sum(moved))


def test_an_image_of_the_published_tokenizer():
    # 253 GFLOP, as the design notes of this project have it.
    work = sum(image_work(VQConfig(), (16, 16), 1, H200), Work())
    assert round(work.operations / 1e9) == 253
    least = work.operations / H200.arithmetic
    assert least <= image_floor(VQConfig(), (16, 16), 1, H200) < 1.01 * least
