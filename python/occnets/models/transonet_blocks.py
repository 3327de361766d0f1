# SPDX-License-Identifier: MIT
"""Layers of the published TransONet: sines in place of ReLUs, and the vision transformer over one plane.

Names of attributes are those of the released weights. Source: Tonti and Amerini, Lightweight Transformer Occupancy
Networks, GRAPP 2025; sines after Sitzmann et al., Implicit Neural Representations with Periodic Activation Functions,
NeurIPS 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.dynamic import masked_max

FREQUENCY = 30.0
"""Factor inside every sine."""


class SineLayer(nn.Module):
    """``sin(30 * (W x + b))``: a learned layer and a sine, where the rest of the family has a ReLU.

    Always in the weights' precision: half precision would turn the phase by tens of degrees.

    Args:
        size_in: channels of the input.
        size_out: channels of the output.
        is_first: initialise for inputs that are no sines themselves (section 3.2 of the source).
    """

    def __init__(self, size_in: int, size_out: int, is_first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(size_in, size_out)
        bound = 1.0 / size_in if is_first else math.sqrt(6.0 / size_in) / FREQUENCY
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., size_in) to (..., size_out)."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.sin(FREQUENCY * self.linear(x.to(self.linear.weight.dtype)))


class SineBlock(nn.Module):
    """:class:`occnets.models.blocks.ResnetBlockFC` with a :class:`SineLayer` in place of each ReLU.

    Args:
        size_in: channels of the input.
        size_out: channels of the output; ``None`` = ``size_in``.
    """

    def __init__(self, size_in: int, size_out: int | None = None) -> None:
        super().__init__()
        size_out = size_in if size_out is None else size_out
        size_h = min(size_in, size_out)
        self.fc_0 = nn.Linear(size_in, size_h)
        self.fc_1 = nn.Linear(size_h, size_out)
        self.actvn_1 = SineLayer(size_in, size_in)
        self.actvn_2 = SineLayer(size_h, size_h)
        self.shortcut = nn.Linear(size_in, size_out, bias=False) if size_in != size_out else None
        nn.init.zeros_(self.fc_1.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., size_in) to (..., size_out)."""
        with torch.autocast(x.device.type, enabled=False):  # what enters a sine must be as exact as the sine
            x = x.to(self.fc_0.weight.dtype)
            net = self.fc_1(self.actvn_2(self.fc_0(self.actvn_1(x))))
            return (x if self.shortcut is None else self.shortcut(x)) + net


class SinePlanePredictor(nn.Module):
    """:class:`occnets.models.dynamic.PlanePredictor` with sines; two of its four sine layers serve three places each.

    Args:
        dim: channels of a point.
        hidden: channels inside and of the result.
    """

    def __init__(self, dim: int = 3, hidden: int = 32) -> None:
        super().__init__()
        self.fc_pos = nn.Linear(dim, 2 * hidden)
        self.fc_0 = nn.Linear(2 * hidden, hidden)
        self.fc_1 = nn.Linear(2 * hidden, hidden)
        self.fc_2 = nn.Linear(2 * hidden, hidden)
        self.fc_3 = nn.Linear(2 * hidden, hidden)
        self.fc_c = nn.Linear(hidden, hidden)
        self.actvn_1 = SineLayer(2 * hidden, 2 * hidden, is_first=True)
        self.actvn_2 = SineLayer(2 * hidden, 2 * hidden)
        self.actvn_3 = SineLayer(hidden, hidden)
        self.actvn_c = SineLayer(hidden, hidden)
        self.mlp0 = nn.Linear(hidden, hidden)
        self.mlp1 = nn.Linear(hidden, hidden)
        self.mlp2 = nn.Linear(hidden, hidden)

    def forward(self, points: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map (encoded) points (B, N, dim) to (B, hidden), without an activation at the end."""
        net = self.fc_0(self.actvn_1(self.fc_pos(points)))
        for layer in (self.fc_1, self.fc_2, self.fc_3):
            pooled = masked_max(net, lengths)[:, None].expand_as(net)
            net = layer(self.actvn_2(torch.cat((net, pooled), dim=2)))
        net = self.fc_c(self.actvn_3(masked_max(net, lengths)))
        net = self.mlp0(self.actvn_c(net))
        return self.mlp2(self.actvn_3(self.mlp1(self.actvn_3(net))))


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Args:
        dim: channels of a token.
        heads: number of heads; divides ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, gate: Tensor | None = None) -> Tensor:
        """Map tokens (B, T, dim) to (B, T, dim); ``gate`` (B, T) multiplies what each token hands to the others."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if gate is not None:
            value = value * gate[:, None, :, None].to(value.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class TokenPooling(nn.Module):
    """The teacher's stand-in for attention: mean over windows of three tokens by three channels, minus the input."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, dim) to (B, T, dim)."""
        return functional.avg_pool2d(tokens, 3, stride=1, padding=1, count_include_pad=False) - tokens


class SineMlp(nn.Module):
    """Two layers with a sine layer in between.

    Args:
        dim: channels of a token.
        hidden: channels inside.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = SineLayer(hidden, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, dim) to (B, T, dim)."""
        return self.fc2(self.act(self.fc1(tokens)))


class SineTransformerBlock(nn.Module):
    """Pre-norm transformer block: mixing of tokens, then :class:`SineMlp`.

    Args:
        dim: channels of a token.
        heads: heads of the attention; ``None`` for :class:`TokenPooling`.
    """

    def __init__(self, dim: int, heads: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = TokenPooling() if heads is None else Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SineMlp(dim, 4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, dim) to (B, T, dim)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of a plane to tokens, row by row.

    Args:
        channels: of the plane.
        dim: channels of a token.
        size: cells along one side of a patch.
    """

    def __init__(self, channels: int, dim: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, size, stride=size)

    def forward(self, plane: Tensor) -> Tensor:
        """Map (B, channels, R, R) to (B, (R / size)², dim)."""
        return self.proj(plane).flatten(2).transpose(1, 2)


class ScorePredictor(nn.Module):
    """Weights of the published token scorers. The published network never calls them, so there is no forward.

    Args:
        dim: channels of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )


class PlaneTransformer(nn.Module):
    """Vision transformer from a plane to a plane: only its class token reaches the output.

    The output plane, all of it, is a linear function of that one vector of as many numbers as the plane has channels.

    Args:
        resolution: cells along one side of the plane.
        dim: channels of the plane and of a token.
        heads: heads of the attention; ``None`` for the teacher's pooling.
        scorers: number of unused token scorers to carry along.
        depth: number of blocks.
        patch: cells along one side of a patch.
    """

    def __init__(
        self, resolution: int, dim: int, heads: int | None, scorers: int = 0, *, depth: int = 2, patch: int = 2
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (resolution // patch) ** 2 + 1, dim))
        self.patch_embed = PatchEmbedding(dim, dim, patch)
        self.blocks = nn.ModuleList(SineTransformerBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, dim * resolution**2)
        if scorers:
            self.score_predictor = nn.ModuleList(ScorePredictor(dim) for _ in range(scorers)).requires_grad_(False)
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)

    def tokens(self, plane: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + T, dim) of a plane (B, dim, R, R), the class token first."""
        patches = self.patch_embed(plane)
        tokens = torch.cat((self.cls_token.expand(len(plane), -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, plane: Tensor) -> Tensor:
        """Map a plane (B, dim, R, R) to one of the same shape."""
        return self.head(self.tokens(plane)[:, 0]).view_as(plane)
