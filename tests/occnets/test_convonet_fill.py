# SPDX-License-Identifier: MIT
"""Networks filled with hashed numbers give the values the original code gives; needs no files from outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from convonet_cases import fill_hashed, hashed
from occnets.config import load_config
from occnets.models import build_model
from occnets.models.crop import crop_inputs, crop_query
from occnets.models.decoders import LocalPointDecoder
from occnets.models.unet import UNet
from occnets.models.unet3d import UNet3D

# Recorded with the original code: mean, deviation, minimum, maximum, first five values of each tensor.
EXPECTED = {
    "convonet-shapenet-1plane": {
        "xz": (-0.00939, 0.081745, -0.368293, 0.309059, (0.002365, -0.014064, -0.002734, -0.01275, -0.002856)),
        "logits": (0.027262, 0.268903, -0.431443, 0.333638, (0.158663, -0.359424, -0.431443, 0.154201, 0.333638)),
    },
    "convonet-shapenet-3plane": {
        "xz": (-0.025213, 0.795888, -8.344304, 7.573363, (0.021889, -0.028855, -0.299097, 0.395805, 0.337053)),
        "xy": (-0.025754, 0.808975, -6.835037, 5.968453, (0.110905, -0.063459, 0.304012, 0.384612, 0.234983)),
        "yz": (-0.025491, 0.797356, -7.524713, 6.092109, (0.067974, -0.048094, 0.103007, -0.318994, 0.151867)),
        "logits": (0.486337, 1.765625, -3.339778, 3.45692, (2.06481, -3.33978, -0.625738, -0.980359, 3.45692)),
    },
    "convonet-shapenet-grid32": {
        "grid": (0.069894, 0.70857, -6.780078, 7.030616, (0.150625, 0.105387, 0.058482, 0.064403, 0.142417)),
        "logits": (-0.115839, 0.779428, -1.86321, 1.160797, (0.438139, -1.86321, 0.574824, -0.870636, 0.172498)),
    },
    "convonet-room-1plane": {
        "xz": (-0.011435, 0.071179, -0.272228, 0.285241, (-0.068407, -0.069557, -0.068236, -0.066919, -0.068066)),
        "logits": (-0.239526, 0.323619, -0.738034, 0.141317, (-0.099805, -0.703847, -0.738034, -0.176061, 0.139603)),
    },
    "convonet-room-3plane": {
        "xz": (-0.015798, 0.36826, -5.665531, 5.025067, (-0.067016, -0.077194, -0.066417, -0.067944, -0.070203)),
        "xy": (-0.015412, 0.367216, -4.831151, 4.533416, (-0.065642, -0.079973, -0.081428, -0.066799, -0.112643)),
        "yz": (-0.01583, 0.364344, -4.608398, 5.210685, (-0.065552, -0.073448, -0.070096, -0.070863, -0.070082)),
        "logits": (0.669957, 0.884753, -0.7564, 2.521007, (0.218925, 2.52101, 0.370219, -0.274918, 2.23387)),
    },
    "convonet-room-grid64": {
        "grid": (0.048007, 0.669693, -13.807199, 13.180256, (-0.117777, -0.134148, -0.144417, -0.047411, -0.049722)),
        "logits": (-0.773566, 1.010881, -2.81595, 0.95688, (-2.08431, -0.837316, -1.01518, -0.912973, 0.95688)),
    },
    "convonet-room-combine": {
        "grid": (0.079483, 0.708216, -5.842434, 5.553398, (0.129179, 0.210808, 0.174416, 0.132035, 0.426999)),
        "xz": (-0.026638, 1.056405, -16.744181, 14.027068, (-0.070168, -0.106625, -0.098021, -0.109656, -0.136289)),
        "xy": (-0.025453, 1.052477, -14.84897, 13.389479, (-0.07594, -0.1033, -0.147311, -0.08188, -0.206264)),
        "yz": (-0.02678, 1.045688, -13.535032, 15.952211, (-0.062802, -0.089026, -0.086192, -0.091408, -0.101985)),
        "logits": (2.281301, 2.679882, -1.421599, 7.479459, (1.99656, 7.35686, 2.13151, -0.470588, 7.47946)),
    },
    "convonet-voxel-1plane": {
        "xz": (-0.009845, 0.075031, -0.226493, 0.154053, (0.00705, -0.024895, -0.000387, -0.025796, -0.008196)),
        "logits": (0.030067, 0.274715, -0.430879, 0.348439, (0.114322, -0.401302, -0.430879, 0.133461, 0.348439)),
    },
    "convonet-voxel-3plane": {
        "xz": (-0.009845, 0.075031, -0.226493, 0.154053, (0.00705, -0.024895, -0.000387, -0.025796, -0.008196)),
        "xy": (-0.009856, 0.074943, -0.226712, 0.154076, (0.006438, -0.021551, 0.001521, -0.030571, -0.006423)),
        "yz": (-0.009823, 0.075026, -0.228445, 0.161143, (0.009237, -0.022946, -0.006462, -0.032603, -0.010031)),
        "logits": (0.059314, 0.239342, -0.328322, 0.392172, (0.02573, -0.323219, -0.328322, 0.122809, 0.284303)),
    },
    "convonet-voxel-grid32": {
        "grid": (0.078117, 0.736286, -4.725611, 4.586611, (0.032773, 0.02779, 0.3378, 0.101204, 0.43594)),
        "logits": (-0.400225, 0.810355, -1.980428, 1.641007, (-0.448505, -0.725752, -0.439138, -0.894005, 0.331158)),
    },
    "convonet-room-crop-grid64": {
        "grid": (0.039405, 0.672251, -19.5569, 18.859758, (-0.032945, -0.103527, -0.167322, -0.1585, -0.097849)),
        "logits": (-1.37613, 0.641478, -2.08787, -0.389199, (-1.87666, -0.542347, -2.08787, -1.2289, -1.48293)),
    },
}
SLOW = {"convonet-room-grid64", "convonet-room-combine", "convonet-room-crop-grid64"}

MODULES = {
    "points-gaussian": (-0.609452, 0.226834, -1.170144, -0.332388, (-0.43666, -1.17014, -1.02882, -0.54257, -0.368591)),
    "points-inverse": (
        -0.577383,
        0.187599,
        -1.122268,
        -0.296444,
        (-0.462419, -1.12227, -0.68341, -0.623877, -0.296444),
    ),
    "unet": (-0.000779, 0.081766, -0.251716, 0.315068, (-0.062089, -0.024308, -0.027417, -0.075287, -0.051101)),
    "unet-upsample": (-0.003847, 0.080751, -0.249255, 0.316021, (-0.040132, -0.017253, 0.006923, -0.028015, -0.020075)),
    "unet-add": (0.000296, 0.102354, -0.389181, 0.37091, (-0.032259, -0.058743, -0.087142, -0.081183, -0.048609)),
    "unet3d": (0.049427, 0.743054, -4.085757, 4.574956, (0.049214, 0.051359, 0.133564, -0.383218, -0.12854)),
}


def check(name: str, actual: Tensor, expected: tuple) -> None:
    """Six decimals were recorded; float32 networks of this depth agree to about 1e-4 of their largest value."""
    mean, deviation, low, high, first = expected
    flat = actual.detach().contiguous().flatten().double()
    scale = max(abs(low), abs(high))
    near = {"rel": 1e-4, "abs": 2e-5 * scale + 1e-6}
    assert flat.mean().item() == pytest.approx(mean, **near), name
    assert flat.std(correction=0).item() == pytest.approx(deviation, **near), name
    assert flat.min().item() == pytest.approx(low, **near), name
    assert flat.max().item() == pytest.approx(high, **near), name
    np.testing.assert_allclose(flat[:5], first, rtol=1e-4, atol=2e-5 * scale + 1e-6, err_msg=name)


def case_inputs(name: str, model: torch.nn.Module) -> tuple:
    if "crop" in name:
        volume = torch.tensor([[-0.22] * 3, [0.22] * 3])
        inputs = crop_inputs(hashed("cropcloud", (1, 200, 3), -0.2, 0.2), volume, model.encoder.layout)
        assert inputs["index"]["grid"][0, 0, :5].tolist() == [484191, 62858, 226762, 640592, 630102]
        return inputs, crop_query(hashed("cropquery", (1, 7, 3), -0.06, 0.06), volume, model.encoder.layout)
    query = hashed("query", (2, 7, 3), -0.5, 0.5)
    if "voxel" in name:
        return (hashed("voxels", (2, 32, 32, 32), 0.0, 1.0) > 0.7).float(), query
    return hashed("cloud", (2, 300, 3), -0.5, 0.5), query


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXPECTED])
def test_whole_model(name: str) -> None:
    model = fill_hashed(build_model(load_config(name)))
    inputs, query = case_inputs(name, model)
    with torch.no_grad():
        maps = model.encode(inputs)
        actual = {**maps, "logits": model.decode(query, maps)}
    assert set(actual) == set(EXPECTED[name])
    for key, expected in EXPECTED[name].items():
        check(f"{name} {key}", actual[key], expected)


@pytest.mark.parametrize("mode", ["gaussian", "inverse"])
def test_point_decoder(mode: str) -> None:
    decoder = fill_hashed(LocalPointDecoder(c_dim=32, hidden_size=32, sample_mode=mode, gaussian_val=0.2))
    points = {
        "points": hashed("cloud", (2, 300, 3), -0.5, 0.5),
        "features": hashed("feat", (2, 300, 32), -0.5, 0.5),
    }
    check(mode, decoder(hashed("query", (2, 7, 3), -0.5, 0.5), points), MODULES[f"points-{mode}"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet", {}), ("unet-upsample", {"up_mode": "upsample"}), ("unet-add", {"merge_mode": "add"})],
)
def test_unet_modes(name: str, options: dict) -> None:
    unet = fill_hashed(UNet(32, in_channels=32, depth=4, start_filts=32, **options))
    check(name, unet(hashed("plane", (1, 32, 64, 64), -0.5, 0.5)), MODULES[name])


def test_unet3d() -> None:
    unet = fill_hashed(UNet3D(32, 32, f_maps=32, num_levels=3))
    check("unet3d", unet(hashed("grid", (1, 32, 16, 16, 16), -0.5, 0.5)), MODULES["unet3d"])


def test_hashed_numbers_are_the_documented_ones() -> None:
    first = hashed("query", (2, 7, 3), -0.5, 0.5)[0, 0]
    np.testing.assert_allclose(first, [-0.159169, -0.418495, 0.201793], atol=1e-6)
