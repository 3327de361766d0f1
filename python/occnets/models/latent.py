# SPDX-License-Identifier: MIT
"""Latent codes of Occupancy Networks as a variational auto-encoder (Kingma and Welling, ICLR 2014): posterior, prior,
divergence, interpolation. Letters: B batch, M queries, Z latent channels."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.options import make_options


@dataclasses.dataclass(frozen=True)
class LatentOptions:
    """Options of :class:`LatentEncoder`; names and defaults are the family's.

    Attributes:
        z_dim: channels of the latent code.
        c_dim: channels of the condition, 0 for none.
        dim: coordinates per query.
        leaky: leaky ReLU (0.2) instead of ReLU, and the mean instead of the maximum over the queries.
    """

    z_dim: int = 128
    c_dim: int = 128
    dim: int = 3
    leaky: bool = False


class LatentEncoder(nn.Module):
    """Posterior of the latent code given occupancies at queries (Mescheder et al., CVPR 2019, section 3.3).

    Args:
        options: see :class:`LatentOptions`; or give its fields as keywords.
    """

    random_in_training = True

    def __init__(self, options: LatentOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(LatentOptions, fields, "LatentEncoder") if options is None else options
        self.options = o
        self.fc_pos = nn.Linear(o.dim, 128)
        if o.c_dim:
            self.fc_c = nn.Linear(o.c_dim, 128)
        self.fc_0 = nn.Linear(1, 128)
        self.fc_1 = nn.Linear(128, 128)
        self.fc_2 = nn.Linear(256, 128)
        self.fc_3 = nn.Linear(256, 128)
        self.fc_mean = nn.Linear(128, o.z_dim)
        self.fc_logstd = nn.Linear(128, o.z_dim)

    def forward(self, query: Tensor, occupancy: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation, (B, Z) each.

        Args:
            query: (B, M, 3).
            occupancy: (B, M) in [0, 1].
            c: (B, C) condition, needed if the encoder takes one.
        """
        net = self.fc_0(occupancy.unsqueeze(-1)) + self.fc_pos(query)
        if self.options.c_dim:
            if c is None:
                raise ValueError(f"LatentEncoder: `c` (B, {self.options.c_dim}) is needed, got None")
            net = net + self.fc_c(c).unsqueeze(1)
        net = self.fc_1(self._act(net))
        for layer in (self.fc_2, self.fc_3):
            net = layer(self._act(torch.cat((net, self._pool(net).expand_as(net)), dim=2)))
        # The heads take the pooled features without another activation.
        pooled = self._pool(net).squeeze(1)
        return self.fc_mean(pooled), self.fc_logstd(pooled)

    def _act(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, 0.2) if self.options.leaky else functional.relu(x)

    def _pool(self, x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True) if self.options.leaky else x.amax(dim=1, keepdim=True)


def kl_to_prior(mean: Tensor, logstd: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, exp(logstd)^2) from N(0, 1), summed over the channels.

    Args:
        mean: (B, Z).
        logstd: (B, Z) logarithm of the standard deviation, not of the variance.

    Returns:
        (B,), in nats; zeros when Z is 0.
    """
    return (0.5 * (mean.square() + (2.0 * logstd).exp() - 1.0) - logstd).sum(dim=1)


def sample_normal(mean: Tensor, logstd: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw (B, Z) from N(mean, exp(logstd)^2), differentiable in both."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + logstd.exp() * noise


def sample_prior(
    count: int, z_dim: int, *, generator: torch.Generator | None = None, like: Tensor | None = None
) -> Tensor:
    """Draws (count, z_dim) from the prior N(0, 1).

    Args:
        count: number of draws.
        z_dim: channels.
        generator: of random numbers; on the device of ``like``.
        like: gives device and dtype; default CPU and float32.
    """
    device, dtype = (None, None) if like is None else (like.device, like.dtype)
    return torch.randn((count, z_dim), generator=generator, device=device, dtype=dtype)


def latent_of_seed(seed: int, z_dim: int) -> Tensor:
    """The latent code (z_dim,) that a number stands for: a draw from the prior, the same on every device."""
    return torch.randn(z_dim, generator=torch.Generator().manual_seed(seed))


def interpolate_latents(start: Tensor, end: Tensor, steps: int, mode: str = "spherical") -> Tensor:
    """Codes on the way from one to another, both ends included.

    Draws of a prior of many channels lie near a sphere. A straight line leaves it and passes codes the decoder never
    saw; the spherical one (White, 2016, "Sampling generative networks") turns and stretches evenly.

    Args:
        start, end: (Z,) codes.
        steps: number of codes, at least 2.
        mode: ``"spherical"`` or ``"linear"``. Codes that are zero, parallel or opposite are interpolated linearly.

    Returns:
        (steps, Z).

    Raises:
        ValueError: codes of different shapes, fewer than two steps, an unknown mode.
    """
    if start.dim() != 1 or start.shape != end.shape:
        raise ValueError(
            f"interpolate_latents: `start` and `end` must be (Z,), got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if steps < 2 or mode not in ("spherical", "linear"):
        raise ValueError(
            f"interpolate_latents: `steps` must be at least 2 and `mode` 'spherical' or 'linear', got {steps}, {mode!r}"
        )
    share = torch.linspace(0.0, 1.0, steps, device=start.device, dtype=start.dtype).unsqueeze(1)
    lengths = start.norm(), end.norm()
    cosine = (start @ end) / (lengths[0] * lengths[1])
    if mode == "linear" or not cosine.abs() < 1.0 - 1e-6:  # a zero length gives NaN
        return torch.lerp(start, end, share)
    angle = torch.acos(cosine)
    first, last = torch.sin((1.0 - share) * angle), torch.sin(share * angle)
    direction = (first * start / lengths[0] + last * end / lengths[1]) / torch.sin(angle)
    return direction * torch.lerp(lengths[0], lengths[1], share)
