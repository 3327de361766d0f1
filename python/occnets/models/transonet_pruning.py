# SPDX-License-Identifier: MIT
"""TransONet as the paper means it: one transformer over all dynamic planes that drops tokens on the way.

What the paper (Tonti and Amerini, GRAPP 2025) leaves open or its code gets wrong is decided as follows. The planes are
not added up (a sum of rotations is no rotation): their patches are tokens of one sequence, so that planes exchange what
they see. Every token, not a single class token, writes its patch of the output. Tokens are really dropped, after Rao et
al., DynamicViT, NeurIPS 2021. There are ReLUs instead of sines, whose 30-fold phases make the published network
chaotic: 1e-7 in a query may change its logit by more than 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.dynamic_encoders import DynamicLocalPoolPointnet, DynamicPoolOptions
from occnets.models.options import make_options
from occnets.models.transonet_blocks import Attention, PatchEmbedding


@dataclasses.dataclass(frozen=True)
class PruningOptions(DynamicPoolOptions):
    """Options of :class:`PruningEncoder`: those of DPConvONet's encoder without its U-Net, and these.

    Attributes:
        patch_size: cells along one side of a patch.
        embed_dim: channels of a token.
        depth: transformer blocks.
        num_heads: heads of the attention; divides ``embed_dim``.
        pruning_loc: blocks before which tokens are dropped, ascending.
        token_ratio: share of all tokens that is left from each of these blocks on, descending.
    """

    patch_size: int = 4
    embed_dim: int = 128
    depth: int = 4
    num_heads: int = 8
    pruning_loc: Sequence[int] = (1, 2, 3)
    token_ratio: Sequence[float] = (0.7, 0.49, 0.343)


class TokenScorer(nn.Module):
    """How much a token is worth keeping, from itself and the mean of all that are left (DynamicViT, section 3.2).

    Args:
        dim: channels of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 1)
        )

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map tokens (B, T, dim), of which ``keep`` (B, T) are left, to log-odds (B, T)."""
        own, shared = self.embed(tokens).chunk(2, dim=-1)
        if keep is None:
            mean = shared.mean(dim=1, keepdim=True)
        else:
            mean = (shared * keep[..., None]).sum(dim=1, keepdim=True) / keep.sum(dim=1)[:, None, None]
        return self.score(torch.cat((own, mean.expand_as(shared)), dim=-1)).squeeze(-1)


class TokenBlock(nn.Module):
    """Pre-norm transformer block with GELU.

    Args:
        dim: channels of a token.
        heads: heads of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map tokens (B, T, dim) to (B, T, dim); those outside ``keep`` (B, T) are seen by none and stay as they are."""
        mixed = tokens + self.attn(self.norm1(tokens), keep)
        mixed = mixed + self.mlp(self.norm2(mixed))
        return mixed if keep is None else tokens + keep[..., None] * (mixed - tokens)


class PruningTransformer(nn.Module):
    """Transformer over the patches of all planes of a cloud. Dropped tokens keep the value they had when dropped.

    In evaluation the blocks run on the tokens that are left, so dropping saves time. In training they run on all
    tokens with a mask, which gives the same result, and the scorers learn through the mask: it is 0 or 1, its gradient
    that of the score's sigmoid. Gumbel noise on the scores lets training try other tokens. The number of tokens
    that are left is fixed, so no loss has to steer it.

    Args:
        options: see :class:`PruningOptions`.
    """

    def __init__(self, options: PruningOptions) -> None:
        super().__init__()
        o = options
        _check_pruning(o)
        self.side = o.plane_resolution // o.patch_size
        tokens = o.n_channels * self.side**2
        self.left = {at: math.ceil(share * tokens) for at, share in zip(o.pruning_loc, o.token_ratio, strict=True)}
        self.patches = PatchEmbedding(o.c_dim, o.embed_dim, o.patch_size)
        self.position = nn.Parameter(torch.zeros(self.side**2, o.embed_dim))
        self.orientation = nn.Linear(9, o.embed_dim)
        self.blocks = nn.ModuleList(TokenBlock(o.embed_dim, o.num_heads) for _ in range(o.depth))
        self.scorers = nn.ModuleDict({str(at): TokenScorer(o.embed_dim) for at in o.pruning_loc})
        self.norm = nn.LayerNorm(o.embed_dim)
        self.unpatch = nn.ConvTranspose2d(o.embed_dim, o.c_dim, o.patch_size, stride=o.patch_size)
        self.detail = nn.Conv2d(o.c_dim, o.c_dim, 3, padding=1)
        self.smooth = nn.Conv2d(o.c_dim, o.c_dim, 3, padding=1)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, planes: Tensor, frames: Tensor) -> Tensor:
        """Map planes to planes.

        Args:
            planes: (B, P, C, R, R).
            frames: (B, P, 3, 3), how each plane is turned.

        Returns:
            (B, P, C, R, R).
        """
        batch, count = planes.shape[:2]
        flat = planes.flatten(0, 1)
        tokens = self.patches(flat) + self.position
        tokens = tokens.unflatten(0, (batch, count)) + self.orientation(frames.flatten(2))[:, :, None]
        tokens = tokens.flatten(1, 2)
        mixed, _ = self.run_masked(tokens) if self.training else self.run_dropped(tokens)
        mixed = self.norm(mixed).unflatten(1, (count, -1)).flatten(0, 1)
        coarse = self.unpatch(mixed.transpose(1, 2).unflatten(2, (self.side, self.side)))
        return self.smooth(functional.relu(coarse + self.detail(flat))).unflatten(0, (batch, count))

    def run_dropped(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks on the tokens that are left.

        Args:
            tokens: (B, T, dim).

        Returns:
            Tokens (B, T, dim), and which of them were left at the end, (B, T) of 0 and 1.
        """
        dim = tokens.shape[-1]
        whole, rest = tokens, tokens
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        for number, block in enumerate(self.blocks):
            if number in self.left:
                best = self.scorers[str(number)](rest).topk(self.left[number], dim=1).indices
                whole = whole.scatter(1, place[..., None].expand(-1, -1, dim), rest.to(whole.dtype))
                rest, place = rest.gather(1, best[..., None].expand(-1, -1, dim)), place.gather(1, best)
            rest = block(rest)
        whole = whole.scatter(1, place[..., None].expand(-1, -1, dim), rest.to(whole.dtype))
        return whole, torch.zeros_like(tokens[..., 0]).scatter(1, place, 1.0)

    def run_masked(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks on all tokens with a differentiable mask; arguments and results as :meth:`run_dropped`."""
        keep = torch.ones_like(tokens[..., 0], dtype=torch.float32)
        for number, block in enumerate(self.blocks):
            if number in self.left:
                score = self.scorers[str(number)](tokens, keep).float()
                keep = keep * self._choose(score, keep, self.left[number])
            tokens = block(tokens, keep if self.left else None)
        return tokens, keep

    def _choose(self, score: Tensor, keep: Tensor, count: int) -> Tensor:
        """The ``count`` best of the tokens in ``keep``: 0 or 1, gradient of the sigmoid of the score."""
        ranked = score.detach().masked_fill(keep == 0, -torch.inf)
        if self.training:
            uniform = torch.rand_like(ranked).clamp(1e-6, 1.0 - 1e-6)
            ranked = ranked - torch.log(-torch.log(uniform))
        hard = torch.zeros_like(ranked).scatter(1, ranked.topk(count, dim=1).indices, 1.0)
        soft = torch.sigmoid(score)
        return hard + (soft - soft.detach())  # exactly 0 or 1


def _check_pruning(o: PruningOptions) -> None:
    places, shares = list(o.pruning_loc), list(o.token_ratio)
    if o.plane_resolution % o.patch_size:
        raise ValueError(
            f"PruningEncoder: patch_size must divide plane_resolution {o.plane_resolution}, got {o.patch_size}"
        )
    if o.embed_dim % o.num_heads or o.embed_dim % 4:
        raise ValueError(f"PruningEncoder: embed_dim must be a multiple of 4 and of num_heads, got {o.embed_dim}")
    if places != sorted(set(places)) or any(not 0 <= place < o.depth for place in places):
        raise ValueError(
            f"PruningEncoder: pruning_loc must hold ascending block numbers below depth {o.depth}, got {places}"
        )
    if len(shares) != len(places) or shares != sorted(shares, reverse=True) or any(not 0 < s <= 1 for s in shares):
        raise ValueError(
            f"PruningEncoder: token_ratio must hold {len(places)} descending shares in (0, 1], one for each entry of "
            f"pruning_loc, got {shares}"
        )


class PruningEncoder(DynamicLocalPoolPointnet):
    """DPConvONet's encoder with :class:`PruningTransformer` in place of the U-Net (``pruning_transformer``).

    Args:
        options: see :class:`PruningOptions`; or give its fields as keywords.

    Raises:
        ValueError: an option is unknown or out of range, or a U-Net is asked for.
    """

    def __init__(self, options: PruningOptions | None = None, **fields: Any) -> None:
        o = make_options(PruningOptions, fields, "PruningEncoder") if options is None else options
        if o.unet:
            raise ValueError(
                "PruningEncoder: the transformer takes the U-Net's place; set encoder_kwargs.unet to false"
            )
        super().__init__(o)
        self.transformer = PruningTransformer(o)

    def refine(self, planes: Tensor, c_mat: Tensor) -> Tensor:
        """Planes (B, P, C, R, R) after the transformer."""
        return self.transformer(planes, c_mat[:, :, :3])
