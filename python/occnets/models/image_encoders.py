# SPDX-License-Identifier: MIT
"""Image encoders of Occupancy Networks: one image, a pyramid of scales, an image with its camera's pose.

Images are (B, 3, H, W) RGB in [0, 1]; the encoders subtract ImageNet's mean themselves. Every encoder has the attribute
``c_dim``, the channels it returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets._optional import optional
from occnets.models import conv_encoders
from occnets.models.options import make_options, nearest_hint
from occnets.models.pose import PoseLayer, PoseOptions
from occnets.models.resnet import RESNETS, ResNet

TIMM_BACKBONES: dict[str, int] = {
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "efficientnet_b5": 2048,
    "efficientnet_b7": 2560,
    "convnext_tiny": 768,
}
"""Networks taken from the library ``timm`` (Tan and Le, ICML 2019; Liu et al., CVPR 2022) and their channels."""

_SMALLEST_IMAGE = 32  # pixels: all backbones reduce by 32


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Options of :class:`ImageEncoder`; names and defaults are the family's unless said.

    Attributes:
        c_dim: channels of the condition.
        normalize: subtract ImageNet's mean and divide by its deviation.
        use_linear: a linear layer from the backbone's channels to ``c_dim``; without it the two must be equal.
        pretrained: own option, ``timm`` networks only: start from the ImageNet weights that ``timm`` downloads. A
            ResNet takes torchvision's weights from :meth:`occnets.models.resnet.ResNet.load_torchvision`.
    """

    c_dim: int = 128
    normalize: bool = True
    use_linear: bool = True
    pretrained: bool = False


class ImageEncoder(nn.Module):
    """A classification network without its classifier, and a linear layer (``resnet18``, ``convnext_tiny``, ...).

    The original's ``resnet101`` builds a ResNet-50 by mistake; here it is a ResNet-101. No released model uses either.

    Args:
        backbone: one of `RESNETS` or `TIMM_BACKBONES`.
        options: see :class:`ImageOptions`; or give its fields as keywords.

    Raises:
        ValueError: ``use_linear`` is off and ``c_dim`` is not the backbone's number of channels.
        ImportError: the backbone needs ``timm``, which is not installed.
    """

    def __init__(self, backbone: str, options: ImageOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(ImageOptions, fields, "ImageEncoder") if options is None else options
        self.options, self.c_dim = o, o.c_dim
        self.features, channels = make_backbone(backbone, pool=True, pretrained=o.pretrained)
        if not o.use_linear and o.c_dim != channels:
            raise ValueError(
                f"ImageEncoder: without use_linear the condition has the {channels} channels of {backbone}, "
                f"got c_dim {o.c_dim}; set c_dim: {channels} or use_linear: true"
            )
        self.fc = nn.Linear(channels, o.c_dim) if o.use_linear else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the condition (B, c_dim)."""
        return self.fc(self.features(conv_encoders.imagenet_normalize(images) if self.options.normalize else images))


def make_backbone(name: str, *, pool: bool, pretrained: bool = False) -> tuple[nn.Module, int]:
    """A classification network without its classifier, and its channels.

    Args:
        name: one of `RESNETS` or `TIMM_BACKBONES`.
        pool: the network returns the spatial mean (B, channels) instead of the last map.
        pretrained: let ``timm`` download its ImageNet weights.

    Raises:
        ValueError: unknown name, or ``pretrained`` for a ResNet.
        ImportError: ``timm`` is needed and not installed.
    """
    if name in RESNETS:
        if pretrained:
            raise ValueError(
                f"make_backbone: `pretrained` is for {', '.join(TIMM_BACKBONES)}; for {name} load torchvision's file "
                f"with ResNet.load_torchvision"
            )
        network = ResNet(name, pool)
        return network, network.channels
    if name not in TIMM_BACKBONES:
        known = (*RESNETS, *TIMM_BACKBONES)
        raise ValueError(f"backbone: unknown name {name!r}; {nearest_hint(name, known)}known: {', '.join(known)}.")
    timm = optional("timm", extra="backbones", why=f"for the backbone {name}")
    made = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="avg" if pool else "")
    return made, TIMM_BACKBONES[name]


@dataclasses.dataclass(frozen=True)
class PyramidOptions:
    """Options of :class:`ImagePyramidEncoder`.

    Attributes:
        c_dim: channels of the pyramid and of the condition.
        backbone: network of each scale, one of `RESNETS` or `TIMM_BACKBONES`.
        n_scales: number of scales; each has half the side of the one before.
        normalize, pretrained: as in :class:`ImageOptions`.
    """

    c_dim: int = 128
    backbone: str = "convnext_tiny"
    n_scales: int = 3
    normalize: bool = True
    pretrained: bool = False


class ImagePyramidEncoder(nn.Module):
    """The image at several scales, an encoder each, joined by a feature pyramid (``image_pyramid``).

    The last map of each scale's network passes a 1x1 convolution and is added to the enlarged sum of the coarser scales
    (Lin et al., "Feature pyramid networks", CVPR 2017); a ReLU, the mean over the finest map and a linear layer follow.

    Args:
        options: see :class:`PyramidOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PyramidOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PyramidOptions, fields, "ImagePyramidEncoder") if options is None else options
        if o.n_scales < 1:
            raise ValueError(f"ImagePyramidEncoder: `n_scales` must be at least 1, got {o.n_scales}")
        self.options, self.c_dim = o, o.c_dim
        made = [make_backbone(o.backbone, pool=False, pretrained=o.pretrained) for _ in range(o.n_scales)]
        self.scales = nn.ModuleList(network for network, _ in made)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, o.c_dim, 1) for _, channels in made)
        self.fc = nn.Linear(o.c_dim, o.c_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the condition (B, c_dim).

        Raises:
            ValueError: the coarsest scale is smaller than 32 pixels.
        """
        smallest = min(images.shape[2:]) >> (self.options.n_scales - 1)
        if smallest < _SMALLEST_IMAGE:
            raise ValueError(
                f"ImagePyramidEncoder: the coarsest of {self.options.n_scales} scales needs {_SMALLEST_IMAGE} pixels a "
                f"side, got {smallest} from images {tuple(images.shape)}; give larger images or set n_scales lower"
            )
        images = conv_encoders.imagenet_normalize(images) if self.options.normalize else images
        net: Tensor | None = None
        for index in reversed(range(self.options.n_scales)):
            size = (images.shape[2] >> index, images.shape[3] >> index)
            scaled = images if index == 0 else _resize(images, size, antialias=True)
            level = self.lateral[index](self.scales[index](scaled))
            net = level if net is None else level + _resize(net, level.shape[2:])
        assert net is not None
        return self.fc(functional.relu(net).mean(dim=(2, 3)))


def _resize(images: Tensor, size: Any, antialias: bool = False) -> Tensor:
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)


@dataclasses.dataclass(frozen=True)
class PosedImageOptions:
    """Options of :class:`PosedImageEncoder`.

    Attributes:
        c_dim: channels of the image's part of the condition.
        encoder: name of the image encoder, one of `IMAGE_ENCODERS`.
        encoder_kwargs: its options.
        rotation: ``"matrix"``: the pose's 16 numbers; ``"6d"``: continuous rotation and translation.
        pose_dim: channels of the pose's part.
    """

    c_dim: int = 128
    encoder: str = "resnet18"
    encoder_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rotation: str = "matrix"
    pose_dim: int = 32


class PosedImageEncoder(nn.Module):
    """An image encoder and a linear layer of the camera's pose, concatenated (``image_pose``).

    Args:
        options: see :class:`PosedImageOptions`; or give its fields as keywords.

    Attributes:
        c_dim: channels of the whole condition, the image's and the pose's.
    """

    def __init__(self, options: PosedImageOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PosedImageOptions, fields, "PosedImageEncoder") if options is None else options
        self.options = o
        self.image = make_image_encoder(o.encoder, o.c_dim, o.encoder_kwargs)
        self.fc_pose = PoseLayer(PoseOptions(o.pose_dim, o.rotation))
        self.c_dim = o.c_dim + o.pose_dim

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Map an image and its pose to the condition (B, c_dim + pose_dim).

        Args:
            inputs: ``image`` (B, 3, H, W) and ``pose`` (B, 4, 4) or (B, 3, 4), the rigid map from world to camera.

        Raises:
            ValueError: one of the two is missing.
        """
        if not isinstance(inputs, Mapping) or not {"image", "pose"} <= set(inputs):
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f"PosedImageEncoder: `inputs` must be a mapping with 'image' and 'pose', got {got}")
        return torch.cat((self.image(inputs["image"]), self.fc_pose(inputs["pose"])), dim=1)


def _backbone_maker(name: str) -> Callable[[Any], nn.Module]:
    return lambda options: ImageEncoder(name, options)


IMAGE_ENCODERS: dict[str, tuple[type, Callable[[Any], nn.Module]]] = {
    **{name: (ImageOptions, _backbone_maker(name)) for name in (*RESNETS, *TIMM_BACKBONES)},
    "image_pyramid": (PyramidOptions, ImagePyramidEncoder),
    **conv_encoders.CONV_ENCODERS,
}
"""Names of the encoders that take one image: options and maker."""


def make_image_encoder(name: str, c_dim: int, options: Mapping[str, Any]) -> nn.Module:
    """An image encoder by name.

    Raises:
        ValueError: unknown name or option, with the nearest known one.
    """
    if name not in IMAGE_ENCODERS:
        hint = nearest_hint(name, IMAGE_ENCODERS)
        raise ValueError(f"image encoder: unknown name {name!r}; {hint}known: {', '.join(IMAGE_ENCODERS)}.")
    options_class, maker = IMAGE_ENCODERS[name]
    return maker(make_options(options_class, {"c_dim": c_dim, **options}, f"encoder_kwargs of {name}"))
