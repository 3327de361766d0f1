# SPDX-License-Identifier: MIT
"""A 3-D U-Net for CPUs: residual blocks, few norms, summed skips, sub-voxel upsampling at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.conv3d import Conv3d
from occnets.models.norm import GroupNorm
from occnets.models.options import make_options
from occnets.models.unet3d import level_widths


@dataclasses.dataclass(frozen=True)
class UNet3DLightOptions:
    """Options of :class:`UNet3DLight`.

    Attributes:
        in_channels: input channels.
        out_channels: output channels.
        f_maps: width of level 0 (level k has ``f_maps * 2**k``), or the widths of all levels.
        num_levels: number of levels, ignored when ``f_maps`` is a sequence.
        blocks: residual blocks on the way down per level from 1 on (one number for all, or one per level). Level 0
            always has one single-convolution block: its convolutions dominate the cost.
        upscale: sub-voxel factor u: the output grid has u times the resolution of the input grid.
        head_channels: width of an extra 1x1x1 convolution with ReLU before the last one; ``None`` = no such layer.
        num_groups: groups of the group norms; must divide ``in_channels`` and every width.
        norm: ``"group"``, or ``"none"``: every output then depends on a bounded part of the input only, as scenes that
            are reconstructed window by window need; the first convolution of a block gets a bias instead.
    """

    in_channels: int = 32
    out_channels: int = 32
    f_maps: int | Sequence[int] = 32
    num_levels: int = 3
    blocks: int | Sequence[int] = 1
    upscale: int = 2
    head_channels: int | None = None
    num_groups: int = 8
    norm: str = "group"


class ResidualBlock3d(nn.Module):
    """``x + conv(relu(conv(norm(x))))``, or with ``single`` ``x + relu(conv(norm(x)))``; 3x3x3 without bias.

    The shortcut is a 1x1x1 convolution without bias when the widths differ. With ``num_groups`` 0 there is no norm, and
    the first convolution has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, single: bool = False) -> None:
        super().__init__()
        self.norm = GroupNorm(num_groups, in_channels) if num_groups else nn.Identity()
        self.conv1 = Conv3d(in_channels, out_channels, 3, padding=1, bias=not num_groups)
        self.conv2 = None if single else Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None if in_channels == out_channels else Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, D, H, W) to (B, out, D, H, W)."""
        net = functional.relu(self.conv1(self.norm(x)), inplace=True)
        if self.conv2 is not None:
            net = self.conv2(net)
        return net + (x if self.shortcut is None else self.shortcut(x))


class UNet3DLight(nn.Module):
    """U-Net whose output grid is ``upscale`` times finer than its input, at the price of the coarse one.

    Down: one single-convolution block at level 0, then max-pool and ``blocks`` residual blocks per level. Up: a 1x1x1
    convolution to the skip's width at the coarse resolution, nearest upsampling, added to the skip, one residual
    block (single-convolution at level 0). End: a 1x1x1 convolution to ``out_channels * upscale**3`` channels, moved
    into space (Shi et al. 2016, in 3-D). No concatenation; runs channels-last-3d, and so is the output.

    Args:
        options: see :class:`UNet3DLightOptions`; or give its fields as keywords.
    """

    def __init__(self, options: UNet3DLightOptions | None = None, **fields: Any) -> None:
        super().__init__()
        options = make_options(UNet3DLightOptions, fields, "UNet3DLight") if options is None else options
        self.options = options
        widths = level_widths(options.f_maps, options.num_levels)
        blocks = [options.blocks] * (len(widths) - 1) if isinstance(options.blocks, int) else list(options.blocks)
        _check_light(options, widths, blocks)
        groups = options.num_groups if options.norm == "group" else 0
        self.stem = ResidualBlock3d(options.in_channels, widths[0], groups, single=True)
        self.down = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock3d(widths[k] if b else widths[k - 1], widths[k], groups) for b in range(count))
            )
            for k, count in enumerate(blocks, start=1)
        )
        levels = range(len(widths) - 1, 0, -1)
        self.reduce = nn.ModuleList(Conv3d(widths[k], widths[k - 1], 1, bias=False) for k in levels)
        self.up = nn.ModuleList(ResidualBlock3d(widths[k - 1], widths[k - 1], groups, single=k == 1) for k in levels)
        self.head = Conv3d(widths[0], options.head_channels, 1) if options.head_channels else None
        self.final_conv = Conv3d(options.head_channels or widths[0], options.out_channels * options.upscale**3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, R, R, R) to (B, out_channels, upscale * R, upscale * R, upscale * R).

        Raises:
            ValueError: R is not divisible by 2**(levels - 1).
        """
        return pixel_shuffle_3d(self.final_conv(self.trunk(x)), self.options.upscale)

    def trunk(self, x: Tensor) -> Tensor:
        """Everything before the last convolution: (B, in_channels, R, R, R) to (B, width, R, R, R)."""
        divisor = 2 ** len(self.down)
        if any(size % divisor for size in x.shape[2:]):
            raise ValueError(
                f"UNet3DLight: the grid must be divisible by {divisor}, got {tuple(x.shape)}; "
                f"change grid_resolution or unet3d_kwargs.num_levels"
            )
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        skips: list[Tensor] = []
        for level in self.down:
            skips.append(x)
            x = level(functional.max_pool3d(x, 2))
        for reduce, block, skip in zip(self.reduce, self.up, reversed(skips), strict=True):
            x = block(skip + functional.interpolate(reduce(x), scale_factor=2.0, mode="nearest"))
        if self.head is not None:
            x = functional.relu(self.head(x), inplace=True)
        return x


def pixel_shuffle_3d(x: Tensor, upscale: int) -> Tensor:
    """Move channels into space: (B, upscale**3 * C, D, H, W) to (B, C, upscale * D, upscale * H, upscale * W).

    Channel ``((z * upscale + y) * upscale + x) * C + c`` of a voxel becomes channel ``c`` of its sub-voxel (z, y, x),
    so that with channels-last-3d memory whole runs of C values are moved. The result has channels-last-3d memory.
    """
    if upscale == 1:
        return x
    batch, channels, *size = x.shape
    u = upscale
    blocks = x.permute(0, 2, 3, 4, 1).reshape(batch, *size, u, u, u, channels // u**3)
    blocks = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *(u * s for s in size), channels // u**3)
    return blocks.permute(0, 4, 1, 2, 3)


def _check_light(options: UNet3DLightOptions, widths: Sequence[int], blocks: Sequence[int]) -> None:
    if len(blocks) != len(widths) - 1 or any(count < 1 for count in blocks):
        raise ValueError(
            f"UNet3DLight: blocks needs one positive number for each of the {len(widths) - 1} levels below the first, "
            f"got {options.blocks!r}"
        )
    if options.norm not in ("group", "none"):
        raise ValueError(f"UNet3DLight: norm must be 'group' or 'none', got {options.norm!r}")
    for channels in (options.in_channels, *widths) if options.norm == "group" else ():
        if channels % options.num_groups:
            raise ValueError(f"UNet3DLight: num_groups {options.num_groups} must divide the width {channels}")
    if options.upscale < 1:
        raise ValueError(f"UNet3DLight: upscale must be at least 1, got {options.upscale}")
