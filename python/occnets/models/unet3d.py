# SPDX-License-Identifier: MIT
"""The family's three-dimensional U-Net over feature grids (Çiçek et al. 2016, in Wolny's layout)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.conv3d import Conv3d
from occnets.models.norm import GroupNorm

_ACTIVATIONS = {"r": ("ReLU", nn.ReLU), "l": ("LeakyReLU", nn.LeakyReLU), "e": ("ELU", nn.ELU)}


def _groups(num_groups: int, channels: int) -> int:
    """The family's rule: ``num_groups``, or one group when there are fewer channels than groups."""
    return num_groups if channels >= num_groups else 1


class SingleConv(nn.Sequential):
    """One 3x3x3 convolution with norm and activation in the order spelt by ``order``.

    Letters: ``c`` convolution, ``g`` group norm, ``b`` batch norm, ``r`` ReLU, ``l`` leaky ReLU (0.1), ``e`` ELU. The
    convolution has a bias only when ``order`` has no norm. A norm before the convolution acts on its input channels.

    Raises:
        ValueError: an unknown letter, no convolution, or channels that the groups do not divide.
    """

    def __init__(self, in_channels: int, out_channels: int, order: str, num_groups: int) -> None:
        super().__init__()
        if order.count("c") != 1 or any(letter not in "cgbrle" for letter in order):
            raise ValueError(f"UNet3D: layer_order must hold one 'c' and letters of 'gbrle', got {order!r}")
        for position, letter in enumerate(order):
            channels = in_channels if position < order.index("c") else out_channels
            if letter == "c":
                bias = not ("g" in order or "b" in order)
                self.add_module("conv", Conv3d(in_channels, out_channels, 3, padding=1, bias=bias))
            elif letter == "g":
                self.add_module("groupnorm", GroupNorm(_groups(num_groups, channels), channels))
            elif letter == "b":
                self.add_module("batchnorm", nn.BatchNorm3d(channels))
            else:
                name, activation = _ACTIVATIONS[letter]
                self.add_module(name, activation(0.1) if letter == "l" else activation())


class DoubleConv(nn.Sequential):
    """Two :class:`SingleConv`. The encoder widens in the second one, the decoder narrows in the first."""

    def __init__(self, in_channels: int, out_channels: int, encoder: bool, order: str, num_groups: int) -> None:
        super().__init__()
        middle = max(in_channels, out_channels // 2) if encoder else out_channels
        self.add_module("SingleConv1", SingleConv(in_channels, middle, order, num_groups))
        self.add_module("SingleConv2", SingleConv(middle, out_channels, order, num_groups))


class _Level(nn.Module):
    """One level of :class:`UNet3D`; the extra name ``basic_module`` is part of the checkpoint keys."""

    def __init__(self, block: DoubleConv) -> None:
        super().__init__()
        self.basic_module = block

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


class UNet3D(nn.Module):
    """The family's 3-D U-Net: double convolutions, max-pooling, nearest upsampling, concatenated skips; linear output.

    Runs channels-last-3d.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        final_sigmoid: accepted because family files carry it; has no effect, the output is always linear (the original
            applies an activation only in a testing mode that none of its programs switches on).
        f_maps: width of the first level (then doubled at each level), or the widths of all levels.
        layer_order: see :class:`SingleConv`.
        num_groups: groups of a group norm (1 for layers with fewer channels).
        num_levels: number of levels, ignored when ``f_maps`` is a sequence.
        is_segmentation: accepted, no effect, as ``final_sigmoid``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        final_sigmoid: bool = True,
        f_maps: int | Sequence[int] = 64,
        layer_order: str = "gcr",
        num_groups: int = 8,
        num_levels: int = 4,
        is_segmentation: bool = True,
    ) -> None:
        super().__init__()
        widths = level_widths(f_maps, num_levels)
        self.divisor = 2 ** (len(widths) - 1)
        inputs = [in_channels, *widths[:-1]]
        self.encoders = nn.ModuleList(
            _Level(DoubleConv(i, o, True, layer_order, num_groups)) for i, o in zip(inputs, widths, strict=True)
        )
        self.decoders = nn.ModuleList(
            _Level(DoubleConv(widths[k] + widths[k - 1], widths[k - 1], False, layer_order, num_groups))
            for k in range(len(widths) - 1, 0, -1)
        )
        self.final_conv = Conv3d(widths[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, out_channels, D, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        skips: list[Tensor] = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(functional.max_pool3d(x, 2) if level else x)
            skips.append(x)
        for decoder, skip in zip(self.decoders, reversed(skips[:-1]), strict=True):
            up = functional.interpolate(x, size=skip.shape[2:], mode="nearest")
            # Skip channels first, upsampled second: the opposite of the 2-D network, and weights depend on it.
            x = decoder(torch.cat((skip, up), dim=1))
        return self.final_conv(x)


def level_widths(f_maps: int | Sequence[int], num_levels: int) -> list[int]:
    """Widths of all levels: ``f_maps * 2**level`` for ``num_levels`` levels, or the given sequence itself."""
    if isinstance(f_maps, int):
        return [f_maps * 2**level for level in range(num_levels)]
    return [int(width) for width in f_maps]
