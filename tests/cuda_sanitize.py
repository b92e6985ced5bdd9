"""Every CUDA kernel once on small shapes, for compute-sanitizer; benchmarks/gpu_check.sh runs it.

    compute-sanitizer --tool memcheck python tests/cuda_sanitize.py
    compute-sanitizer --tool racecheck python tests/cuda_sanitize.py --head-dim 64 --dtype bfloat16

Slots of the caches beyond an image's own keys are never written, so that initcheck sees a read of
one. Operators are called as they are registered: the public functions may run torch's own kernels
beside ours.
"""

import argparse
from itertools import product

import torch

from lpd_ext import cuda_variant, group_sizes
from lpd_ext.ops import reference
from lpd_ext.ops.group_attention import HEAD_DIMS

BATCH, HEADS, SLOTS, ROWS = 2, 2, 70, 19
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# Slots, and (cache_len, context_len, q_len) an image: both prefixes, a tile's edges, padding,
# lengths that do not fit, keys split over blocks. The images of a pair are at different steps.
PAIRS = [
    (SLOTS, ((0, 1, 3), (13, 4, 19))),
    (SLOTS, ((32, 16, 17), (51, 19, 19))),
    (SLOTS, ((31, 0, 2), (5, 0, 0))),
    (SLOTS, ((69, 2, 5), (64, 0, 16))),
    (450, ((430, 10, 19), (380, 3, 5))),
]
VOCAB_SIZES = (1, 1000, 3001, 16384, 20000, 33001)

# Grids for one warp, four and sixteen, without and with known cells.
ORDERS = [((16, 16), 0), ((5, 7), 13), ((19, 20), 0), ((19, 20), 330), ((40, 41), 1600)]


def moved(tensor, device, shift):
    """Return a copy on the device; shifted, no row begins at a multiple of 16 bytes."""
    flat = torch.empty(shift + tensor.numel(), dtype=tensor.dtype, device=device)
    flat[shift:].copy_(tensor.flatten())
    return flat[shift:].view(tensor.shape)


def group_attention(device, dtype, head_dim, slots, images, shift):
    """One call in the ragged form, one an image in the other; all against the reference."""
    op = torch.ops.lpd_ext.group_attention
    generator = torch.Generator().manual_seed(head_dim)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    qkv = random(BATCH, ROWS, 3, HEADS, head_dim)
    k_cache, v_cache = random(2, BATCH, HEADS, slots, head_dim)
    lengths = torch.tensor(images, dtype=torch.int32).T.contiguous()
    scale = head_dim**-0.5

    on_device = moved(qkv, device, shift)
    caches = torch.empty(2, *k_cache.shape, dtype=dtype, device=device)
    for image, (cache_len, _, _) in enumerate(images):
        for cache, cpu in zip(caches, (k_cache, v_cache), strict=True):
            for head in range(HEADS):  # contiguous pieces: plain copies, no kernel of torch
                cache[image, head, :cache_len].copy_(cpu[image, head, :cache_len])
    out = op.ragged(on_device, *caches, *(part.to(device) for part in lengths), scale)
    expected = reference.group_attention(qkv, k_cache, v_cache, *lengths[:2], q_len=lengths[2])
    close(out, expected, dtype)

    for image, (cache_len, context_len, q_len) in enumerate(images):
        if cache_len + context_len > slots:
            continue
        one = slice(image, image + 1)
        alone = op(on_device[one, :q_len], *caches[:, one], cache_len, context_len, scale)
        close(alone, expected[one, :q_len], dtype)


def masked_attention(device, dtype, head_dim, shift):
    """Both forms of a mask, on views of caches whose other slots are never written."""
    op = torch.ops.lpd_ext.masked_attention
    generator = torch.Generator().manual_seed(head_dim)
    q, k, v = (
        torch.randn(BATCH, HEADS, rows, head_dim, generator=generator).to(dtype)
        for rows in (ROWS, SLOTS - 1, SLOTS - 1)
    )
    caches = torch.empty(2, BATCH, HEADS, SLOTS, head_dim + shift, dtype=dtype, device=device)
    views = caches[..., :-1, shift:]
    for view, cpu in zip(views, (k, v), strict=True):
        for image in range(BATCH):
            for head in range(HEADS):
                for slot in range(SLOTS - 1):  # contiguous pieces: plain copies
                    view[image, head, slot].copy_(cpu[image, head, slot])
    lengths = torch.randint(-1, SLOTS + 1, (BATCH, ROWS), generator=generator).int()
    mask = torch.rand(ROWS, SLOTS - 1, generator=generator) < 1 / 3
    for told in (lengths, mask):
        out = op(q.to(device), *views, told.to(device), head_dim**-0.5)
        close(out, reference.masked_attention(q, k, v, told), dtype)


def token_selection(device, dtype, vocab_size):
    """Both forms on rows between tokens that are never written, one image a setting."""
    generator = torch.Generator().manual_seed(vocab_size)
    temperature = torch.tensor([0.0, 1.0, 0.7, 1.3])
    top_k, top_p = torch.tensor([0, 0, 50, 3]), torch.tensor([1.0, 1.0, 1.0, 0.9])
    batch, group_size = len(top_k), 3
    logits = torch.randn(2 * batch, group_size, vocab_size, generator=generator).to(dtype)
    uniform = torch.rand(batch, group_size, generator=generator, dtype=torch.float64)
    arguments = (uniform, torch.linspace(1, 3, group_size), temperature, top_k, top_p)
    expected = torch.ops.lpd_ext.token_selection(logits, *arguments)
    arguments = [x.to(device) for x in arguments]
    for shift in range(2):  # shifted by an element, no row begins at a multiple of 16 bytes
        rows = torch.empty(*logits.shape[:2], vocab_size + 8, dtype=dtype, device=device)
        on_device = rows[:, :, shift : shift + vocab_size]
        for row in range(2 * batch):
            for query in range(group_size):  # contiguous pieces: plain copies
                on_device[row, query].copy_(logits[row, query])
        ids = torch.ops.lpd_ext.token_selection(on_device, *arguments)
        assert torch.equal(ids.cpu(), expected)
        tokens = torch.full((batch, 7), -7)
        outside = 5 if device.type == "cuda" else 1  # an error on the CPU
        positions = torch.tensor([[4, 0, outside]] * batch)
        part = tokens.to(device)[:, :5]
        torch.ops.lpd_ext.token_selection_(part, positions.to(device), on_device, *arguments)
        tokens.scatter_(1, positions, expected)
        assert torch.equal(part.cpu(), tokens[:, :5])


def group_order(device, grid, num_known):
    """Two images against the reference; on a GPU images with too few known cells get -1."""
    op = torch.ops.lpd_ext.group_order
    generator = torch.Generator().manual_seed(num_known)
    seq_len = grid[0] * grid[1]
    sizes = group_sizes(seq_len - num_known, 4)
    seeds = torch.tensor([7, -7])
    known = torch.rand(2, seq_len, generator=generator).argsort(1) < num_known
    options = (grid, sizes, 1.0, 2)
    order = op(seeds.to(device), *options, known.to(device) if num_known else None)
    assert torch.equal(order.cpu(), reference.group_order(seeds, grid, sizes, known=known))
    if num_known and device.type == "cuda":
        none = torch.zeros(2, seq_len, dtype=torch.bool).to(device)
        assert (op(seeds.to(device), *options, none).cpu() == -1).all()


def small_ops(device, dtype, shift):
    """The ops between attention and selection, rows of more than a warp."""
    generator = torch.Generator().manual_seed(shift)

    def randn(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(dtype)

    def run(op, *arguments):
        op(*(moved(x, device, shift) if isinstance(x, torch.Tensor) else x for x in arguments[:-1]),
           arguments[-1])  # fmt: skip

    ops = torch.ops.lpd_ext
    x, delta, bias = randn(BATCH, ROWS, 272), randn(BATCH, ROWS, 272, dtype=dtype), randn(272)
    norm = randn(272), randn(272)
    out = torch.empty(x.shape, dtype=dtype, device=device)
    run(ops.add_layer_norm, x, delta, bias, *norm, 1e-6, out)
    close(out, reference.add_layer_norm(x, norm, delta=delta, bias=bias, out=out.cpu()), dtype)

    order = torch.rand(BATCH, ROWS, generator=generator).argsort(dim=1)
    tokens = order % 6 - 1
    tables = randn(5, 272, dtype=dtype), randn(272, dtype=dtype), randn(ROWS, 272, dtype=dtype)
    out = torch.empty(2 * BATCH, 12, 272, device=device)
    run(ops.group_embedding, tokens, order, *tables, *norm, 3, 9, 15, 1e-6, out)
    arguments = tokens, order, *tables, norm, (3, 9), 15
    expected = reference.group_embedding(*arguments, out=out.cpu())
    close(out, expected, torch.float32)
    if device.type == "cuda":  # a position and a token outside the tables: rows of NaN
        tokens[0, order[0, 4]], order[1, 12] = 2**40, -(2**40)
        run(ops.group_embedding, tokens, order, *tables, *norm, 3, 9, 15, 1e-6, out)
        expected[0::BATCH, 1], expected[1::BATCH, 9] = torch.nan, torch.nan
        close(out, expected, torch.float32)

    for features in (272, 1035):  # the last block ends amid a vector
        x, bias = randn(3, features, dtype=dtype), randn(features)
        out = torch.empty(x.shape, dtype=dtype, device=device)
        run(ops.bias_gelu, x, bias, out)
        close(out, reference.bias_gelu(x, bias, out=out.cpu()), dtype)
    # Several chunks of pixels, the last one ragged; channels that fill no vector.
    for channels, groups in ((512, 32), (6, 2)):
        x = randn(BATCH, 9, 5, channels, dtype=dtype)
        norm = randn(channels) / 4, randn(channels) / 4
        for silu in (True, False):
            out = torch.empty_like(x, device=device).permute(0, 3, 1, 2)
            on_device = moved(x, device, shift).permute(0, 3, 1, 2)
            moved_norm = (moved(part, device, shift) for part in norm)
            ops.group_norm_silu(on_device, *moved_norm, groups, 1e-6, silu, out)
            expected = torch.empty_like(x).permute(0, 3, 1, 2)
            images = x.permute(0, 3, 1, 2)
            reference.group_norm_silu(images, groups, norm, silu=silu, out=expected)
            close(out, expected, dtype)
    if dtype != torch.float32:
        for rows in (20, 300):  # of both shapes of a block, which end amid one
            x, weight, bias = randn(rows, 72, dtype=dtype), randn(47, 72, dtype=dtype), randn(47)
            weight = weight / 8
            out = torch.empty(rows, 47, dtype=dtype, device=device)
            run(ops.linear_gelu, x, weight, bias, out)
            close(out, reference.linear_gelu(x, weight, bias, out=out.cpu()), dtype)


def close(got, expected, dtype):
    torch.testing.assert_close(
        got.cpu(), expected, rtol=0, atol=TOLERANCE[dtype], equal_nan=True, check_device=False
    )


def run(device, head_dims=HEAD_DIMS, dtypes=tuple(TOLERANCE)):
    """All kernels, or those of some head_dims and dtypes; returns the number of cases."""
    variants = cuda_variant.VARIANTS if device.type == "cuda" else [None]
    cases = list(product(variants, dtypes, head_dims))
    for variant, dtype, head_dim in cases:
        if variant is not None:
            cuda_variant.set_cuda_variant(variant)
        for nth, (slots, images) in enumerate(PAIRS):
            group_attention(device, dtype, head_dim, slots, images, nth % 2)
        for shift in range(2):
            masked_attention(device, dtype, head_dim, shift)
    for dtype, vocab_size in product(dtypes, VOCAB_SIZES):
        token_selection(device, dtype, vocab_size)
    for grid, num_known in ORDERS:
        group_order(device, grid, num_known)
    for dtype, shift in product(dtypes, range(2)):
        small_ops(device, dtype, shift)
    return len(cases) + len(dtypes) * (len(VOCAB_SIZES) + 2) + len(ORDERS)


def main(arguments=None):
    """Run what the command line asks for."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--head-dim", type=int, nargs="+", choices=HEAD_DIMS, default=HEAD_DIMS)
    parser.add_argument("--dtype", nargs="+", choices=names, default=list(names))
    asked = parser.parse_args(arguments)
    count = run(asked.device, asked.head_dim, [names[name] for name in asked.dtype])
    print(f"{count} cases agree with the reference")


if __name__ == "__main__":
    main()
