# SPDX-License-Identifier: MIT
"""Small image encoders of the original ONet repository: its own and those of the methods it compares with.

Images are (B, 3, H, W) RGB in [0, 1]. Each returns a condition (B, c_dim); those whose methods read feature maps have
``feature_maps`` as well, and as a condition give the spatial mean of the last one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from occnets.models.options import make_options

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_R2N2_SIZE = 127  # pixels; six poolings leave 3 x 3


def imagenet_normalize(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean colour and divide by its deviation; images (B, 3, H, W) in [0, 1]."""
    mean = images.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    return (images - mean) / images.new_tensor(IMAGENET_DEVIATION).view(3, 1, 1)


@dataclasses.dataclass(frozen=True)
class ConvOptions:
    """Options of :class:`ConvEncoder`.

    Attributes:
        c_dim: channels of the condition.
    """

    c_dim: int = 128


class ConvEncoder(nn.Module):
    """Five convolutions with stride 2 and without padding (``simple_conv``); the image is not normalised.

    Args:
        options: see :class:`ConvOptions`; or give its fields as keywords.
    """

    def __init__(self, options: ConvOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(ConvOptions, fields, "ConvEncoder") if options is None else options
        self.options, self.c_dim = o, o.c_dim
        widths = (3, 32, 64, 128, 256, 512)
        for index in range(5):
            self.add_module(f"conv{index}", nn.Conv2d(widths[index], widths[index + 1], 3, stride=2))
        self.fc_out = nn.Linear(512, o.c_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W), at least 63 pixels a side, to the condition (B, c_dim)."""
        net = self.conv0(images)
        for index in range(1, 5):
            net = self.get_submodule(f"conv{index}")(functional.relu(net))
        return self.fc_out(functional.relu(net.mean(dim=(2, 3))))


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """Options of :class:`PSGNEncoder` and :class:`Pix2MeshEncoder`.

    Attributes:
        c_dim: channels of the last map and of the condition.
        normalize: own option: subtract ImageNet's mean and divide by its deviation.
    """

    c_dim: int = 512
    normalize: bool = False


class PSGNEncoder(nn.Module):
    """Encoder of the Point Set Generation Network (Fan et al., CVPR 2017; ``psgn_cond``).

    Args:
        options: see :class:`MapOptions`; or give its fields as keywords.

    Raises:
        ValueError: ``c_dim`` is no multiple of 32.
    """

    def __init__(self, options: MapOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(MapOptions, fields, "PSGNEncoder") if options is None else options
        if o.c_dim < 32 or o.c_dim % 32:
            raise ValueError(f"PSGNEncoder: `c_dim` must be a multiple of 32, got {o.c_dim}")
        self.options, self.c_dim = o, o.c_dim
        f = o.c_dim // 32
        self.conv_block1 = _convs(3, [(f, 3, 1), (f, 3, 1)])
        for index, count in zip(range(2, 7), (3, 3, 3, 3, 4), strict=True):
            width = f << (index - 1)
            layers = [(width, 3, 2), *[(width, 3, 1)] * (count - 1)]
            self.add_module(f"conv_block{index}", _convs(width // 2, layers))
        self.conv_block7 = _convs(32 * f, [(32 * f, 5, 2)])
        for index in (1, 2, 3):
            width = f << (index + 1)
            self.add_module(f"trans_conv{index}", nn.Conv2d(2 * width, width, 3, padding=1))

    def feature_maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The last map (B, c_dim, ...) and three lateral maps with 1/8, 1/4 and 1/2 of its channels, finest first."""
        net = imagenet_normalize(images) if self.options.normalize else images
        lateral = []
        for index in range(1, 8):
            net = self.get_submodule(f"conv_block{index}")(net)
            if index in (4, 5, 6):
                lateral.append(self.get_submodule(f"trans_conv{index - 3}")(net))
        return net, (lateral[0], lateral[1], lateral[2])

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the condition (B, c_dim)."""
        return self.feature_maps(images)[0].mean(dim=(2, 3))


class Pix2MeshEncoder(nn.Module):
    """Encoder of Pixel2Mesh (Wang et al., ECCV 2018; ``pixel2mesh_cond``).

    Args:
        options: see :class:`MapOptions`; or give its fields as keywords.

    Raises:
        ValueError: ``c_dim`` is not 512.
    """

    def __init__(self, options: MapOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(MapOptions, fields, "Pix2MeshEncoder") if options is None else options
        if o.c_dim != 512:
            raise ValueError(f"Pix2MeshEncoder: `c_dim` must be 512, got {o.c_dim}")
        self.options, self.c_dim = o, o.c_dim
        entry = [(16, 3, 1), (16, 3, 1), (32, 3, 2), (32, 3, 1), (32, 3, 1), (64, 3, 2), (64, 3, 1), (64, 3, 1)]
        self.block_1 = _convs(3, entry)
        self.block_2 = _convs(64, [(128, 3, 2), (128, 3, 1), (128, 3, 1)])
        self.block_3 = _convs(128, [(256, 5, 2), (256, 3, 1), (256, 3, 1)])
        self.block_4 = _convs(256, [(512, 5, 2), (512, 3, 1), (512, 3, 1), (512, 3, 1)])

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of 64, 128, 256 and 512 channels; of images of 224 pixels 56, 28, 14 and 7 a side."""
        net = imagenet_normalize(images) if self.options.normalize else images
        maps = []
        for block in (self.block_1, self.block_2, self.block_3, self.block_4):
            net = block(net)
            maps.append(net)
        return tuple(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the condition (B, 512)."""
        return self.feature_maps(images)[-1].mean(dim=(2, 3))


def _convs(channels: int, layers: Sequence[tuple[int, int, int]]) -> nn.Sequential:
    """Convolutions of (channels, kernel, stride), each followed by a ReLU."""
    made: list[nn.Module] = []
    for width, kernel, stride in layers:
        made += [nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2), nn.ReLU()]
        channels = width
    return nn.Sequential(*made)


@dataclasses.dataclass(frozen=True)
class R2N2Options:
    """Options of the 3D-R2N2 encoders.

    Attributes:
        c_dim: channels of the condition.
    """

    c_dim: int = 1024


class R2N2Encoder(nn.Module):
    """Encoder of 3D-R2N2 (Choy et al., ECCV 2016; ``r2n2_simple``) for images of 127 x 127 pixels.

    Args:
        options: see :class:`R2N2Options`; or give its fields as keywords.
    """

    def __init__(self, options: R2N2Options | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(R2N2Options, fields, type(self).__name__) if options is None else options
        self.options, self.c_dim = o, o.c_dim
        self.convnet = nn.Sequential(*self._network())
        self.fc_out = nn.Linear(256 * 3 * 3, o.c_dim)

    def _network(self) -> list[nn.Module]:
        widths = (3, 96, 128, 256, 256, 256, 256)
        made: list[nn.Module] = []
        for index in range(6):
            kernel = 3 if index else 7
            made.append(nn.Conv2d(widths[index], widths[index + 1], kernel, padding=kernel // 2))
            made += [nn.MaxPool2d(2, padding=1), nn.LeakyReLU()]
        return made

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, 127, 127) to the condition (B, c_dim).

        Raises:
            ValueError: another size.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, _R2N2_SIZE, _R2N2_SIZE):
            raise ValueError(
                f"{type(self).__name__}: `images` must be (B, 3, {_R2N2_SIZE}, {_R2N2_SIZE}), got "
                f"{tuple(images.shape)}; set data.img_size: {_R2N2_SIZE}"
            )
        return self.fc_out(self.convnet(imagenet_normalize(images)).flatten(1))


class R2N2ResidualEncoder(R2N2Encoder):
    """Residual encoder of 3D-R2N2 (``r2n2_resnet``) for images of 127 x 127 pixels."""

    def _network(self) -> list[nn.Module]:
        made: list[nn.Module] = [*_leaky_convs(3, 96, 7), nn.MaxPool2d(2, padding=1)]
        channels = 96
        for width in (128, 256, 256, 256, 256):
            made += [_ResidualBlock(channels, width), nn.MaxPool2d(2, padding=1)]
            channels = width
        return made


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with leaky ReLUs, added to a 1x1 convolution of the input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convnet = nn.Sequential(*_leaky_convs(channels_in, channels_out, 3))
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convnet(x)


def _leaky_convs(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    first = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    return [first, nn.LeakyReLU(), nn.Conv2d(channels_out, channels_out, 3, padding=1), nn.LeakyReLU()]


CONV_ENCODERS: dict[str, tuple[type, Callable[[Any], nn.Module]]] = {
    "simple_conv": (ConvOptions, ConvEncoder),
    "psgn_cond": (MapOptions, PSGNEncoder),
    "pixel2mesh_cond": (MapOptions, Pix2MeshEncoder),
    "r2n2_simple": (R2N2Options, R2N2Encoder),
    "r2n2_resnet": (R2N2Options, R2N2ResidualEncoder),
}
"""Encoder names of the family: options and maker."""
