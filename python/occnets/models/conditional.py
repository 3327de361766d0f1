# SPDX-License-Identifier: MIT
"""Normalisation whose scale and shift come from a condition. Letters: B batch, C condition, H channels, M queries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConditionalBatchNorm(nn.Module):
    """Conditional batch normalisation (de Vries et al., NeurIPS 2017; Mescheder et al., CVPR 2019, supplementary 1.1).

    ``gamma(c) * bn(x) + beta(c)`` with a batch norm that has no parameters of its own. A new layer is a plain batch
    norm: the weights of gamma and beta and the bias of beta are zero, the bias of gamma is one.

    Args:
        c_dim: channels of the condition.
        channels: channels that are normalised.
        legacy: the parameters are called ``fc_gamma`` and ``fc_beta`` and are matrices, as in the first released image
            model; the arithmetic is the same.
    """

    def __init__(self, c_dim: int, channels: int, legacy: bool = False) -> None:
        super().__init__()
        self.legacy = legacy
        if legacy:
            self.fc_gamma = nn.Linear(c_dim, channels)
            self.fc_beta = nn.Linear(c_dim, channels)
        else:
            self.conv_gamma = nn.Conv1d(c_dim, channels, 1)
            self.conv_beta = nn.Conv1d(c_dim, channels, 1)
        self.bn = nn.BatchNorm1d(channels, affine=False)
        gamma, beta = self._layers()
        for layer, bias in ((gamma, 1.0), (beta, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def _layers(self) -> tuple[nn.Module, nn.Module]:
        return (self.fc_gamma, self.fc_beta) if self.legacy else (self.conv_gamma, self.conv_beta)

    def affine(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Gamma and beta, (B, H) each, of the condition (B, C)."""
        gamma, beta = (functional.linear(c, layer.weight.flatten(1), layer.bias) for layer in self._layers())
        return gamma, beta

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Normalise (B, M, H) under the condition (B, C)."""
        gamma, beta = self.affine(c)
        return torch.addcmul(beta.unsqueeze(1), gamma.unsqueeze(1), _normalize(self.bn, x, self.training))

    def fold(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, (B, H) each, with which ``scale * x + shift`` is this layer in evaluation mode."""
        return _fold(*self.affine(c), self.bn)


class UnconditionalBatchNorm(nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` with the interface of :class:`ConditionalBatchNorm`; the condition has no effect."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Normalise (B, M, H)."""
        return _normalize(super().forward, x, self.training)

    def fold(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, (B, H) each, with which ``scale * x + shift`` is this layer in evaluation mode."""
        size = (len(c), self.num_features)
        return _fold(self.weight.expand(size), self.bias.expand(size), self)


class NoNorm(nn.Module):
    """The identity with the interface of :class:`ConditionalBatchNorm`.

    Args:
        channels: H.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return (B, M, H) as it is."""
        return x

    def fold(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Ones and zeros, (B, H) each."""
        return c.new_ones((len(c), self.channels)), c.new_zeros((len(c), self.channels))


def _normalize(norm: Callable[[Tensor], Tensor], x: Tensor, training: bool) -> Tensor:
    """Batch norm of rows (B, M, H).

    torch takes the statistics of rows on a CPU from plain float32 sums: measured on 131,072 rows from N(0, 1) the
    result is wrong by 8e-5, and by 5e-4 at a mean of 30 deviations; that of (B, H, M) by 6e-7 and 7e-6, in 6 times the
    time. So training takes the latter.
    """
    if training:
        return norm(x.transpose(1, 2)).transpose(1, 2)
    return norm(x.flatten(0, 1)).view_as(x)


def _fold(gamma: Tensor, beta: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    scale = gamma * torch.rsqrt(norm.running_var + norm.eps)
    return scale, beta - scale * norm.running_mean
