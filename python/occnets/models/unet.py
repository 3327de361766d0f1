# SPDX-License-Identifier: MIT
"""Two-dimensional U-Net over feature planes (Ronneberger et al. 2015; Peng et al. 2020, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.fused_conv import conv_relu


class DownConv(nn.Module):
    """Two 3x3 convolutions with ReLU, then optionally a 2x2 max-pool. Returns (pooled, before pooling)."""

    def __init__(self, in_channels: int, out_channels: int, pooling: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, in, H, W) to ((B, out, H/2, W/2), (B, out, H, W))."""
        x = conv_relu(self.conv2, conv_relu(self.conv1, x))
        return (functional.max_pool2d(x, 2) if self.pooling else x), x


class UpConv(nn.Module):
    """Upsampling by two, merge with the skip connection, two 3x3 convolutions with ReLU."""

    def __init__(self, in_channels: int, out_channels: int, up_mode: str, merge_mode: str) -> None:
        super().__init__()
        self.merge_mode = merge_mode
        self.upconv: nn.Module
        if up_mode == "transpose":
            self.upconv = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        else:
            self.upconv = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(in_channels, out_channels, 1)
            )
        merged = 2 * out_channels if merge_mode == "concat" else out_channels
        self.conv1 = nn.Conv2d(merged, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, in, H, W) and the skip (B, out, 2H, 2W) to (B, out, 2H, 2W)."""
        up = self.upconv(x)
        # Upsampled channels first, skip second: released weights depend on the order.
        x = torch.cat((up, skip), dim=1) if self.merge_mode == "concat" else up + skip
        return conv_relu(self.conv2, conv_relu(self.conv1, x))


class UNet(nn.Module):
    """U-Net with ``depth`` levels of width ``start_filts * 2**level``; linear output.

    Runs channels-last: the output has channels-last memory whatever the input's memory format is.

    Args:
        num_classes: output channels.
        in_channels: input channels.
        depth: number of levels; the spatial size must be divisible by 2**(depth - 1).
        start_filts: width of the first level.
        up_mode: ``"transpose"`` (learned) or ``"upsample"`` (bilinear, then a 1x1 convolution).
        merge_mode: ``"concat"`` or ``"add"``.

    Raises:
        ValueError: unknown mode, or the combination upsample + add.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        depth: int = 5,
        start_filts: int = 64,
        up_mode: str = "transpose",
        merge_mode: str = "concat",
    ) -> None:
        super().__init__()
        if up_mode not in ("transpose", "upsample"):
            raise ValueError(f"UNet: up_mode must be 'transpose' or 'upsample', got {up_mode!r}")
        if merge_mode not in ("concat", "add"):
            raise ValueError(f"UNet: merge_mode must be 'concat' or 'add', got {merge_mode!r}")
        if up_mode == "upsample" and merge_mode == "add":
            raise ValueError("UNet: up_mode 'upsample' cannot be combined with merge_mode 'add'; use 'concat'")
        widths = [start_filts * 2**level for level in range(depth)]
        self.depth = depth
        self.down_convs = nn.ModuleList(
            DownConv(in_channels if level == 0 else widths[level - 1], widths[level], level < depth - 1)
            for level in range(depth)
        )
        self.up_convs = nn.ModuleList(
            UpConv(widths[level], widths[level - 1], up_mode, merge_mode) for level in range(depth - 1, 0, -1)
        )
        self.conv_final = nn.Conv2d(widths[0], num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, num_classes, H, W).

        Raises:
            ValueError: H or W is not divisible by 2**(depth - 1).
        """
        divisor = 2 ** (self.depth - 1)
        if x.shape[-1] % divisor or x.shape[-2] % divisor:
            raise ValueError(
                f"UNet: H and W must be divisible by {divisor} (depth {self.depth}), got {tuple(x.shape)}; "
                f"change the plane resolution or unet_kwargs.depth"
            )
        x = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for down in self.down_convs:
            x, skip = down(x)
            skips.append(skip)
        for up, skip in zip(self.up_convs, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
        return self.conv_final(x)
