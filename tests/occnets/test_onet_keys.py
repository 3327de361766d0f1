# SPDX-License-Identifier: MIT
"""Parameter names and shapes of every ONet part that no recorded run covers, and the counts of the whole models."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

import occnets
from occnets.models.onet import DECODERS, ENCODERS

# One line a module: its parameters with their shapes; {a..b} and {a,b} stand for several modules.
LISTINGS = {
    "batchnorm": """
        fc_c: weight 256x256, bias 256
        fc_p: weight 256x3x1, bias 256
        block{0..4}.bn_{0,1}: weight 256, bias 256, running_mean 256, running_var 256, num_batches_tracked scalar
        block{0..4}.fc_{0,1}: weight 256x256x1, bias 256
        bn: weight 256, bias 256, running_mean 256, running_var 256, num_batches_tracked scalar
        fc_out: weight 1x256x1, bias 1""",
    "cbatchnorm_noresnet": """
        fc_p: weight 256x3x1, bias 256
        fc_{0..4}: weight 256x256x1, bias 256
        bn_{0..5}.conv_gamma: weight 256x256x1, bias 256
        bn_{0..5}.conv_beta: weight 256x256x1, bias 256
        bn_{0..5}.bn: running_mean 256, running_var 256, num_batches_tracked scalar
        fc_out: weight 1x256x1, bias 1""",
    "cbatchnorm2": """
        fc_z: weight 128x64, bias 128
        conv_p: weight 256x3x1, bias 256
        blocks.{0..4}.bn_{0,1}.conv_gamma: weight 256x128x1, bias 256
        blocks.{0..4}.bn_{0,1}.conv_beta: weight 256x128x1, bias 256
        blocks.{0..4}.bn_{0,1}.bn: running_mean 256, running_var 256, num_batches_tracked scalar
        blocks.{0..4}.fc_{0,1}: weight 256x256x1, bias 256
        bn.conv_gamma: weight 256x128x1, bias 256
        bn.conv_beta: weight 256x128x1, bias 256
        bn.bn: running_mean 256, running_var 256, num_batches_tracked scalar
        conv_out: weight 1x256x1, bias 1""",
    "cbatchnorm legacy": """
        fc_p: weight 256x3x1, bias 256
        block{0..4}.bn_{0,1}.fc_gamma: weight 256x256, bias 256
        block{0..4}.bn_{0,1}.fc_beta: weight 256x256, bias 256
        block{0..4}.bn_{0,1}.bn: running_mean 256, running_var 256, num_batches_tracked scalar
        block{0..4}.fc_{0,1}: weight 256x256x1, bias 256
        bn.fc_gamma: weight 256x256, bias 256
        bn.fc_beta: weight 256x256, bias 256
        bn.bn: running_mean 256, running_var 256, num_batches_tracked scalar
        fc_out: weight 1x256x1, bias 1""",
    "pointnet_simple": """
        fc_pos: weight 256x3, bias 256
        fc_{0..3}: weight 128x256, bias 128
        fc_c: weight 128x128, bias 128""",
    "simple_conv": """
        conv0: weight 32x3x3x3, bias 32
        conv1: weight 64x32x3x3, bias 64
        conv2: weight 128x64x3x3, bias 128
        conv3: weight 256x128x3x3, bias 256
        conv4: weight 512x256x3x3, bias 512
        fc_out: weight 128x512, bias 128""",
    "psgn_cond": """
        conv_block1.0: weight 16x3x3x3
        conv_block1.{0,2}: bias 16
        conv_block1.2: weight 16x16x3x3
        conv_block2.0: weight 32x16x3x3
        conv_block2.{0,2,4}: bias 32
        conv_block2.{2,4}: weight 32x32x3x3
        conv_block3.0: weight 64x32x3x3
        conv_block3.{0,2,4}: bias 64
        conv_block3.{2,4}: weight 64x64x3x3
        conv_block4.0: weight 128x64x3x3
        conv_block4.{0,2,4}: bias 128
        conv_block4.{2,4}: weight 128x128x3x3
        conv_block5.0: weight 256x128x3x3
        conv_block5.{0,2,4}: bias 256
        conv_block5.{2,4}: weight 256x256x3x3
        conv_block6.0: weight 512x256x3x3
        conv_block{6,7}.0: bias 512
        conv_block6.{2,4,6}: weight 512x512x3x3, bias 512
        conv_block7.0: weight 512x512x5x5
        trans_conv1: weight 64x128x3x3, bias 64
        trans_conv2: weight 128x256x3x3, bias 128
        trans_conv3: weight 256x512x3x3, bias 256""",
    "pixel2mesh_cond": """
        block_1.0: weight 16x3x3x3
        block_1.{0,2}: bias 16
        block_1.2: weight 16x16x3x3
        block_1.4: weight 32x16x3x3
        block_1.{4,6,8}: bias 32
        block_1.{6,8}: weight 32x32x3x3
        block_1.10: weight 64x32x3x3
        block_1.{10,12,14}: bias 64
        block_1.{12,14}: weight 64x64x3x3
        block_2.0: weight 128x64x3x3
        block_2.{0,2,4}: bias 128
        block_2.{2,4}: weight 128x128x3x3
        block_3.0: weight 256x128x5x5
        block_3.{0,2,4}: bias 256
        block_3.{2,4}: weight 256x256x3x3
        block_4.0: weight 512x256x5x5
        block_4.{0,2,4,6}: bias 512
        block_4.{2,4,6}: weight 512x512x3x3""",
    "r2n2_simple": """
        convnet.0: weight 96x3x7x7, bias 96
        convnet.3: weight 128x96x3x3, bias 128
        convnet.6: weight 256x128x3x3
        convnet.{6,9,12,15}: bias 256
        convnet.{9,12,15}: weight 256x256x3x3
        fc_out: weight 1024x2304, bias 1024""",
    "r2n2_resnet": """
        convnet.0: weight 96x3x7x7
        convnet.{0,2}: bias 96
        convnet.2: weight 96x96x3x3
        convnet.5.convnet.0: weight 128x96x3x3
        convnet.5.convnet.{0,2}: bias 128
        convnet.5.convnet.2: weight 128x128x3x3
        convnet.5.shortcut: weight 128x96x1x1, bias 128
        convnet.7.convnet.0: weight 256x128x3x3
        convnet.{7,9,11,13}.convnet.{0,2}: bias 256
        convnet.{7,9,11,13}.convnet.2: weight 256x256x3x3
        convnet.7.shortcut: weight 256x128x1x1
        convnet.{7,9,11,13}.shortcut: bias 256
        convnet.{9,11,13}.convnet.0: weight 256x256x3x3
        convnet.{9,11,13}.shortcut: weight 256x256x1x1
        fc_out: weight 1024x2304, bias 1024""",
}

PARTS = {
    "batchnorm": {"z_dim": 0, "c_dim": 256},
    "cbatchnorm_noresnet": {"z_dim": 0, "c_dim": 256},
    "cbatchnorm2": {"z_dim": 64},
    "cbatchnorm legacy": {"z_dim": 0, "c_dim": 256, "legacy": True},
}

ENCODER_COUNTS = {
    ("pointnet_simple", 128): 149_120,
    ("pointnet_resnet", 128): 428_416,
    ("voxel_simple", 128): 5_226_432,
    ("voxel_simple", 256): 5_750_848,
    ("simple_conv", 128): 1_634_240,
    ("resnet18", 256): 11_307_840,
    ("resnet34", 256): 21_416_000,
    ("resnet50", 256): 24_032_576,
    ("psgn_cond", 512): 18_325_040,
    ("pixel2mesh_cond", 512): 12_843_632,
    ("r2n2_simple", 1024): 4_550_656,
    ("r2n2_resnet", 1024): 7_384_416,
}

MODEL_COUNTS = {
    "onet-img": 13_414_465,
    "onet-img-legacy": 13_414_465,
    "onet-img-nocbn": 12_038_465,
    "onet-img-noresnet": 12_427_585,
    "onet-pointcloud": 10_373_889,
    "onet-pointcloud-partial": 10_373_889,
    "onet-voxel": 7_857_473,
    "onet-unconditional": 298_369,
    "onet-unconditional-chairs": 298_369,
    "onet-img-resnet34": 23_522_625,
    "onet-img-resnet50": 26_139_201,
    "onet-img-resnet101": 45_131_329,
}


def expand(text: str) -> list[str]:
    """``a{0..2}.b{x,y}`` to the six names it stands for."""
    pieces = re.split(r"\{([^}]*)\}", text)
    choices = []
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            choices.append([piece])
        elif ".." in piece:
            low, high = map(int, piece.split(".."))
            choices.append([str(number) for number in range(low, high + 1)])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in itertools.product(*choices)]


def listed(text: str) -> dict[str, tuple[int, ...]]:
    rows = {}
    for line in text.strip().splitlines():
        modules, parameters = line.strip().split(": ")
        for parameter in parameters.split(", "):
            name, shape = parameter.split(" ")
            size = () if shape == "scalar" else tuple(map(int, shape.split("x")))
            rows |= {f"{module}.{name}": size for module in expand(modules)}
    return rows


def make(name: str, fields: dict) -> torch.nn.Module:
    key = name.split()[0]
    options, maker = (DECODERS if key in DECODERS else ENCODERS)[key]
    with torch.device("meta"):
        return maker(options(**fields))


@pytest.mark.parametrize("name", LISTINGS)
def test_parameters_are_called_and_shaped_as_in_the_original(name: str) -> None:
    state = make(name, PARTS.get(name, {})).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == listed(LISTINGS[name])


@pytest.mark.parametrize(("name", "c_dim"), ENCODER_COUNTS)
def test_encoders_have_the_original_sizes(name: str, c_dim: int) -> None:
    parameters = make(name, {"c_dim": c_dim}).parameters()
    assert sum(parameter.numel() for parameter in parameters) == ENCODER_COUNTS[name, c_dim]


@pytest.mark.parametrize("name", MODEL_COUNTS)
def test_packaged_models_have_the_original_sizes(name: str) -> None:
    info = occnets.model_info(name)
    assert info.parameters == MODEL_COUNTS[name] and not info.missing
    assert info.config["method"] == "onet" and info.config["test"]["threshold"] == 0.2
