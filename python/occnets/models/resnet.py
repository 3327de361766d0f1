# SPDX-License-Identifier: MIT
"""ResNet-18, 34, 50 and 101 (He et al., CVPR 2016) with the parameter names of torchvision, without torchvision.

The stride of a bottleneck is in its 3x3 convolution (the "v1.5" that torchvision's weights belong to).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

RESNETS: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "resnet18": (1, (2, 2, 2, 2)),
    "resnet34": (1, (3, 4, 6, 3)),
    "resnet50": (4, (3, 4, 6, 3)),
    "resnet101": (4, (3, 4, 23, 3)),
}
"""Name to expansion (1: basic blocks, 4: bottlenecks) and blocks a stage."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions.

    Args:
        channels_in: channels of the input.
        width: channels inside and of the output.
        stride: of the first convolution.
    """

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(width, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, width, H / stride, W / stride)."""
        net = self.relu(self.bn1(self.conv1(x)))
        net = self.bn2(self.conv2(net))
        return self.relu(net + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions.

    Args:
        channels_in: channels of the input.
        width: channels inside; the output has four times as many.
        stride: of the 3x3 convolution.
    """

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, 4 * width, H / stride, W / stride)."""
        net = self.relu(self.bn1(self.conv1(x)))
        net = self.relu(self.bn2(self.conv2(net)))
        net = self.bn3(self.conv3(net))
        return self.relu(net + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The convolutional part of a ResNet, without its classifier.

    Args:
        name: one of `RESNETS`.
        pool: return the spatial mean of the last map instead of the map.

    Attributes:
        channels: channels of the result.

    Raises:
        ValueError: unknown name.
    """

    def __init__(self, name: str, pool: bool = True) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"ResNet: `name` must be one of {', '.join(RESNETS)}, got {name!r}")
        expansion, depths = RESNETS[name]
        self.name, self.pool, self.channels = name, pool, 512 * expansion
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        block = BasicBlock if expansion == 1 else Bottleneck
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            blocks = []
            for index in range(depth):
                blocks.append(block(channels, width, 2 if stage and not index else 1))
                channels = expansion * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, channels), or to (B, channels, ceil(H / 32), ceil(W / 32)) without ``pool``."""
        net = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            net = self.get_submodule(f"layer{stage}")(net)
        return net.mean(dim=(2, 3)) if self.pool else net

    def load_torchvision(self, state: Mapping[str, Tensor]) -> None:
        """Load the state dictionary of torchvision's network of the same name; its classifier ``fc`` is left out.

        Raises:
            RuntimeError: keys or shapes differ (from ``torch.nn.Module.load_state_dict``).
        """
        self.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")}, strict=True)


def _conv3x3(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
    )
