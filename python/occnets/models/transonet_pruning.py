# SPDX-License-Identifier: MIT
"""TransONet as the paper means it: one transformer over all dynamic planes that drops tokens on the way.

What the paper (Tonti and Amerini, GRAPP 2025) leaves open or its code gets wrong is decided as follows. The planes are
not added up (a sum of rotations is no rotation): their patches are tokens of one sequence, so that planes exchange what
they see. Every token, not a single class token, writes its patch of the output. Tokens are really dropped: scored as in
Rao et al., DynamicViT, NeurIPS 2021, the best are kept, and the scores learn as gates, as in Raposo et al.,
Mixture-of-Depths, 2024, so that training saves as much time as inference. There are ReLUs instead of sines, whose
30-fold phases make the published network chaotic: 1e-7 in a query may change its logit by more than 1.
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

    def forward(self, tokens: Tensor) -> Tensor:
        """Map the tokens that are left, (B, T, dim), to log-odds (B, T)."""
        own, shared = self.embed(tokens).chunk(2, dim=-1)
        mean = shared.mean(dim=1, keepdim=True).expand_as(shared)
        return self.score(torch.cat((own, mean), dim=-1)).squeeze(-1).float()


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

    def forward(self, tokens: Tensor, gate: Tensor | None = None) -> Tensor:
        """Map tokens (B, T, dim) to (B, T, dim); ``gate`` (B, T) multiplies what a token gives and how it changes."""
        change = self.attn(self.norm1(tokens), gate)
        change = change + self.mlp(self.norm2(tokens + change))
        return tokens + (change if gate is None else gate[..., None].to(change.dtype) * change)


class PruningTransformer(nn.Module):
    """Transformer over the patches of all planes of a cloud; on the way the tokens with the worst scores are dropped.

    Dropped tokens keep the value they had. The number of tokens that are left is fixed, so no loss has to steer it. The
    scores learn as gates of the tokens that are left: a gate is 1 and has the gradient of the score's sigmoid. In
    training Gumbel noise on the scores lets other tokens have their turn.

    Args:
        options: see :class:`PruningOptions`.
    """

    random_in_training = True

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
        mixed = self.norm(self.mix(tokens)[0]).unflatten(1, (count, -1)).flatten(0, 1)
        coarse = self.unpatch(mixed.transpose(1, 2).unflatten(2, (self.side, self.side)))
        return self.smooth(functional.relu(coarse + self.detail(flat))).unflatten(0, (batch, count))

    def mix(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks on the tokens that are left.

        Args:
            tokens: (B, T, dim).

        Returns:
            Tokens (B, T, dim), and the numbers of those that were left at the end, (B, K).
        """
        whole, rest, gate = tokens, tokens, None
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        for number, block in enumerate(self.blocks):
            if number in self.left:
                score = self.scorers[str(number)](rest)
                best = self.choose(score, self.left[number])
                whole = _put(whole, place, rest)
                rest, place = _take(rest, best), place.gather(1, best)
                if self.training:
                    soft = torch.sigmoid(score.gather(1, best))
                    fresh = 1.0 + (soft - soft.detach())
                    gate = fresh if gate is None else gate.gather(1, best) * fresh
            rest = block(rest, gate)
        return _put(whole, place, rest), place

    def choose(self, score: Tensor, count: int) -> Tensor:
        """Numbers (B, count) of the tokens to keep, by their scores (B, T); noisy in training."""
        score = score.detach()
        if self.training:
            score = score - torch.log(-torch.log(torch.rand_like(score).clamp(1e-6, 1.0 - 1e-6)))
        return score.topk(count, dim=1).indices


def _take(tokens: Tensor, place: Tensor) -> Tensor:
    return tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[-1]))


def _put(whole: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
    return whole.scatter(1, place[..., None].expand(-1, -1, whole.shape[-1]), tokens.to(whole.dtype))


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
