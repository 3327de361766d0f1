# SPDX-License-Identifier: MIT
"""ONet parts filled with hashed numbers give the values the original code gives; needs no files from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from convonet_cases import fill_hashed, hashed
from occnets.config import load_config
from occnets.models import build_model
from occnets.models.conv_encoders import ConvEncoder
from occnets.models.onet_decoders import CBN2Decoder, FCDecoder
from occnets.models.onet_encoders import SimplePointNet
from test_convonet_fill import check

IMAGE_CODE = (-0.008264, 1.161080, -3.214696, 3.128519, (2.22476, 0.242838, -0.565801, 0.819282, 2.22006))

# Recorded with the original code: mean, deviation, minimum, maximum, first five values of each tensor.
EXPECTED = {
    "onet-pointcloud": {
        "c": (0.018245, 1.072038, -3.451852, 2.869996, (1.583, -0.686326, -1.45499, 2.60429, -0.289768)),
        "logits": (1.614227, 0.159324, 1.403677, 1.958215, (1.56214, 1.40368, 1.72891, 1.41721, 1.95822)),
    },
    "onet-voxel": {
        "c": (0.000523, 0.086348, -0.252977, 0.214467, (0.014331, 0.058889, 0.041324, -0.102362, -0.010673)),
        "logits": (0.076451, 0.017992, 0.042130, 0.099062, (0.098196, 0.068071, 0.088536, 0.095671, 0.099062)),
    },
    "onet-img": {
        "c": IMAGE_CODE,
        "logits": (-1.318804, 0.418354, -2.090936, -0.606479, (-0.869709, -1.24707, -0.781216, -1.06903, -0.606479)),
    },
    "onet-img-legacy": {
        "c": IMAGE_CODE,
        "logits": (2.734626, 0.298192, 2.130503, 3.231709, (2.51171, 3.02913, 2.85084, 2.51414, 2.772)),
    },
    "onet-img-nocbn": {
        "c": IMAGE_CODE,
        "logits": (1.364165, 0.195603, 0.913756, 1.560974, (1.49525, 1.36634, 1.44921, 1.54478, 1.01508)),
    },
    "onet-img-noresnet": {
        "c": IMAGE_CODE,
        "logits": (0.976785, 0.093691, 0.841912, 1.108194, (1.03952, 1.10819, 1.09337, 1.04523, 1.05063)),
    },
    "onet-unconditional": {
        "logits": (0.748374, 0.288878, 0.403105, 1.281300, (0.439484, 0.53473, 0.403105, 0.466351, 0.464683)),
        "mean": (0.007315, 0.393004, -1.199410, 0.854585, (0.200036, 0.013774, -0.181495, 0.0162, -0.817963)),
        "logstd": (0.029741, 0.440745, -0.961362, 1.454592, (-0.036025, 0.010674, -0.521766, 0.017472, -0.554096)),
    },
}

MODULES = {
    "pointnet_simple": (0.005967, 0.220075, -0.532717, 0.650397, (0.007868, 0.051897, -0.256766, 0.092702, 0.13864)),
    "simple_conv": (-0.001531, 0.098935, -0.286076, 0.308794, (-0.06682, 0.052846, 0.059208, 0.113018, -0.101004)),
    "cbn2": (-0.206880, 0.722636, -1.424533, 0.604560, (-0.610922, -1.42453, -1.13525, -0.649493, -0.827484)),
    "simple": (0.445980, 0.163996, 0.082837, 0.776074, (0.501697, 0.587056, 0.776074, 0.52237, 0.411863)),
    "simple leaky": (0.634539, 0.139296, 0.394501, 0.907367, (0.591353, 0.691842, 0.907367, 0.554706, 0.656779)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def query() -> Tensor:
    return hashed("query", (2, 7, 3), -0.5, 0.5)


def case_inputs(name: str) -> Tensor | None:
    if "img" in name:
        return hashed("img", (2, 3, 224, 224), 0.0, 1.0)
    if "voxel" in name:
        return (hashed("voxels", (2, 32, 32, 32), 0.0, 1.0) > 0.7).float()
    return hashed("cloud", (2, 300, 3), -0.5, 0.5)


@pytest.mark.parametrize("name", EXPECTED)
def test_whole_model(name: str) -> None:
    model = fill_hashed(build_model(load_config(name)))
    with torch.no_grad():
        actual = model.encode(case_inputs(name))
        if "unconditional" in name:
            actual = actual | {"z": hashed("z", (2, 128), -1.0, 1.0)}
            occupancy = (hashed("occ", (2, 7), 0.0, 1.0) > 0.5).float()
            actual["mean"], actual["logstd"] = model.infer_latent(query(), occupancy, actual["c"])
        actual["logits"] = model.decode(query(), actual)
        folded = model.decoder.folded(actual)
        again = model.decoder.forward_folded(query(), *folded, model.decoder.offset(actual))
        check(f"{name} folded", again, EXPECTED[name]["logits"])
    for key, expected in EXPECTED[name].items():
        check(f"{name} {key}", actual[key], expected)


def test_point_encoder() -> None:
    encoder = fill_hashed(SimplePointNet())
    check("pointnet_simple", encoder(hashed("cloud", (2, 300, 3), -0.5, 0.5)), MODULES["pointnet_simple"])


def test_convolutional_image_encoder() -> None:
    encoder = fill_hashed(ConvEncoder())
    check("simple_conv", encoder(hashed("img", (2, 3, 224, 224), 0.0, 1.0)), MODULES["simple_conv"])


def test_second_conditional_decoder() -> None:
    decoder = fill_hashed(CBN2Decoder(z_dim=64, c_dim=128))
    features = {"c": hashed("c", (2, 128), -1.0, 1.0), "z": hashed("z64", (2, 64), -1.0, 1.0)}
    check("cbn2", decoder(query(), features), MODULES["cbn2"])
    check("cbn2 folded", decoder.forward_folded(query(), *decoder.folded(features)), MODULES["cbn2"])


@pytest.mark.parametrize("leaky", [False, True])
def test_fully_connected_decoder(leaky: bool) -> None:
    decoder = fill_hashed(FCDecoder(leaky=leaky))
    features = {"c": hashed("c", (2, 128), -1.0, 1.0), "z": hashed("z", (2, 128), -1.0, 1.0)}
    check("simple", decoder(query(), features), MODULES["simple leaky" if leaky else "simple"])
