# SPDX-License-Identifier: MIT
"""Image backbones of the libraries torchvision and timm; skipped where they are not installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import occnets
from occnets import zoo
from occnets.models.image_encoders import TIMM_BACKBONES, ImageEncoder, ImagePyramidEncoder, make_backbone
from occnets.models.resnet import RESNETS, ResNet

# Published sizes of single-image models, millions of parameters, one decimal, and of the two larger set-ups.
PUBLISHED = {
    "onet-img": 13.4,
    "onet-img-resnet34": 23.5,
    "onet-img-resnet50": 26.1,
    "onet-img-resnet101": 45.1,
    "onet-img-convnext-tiny": 30.1,
    "onet-img-pyramid": 86.1,
    "onet-img-pyramid-pose": 86.3,
}


def library(name: str) -> ModuleType:
    """Import ``torchvision`` or ``timm``, or skip.

    A torchvision built for CUDA registers no operators beside a CPU build of torch, and then fails when it describes
    them; the two it asks for are declared here.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or "+cpu" not in torch.__version__:
            raise
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return importlib.import_module(name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_those_of_torchvision(name: str) -> None:
    torchvision = library("torchvision")
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    ours = ResNet(name).eval()
    ours.load_torchvision(theirs.state_dict())
    assert [*ours.state_dict(), "fc.weight", "fc.bias"] == list(theirs.state_dict())
    theirs.fc = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_the_published_sizes(name: str) -> None:
    if not name.startswith("onet-img-resnet") and name != "onet-img":
        library("timm")
    count = occnets.model_info(name).parameters
    assert count is not None and count / 1e6 == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", zoo._TIMM_PARAMETERS)
def test_sizes_told_without_timm_are_those_with_it(name: str) -> None:
    library("timm")
    assert occnets.model_info(name).missing == ""
    assert occnets.model_info(name).parameters == zoo._TIMM_PARAMETERS[name]


@pytest.mark.parametrize("name", TIMM_BACKBONES)
def test_backbones_have_the_declared_channels(name: str) -> None:
    library("timm")
    with torch.device("meta"):
        network, channels = make_backbone(name, pool=True)
        assert network(torch.empty(2, 3, 64, 64)).shape == (2, channels)
        maps, channels = make_backbone(name, pool=False)
        assert maps(torch.empty(2, 3, 64, 64)).shape == (2, channels, 2, 2)


def test_a_backbone_s_code_is_its_pooled_output_and_a_linear_layer() -> None:
    library("timm")
    encoder = ImageEncoder("efficientnet_b0", c_dim=16).eval()
    with torch.no_grad():
        code = encoder(torch.rand(2, 3, 64, 64))
    assert code.shape == (2, 16) and torch.isfinite(code).all() and not torch.allclose(code[0], code[1])


def test_every_parameter_of_a_pyramid_of_backbones_learns() -> None:
    library("timm")
    encoder = ImagePyramidEncoder(c_dim=16, backbone="convnext_tiny", n_scales=2)
    encoder(torch.rand(1, 3, 64, 64)).sum().backward()
    assert not [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
