"""A module with the attributes, weights and `sample_tokens` of the published LPD, for the CPU.

Written from the facts of the design notes: what a user of the published code has in hand.
"""

from functools import partial
from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        self.proj = nn.Linear(dim, dim)


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.drop(self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio, norm):
        super().__init__()
        self.norm1, self.attn, self.ls1 = norm(dim), Attention(dim, num_heads), nn.Identity()
        self.norm2, self.mlp, self.ls2 = norm(dim), Mlp(dim, mlp_ratio * dim), nn.Identity()


class LPD(nn.Module):
    """The published constructor's names, where they matter here."""

    def __init__(self, seq_len=16, dim=64, depth=2, num_heads=2, vocab=19, classes=3, mlp_ratio=4):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.seq_len, self.seq_h, self.seq_w = seq_len, isqrt(seq_len), isqrt(seq_len)
        self.class_emb, self.token_emb = nn.Embedding(classes, dim), nn.Embedding(vocab, dim)
        self.fake_latent = nn.Parameter(torch.randn(1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, seq_len + 1, dim))
        self.z_proj_ln = norm(dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, norm) for _ in range(depth))
        self.norm, self.head = norm(dim), nn.Linear(dim, vocab, bias=False)
        self.calls = 0

    def sample_tokens(
        self, bsz, cfg=1.0, cfg_schedule="linear", labels=None, temperature=1.0, attn_mask=None,
        top_k=0, top_p=1.0, group_sizes=None, orders=None,
    ):  # fmt: skip
        """Generate as the published method does: everything anew in every call."""
        self.calls += 1
        sizes = eval(group_sizes) if isinstance(group_sizes, str) else list(group_sizes)
        guided, no_class = cfg != 1.0, self.fake_latent.expand(bsz, -1)
        classes = no_class if labels is None else self.class_emb(labels)
        rows = torch.cat([classes, no_class]) if guided else classes
        halves = 2 if guided else 1
        positions = torch.cat([torch.zeros(bsz, 1).long(), orders + 1], 1).repeat(halves, 1)
        tokens = torch.zeros(bsz, self.seq_len).long()
        caches = [[] for _ in self.blocks]
        context, begin = rows[:, None], 0
        for size in sizes:
            end = begin + context.shape[1] + size
            queries = self.mask_token.expand(len(rows), size, -1)
            x = torch.cat([context, queries], 1) + self.pos_embed[0, positions[:, begin:end]]
            x = self.z_proj_ln(x)
            mask = attn_mask[begin:end, :end]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = x + self._attend(block.attn, block.norm1(x), cache, mask, context.shape[1])
                x = x + block.mlp(block.norm2(x))
            logits = self.head(self.norm(x)[:, -size:]).float()
            begin = end - size
            if guided:
                j = torch.arange(begin - 1, end - 1)
                scale = 1 + (cfg - 1) * (j / self.seq_len if cfg_schedule == "linear" else j**0)
                yes, no = logits.chunk(2)
                logits = no + scale[:, None] * (yes - no)
            probabilities = (logits / max(temperature, 1e-5)).softmax(-1)
            drawn = torch.multinomial(probabilities.flatten(0, 1), 1).view(bsz, size)
            tokens.scatter_(1, orders[:, begin - 1 : end - 1], drawn)
            context = self.token_emb(drawn).repeat(halves, 1, 1)
        return tokens

    def _attend(self, attn, x, cache, mask, context_len):
        qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        keys = torch.cat([*(k for k, _ in cache), k], 2)
        values = torch.cat([*(v for _, v in cache), v], 2)
        cache.append((k[:, :, :context_len], v[:, :, :context_len]))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask.to(q.dtype))
        return attn.proj(out.transpose(1, 2).flatten(2))


def published_model(**sizes):
    """In evaluation, with logits that every input moves."""
    torch.manual_seed(0)
    model = LPD(**sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.08)
        for embedding in (model.token_emb, model.class_emb):
            embedding.weight.normal_(std=2)
    return model


def block_causal(group_sizes, dtype=torch.float32):
    """The published mask: 0 where a row may attend, -inf where not."""
    step = torch.arange(len(group_sizes) + 1).repeat_interleave(torch.tensor([1, *group_sizes]))
    sees = step[:, None] >= step
    return sees if dtype == torch.bool else torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)
