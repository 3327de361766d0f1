# SPDX-License-Identifier: MIT
"""How far a U-Net looks: which input cells an output cell depends on, from the modules themselves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from occnets.models.unet import UNet
from occnets.models.unet3d import UNet3D
from occnets.models.unet3d_light import UNet3DLight


@dataclass(frozen=True)
class ReceptiveField:
    """What windows over a U-Net have to keep to, in cells along one axis.

    Attributes:
        below, above: an output cell depends on the input from ``below`` cells before it to ``above`` cells after it at
            most. They differ, and are larger than half the usual "receptive field", because what a cell sees shifts
            with its place in the pooling windows; these are the largest over all places.
        stride: windows give equal results only if they begin at multiples of this (the product of the poolings).
    """

    below: int
    above: int
    stride: int

    @property
    def halo(self) -> int:
        """Margin of a window on every side: what is seen, rounded up to a multiple of the stride."""
        return -(-max(self.below, self.above) // self.stride) * self.stride


@dataclass(frozen=True)
class _Levels:
    """Reach of the convolutions of each level on the way down and up, and of the upsampling, in the level's cells."""

    down: tuple[int, ...]
    up: tuple[int, ...]
    blur: int = 0


def receptive_field(unet: nn.Module | None) -> ReceptiveField:
    """The receptive field of an encoder's U-Net; that of no U-Net is the cell itself.

    Args:
        unet: :class:`UNet3D`, :class:`UNet3DLight` (without its last, sub-voxel step, which looks at one cell) or the
            2-D :class:`UNet`.

    Raises:
        ValueError: another module.
    """
    if unet is None:
        return ReceptiveField(0, 0, 1)
    levels = _levels(unet)
    stride = 2 ** len(levels.up)
    below = above = 0
    for place in range(stride):
        low, high = _seen(levels, 0, place, place)
        below, above = max(below, place - low), max(above, high - place)
    return ReceptiveField(below, above, stride)


def _levels(unet: nn.Module) -> _Levels:
    if isinstance(unet, UNet3DLight):
        down = (_reach(unet.stem), *(_reach(level) for level in unet.down))
        return _Levels(down, tuple(_reach(block) for block in reversed(unet.up)))
    if isinstance(unet, UNet3D):
        return _Levels(tuple(map(_reach, unet.encoders)), tuple(_reach(block) for block in reversed(unet.decoders)))
    if isinstance(unet, UNet):
        # Bilinear upsampling mixes neighbouring coarse cells, a transposed convolution of step and width 2 does not.
        blur = int(any(isinstance(part, nn.Upsample) for part in unet.modules()))
        up = tuple(_reach(block) for block in reversed(unet.up_convs))
        return _Levels(tuple(map(_reach, unet.down_convs)), up, blur)
    raise ValueError(
        f"receptive_field: expected one of UNet3D, UNet3DLight and UNet, got {type(unet).__name__}; "
        "describe its levels in occnets.scenes.receptive"
    )


def _reach(block: nn.Module) -> int:
    """Cells that the convolutions of a block look to either side; shortcuts reach no further."""
    convolutions = [part for part in block.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))]
    return sum((part.kernel_size[0] - 1) // 2 * part.dilation[0] for part in convolutions)


def _seen(levels: _Levels, level: int, low: int, high: int) -> tuple[int, int]:
    """Cells of the level's input that its output cells ``low`` to ``high`` depend on."""
    if level < len(levels.up):
        low, high = low - levels.up[level], high + levels.up[level]
        # An upsampled cell shows the coarse cell over it, which has seen whole pooling windows.
        deep = _seen(levels, level + 1, (low - levels.blur) // 2, (high + levels.blur) // 2)
        low, high = min(low, 2 * deep[0]), max(high, 2 * deep[1] + 1)
    return low - levels.down[level], high + levels.down[level]
