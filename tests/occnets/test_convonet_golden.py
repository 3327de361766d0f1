# SPDX-License-Identifier: MIT
"""Weights and outputs of the original ConvONet: every key, every cell index, features and logits."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from convonet_cases import fill_formula, golden, golden_config, golden_folder
from occkernels import bin_points
from occnets.models import build_model
from occnets.models.crop import crop_inputs, crop_query
from occnets.models.pointnet2 import farthest_points

ATOL, RTOL = 5e-4, 1e-5

LISTINGS = ("3plane", "grid32", "grid64", "pointconv", "room3plane", "roomcombine", "voxel3plane", "voxelgrid32")


def read_listing(path: Path) -> tuple[dict, list[tuple[str, tuple[int, ...]]]]:
    text = path.read_text().splitlines()
    header = "\n".join(line for line in text if line.startswith("#"))
    found = re.search(r"# model=(\{.*\})", header)
    rows = [line.split("\t") for line in text if line and not line.startswith("#")]
    return ast.literal_eval(found[1]) if found else {}, [(row[0], ast.literal_eval(row[1])) for row in rows]


def close(actual: torch.Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(actual, torch.from_numpy(np.asarray(expected, dtype=np.float32)), atol=ATOL, rtol=RTOL)


def matches(run: np.lib.npyio.NpzFile, name: str, actual: torch.Tensor) -> None:
    """Compare with a stored array, or with the entries of it that were kept."""
    if name in run.files:
        close(actual, run[name])
        return
    flat = actual.contiguous().flatten()
    close(flat[torch.from_numpy(run[f"{name}@idx"])], run[f"{name}@val"])
    mean, deviation, largest, _ = run[f"{name}@stats"]
    assert flat.double().mean().item() == pytest.approx(mean, abs=1e-5)
    assert flat.double().std(correction=0).item() == pytest.approx(deviation, rel=1e-4)
    assert flat.abs().max().item() == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("system", LISTINGS)
def test_state_dict_has_the_keys_shapes_and_order_of_the_original(system: str) -> None:
    model_config, rows = read_listing(golden_folder() / f"keys_convonet_{system}.txt")
    model = build_model({"method": "conv_onet", "model": model_config, "data": {"padding": 0.1}})
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == rows
    model.load_state_dict({key: torch.zeros(shape) for key, shape in rows}, strict=True)


def test_crop_state_dict_has_the_keys_shapes_and_order_of_the_original() -> None:
    _, note = golden("convonet_crop_formula")
    _, rows = read_listing(golden_folder() / "keys_convonet_crop.txt")
    model = build_model(crop_config(note))
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == rows


@pytest.mark.parametrize("name", ["convonet_3plane", "convonet_grid32", "convonet_roomcombine_small"])
def test_trained_model_reproduces_every_recorded_stage(name: str) -> None:
    run, note = golden(name)
    model = build_model(golden_config(note)).eval()
    state = {key[3:]: torch.from_numpy(run[key]) for key in run.files if key.startswith("sd/")}
    model.load_state_dict(state, strict=True)
    stages: dict[str, list[torch.Tensor]] = {"fc_c": [], "unet": [], "unet3d": []}
    encoder = model.encoder
    encoder.fc_c.register_forward_hook(lambda module, args, out: stages["fc_c"].append(out))
    for unet in ("unet", "unet3d"):
        if getattr(encoder, unet) is not None:
            getattr(encoder, unet).register_forward_pre_hook(lambda module, args, u=unet: stages[u].append(args[0]))
    inputs, query = torch.from_numpy(run["in/inputs"]), torch.from_numpy(run["q/points"])
    with torch.no_grad():
        maps = model.encode(inputs)
        logits = model.decode(query, maps)
        edge = model(torch.from_numpy(run["edge/points"]), torch.from_numpy(run["edge/inputs"]))
    assert list(maps) == [key for key in ("grid", "xz", "xy", "yz") if key in maps]
    matches(run, "mid/fc_c/0", stages["fc_c"][0])
    if stages["unet3d"]:
        matches(run, "mid/unet3d_in/0", stages["unet3d"][0])
    if stages["unet"]:
        planes = stages["unet"][0].unflatten(0, (len(inputs), -1))
        for index in range(planes.shape[1]):
            matches(run, f"mid/unet_in/{index}", planes[:, index])
    for key, value in maps.items():
        matches(run, f"enc/{key}", value)
    close(logits, run["out/logits"])
    close(edge, run["edge/logits"])


@pytest.mark.parametrize("name", ["convonet_3plane", "convonet_grid32", "convonet_roomcombine_small"])
def test_cell_indices_are_exact(name: str) -> None:
    run, note = golden(name)
    layout = build_model(golden_config(note)).encoder.layout
    for kind, inputs in (("main", "in/inputs"), ("edge", "edge/inputs")):
        bins = bin_points(torch.from_numpy(run[inputs]), layout)
        for map_name in layout.maps:
            expected = torch.from_numpy(run[f"{kind}/index/{map_name}"])[:, 0]
            assert torch.equal(bins.map_index(map_name).long(), expected.long())


@pytest.mark.parametrize("name", ["convonet_3plane", "convonet_grid32", "convonet_roomcombine_small"])
def test_training_loss_and_every_gradient_norm(name: str) -> None:
    run, note = golden(name)
    model = build_model(golden_config(note)).train()
    state = {key[3:]: torch.from_numpy(run[key]) for key in run.files if key.startswith("sd/")}
    model.load_state_dict(state, strict=True)
    logits = model(torch.from_numpy(run["train/points"]), torch.from_numpy(run["train/inputs"]))
    target = torch.from_numpy(run["train/points.occ"])
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean()
    loss.backward()
    assert loss.item() == pytest.approx(note["train_step"]["loss"], rel=1e-4)
    norms = note["train_step"]["gradnorm"]
    assert set(norms) == {key for key, value in model.named_parameters() if value.grad is not None}
    largest = max(norms.values())
    for key, parameter in model.named_parameters():
        # A maximum shared by two points may send its gradient to either of them, hence not tighter than 1 %.
        assert parameter.grad.norm().item() == pytest.approx(norms[key], rel=1e-2, abs=1e-6 * largest), key


def test_voxel_model_with_formula_weights() -> None:
    run, note = golden("convonet_voxel3plane_formula")
    model = fill_formula(build_model(golden_config(note)))
    with torch.no_grad():
        maps = model.encode(torch.from_numpy(run["in/inputs"]))
        logits = model.decode(torch.from_numpy(run["q/points"]), maps)
    for key in ("xz", "xy", "yz"):
        close(maps[key], run[f"enc/{key}"])
    close(logits, run["out/logits"])


def test_pointconv_model_with_formula_weights() -> None:
    run, note = golden("convonet_pointconv_formula")
    model = fill_formula(build_model(golden_config(note)))
    points = torch.from_numpy(run["in/inputs"])
    # The original starts farthest-point sampling at a random point; the recorded first centres tell which.
    trace = {entry[0]: entry[4] for entry in note["trace"]}
    first = (points[0, :, 0] - trace["encoder.sa1"][0]).abs().argmin()[None]
    centres = points[:, farthest_points(points, 512, first)[0]]
    second = (centres[0, :, 0] - trace["encoder.sa2"][0]).abs().argmin()[None]
    with torch.no_grad():
        features = model.encoder(points, (first, second))
        logits = model.decode(torch.from_numpy(run["q/points"]), features)
    close(features["points"], run["enc/c0"])
    close(features["features"], run["enc/c1"])
    close(logits, run["out/logits"])


def crop_config(note: dict) -> dict:
    data = {"padding": 0.1, "unit_size": 0.02, "query_vol_size": 17, "input_type": "pointcloud_crop"}
    return {"method": "conv_onet", "model": note["resolved_model_cfg"], "data": data}


def test_crop_model_with_formula_weights() -> None:
    run, note = golden("convonet_crop_formula")
    model = build_model(crop_config(note))
    assert model.crop.resolution == note["reso"]
    assert model.crop.query_size == pytest.approx(note["query_crop_size"])
    assert model.crop.input_size == pytest.approx(note["input_crop_size"])
    fill_formula(model)
    model.decoder.fc_out.bias.data.copy_(torch.from_numpy(run["sd/decoder.fc_out.bias"]))
    volume = torch.from_numpy(run["crop0/input_vol"])
    layout = model.encoder.layout
    inputs = crop_inputs(torch.from_numpy(run["crop0/points"]), volume, layout)
    assert not inputs["mask"].any()
    assert torch.equal(inputs["index"]["grid"], torch.from_numpy(run["crop0/index"]).long())
    query = crop_query(torch.from_numpy(run["crop0/q_points"])[None], volume, layout)
    np.testing.assert_allclose(query["p_n"]["grid"][0], run["crop0/p_n"], atol=1e-6)
    with torch.no_grad():
        maps = model.encode(inputs)
        logits = model.decode(query, maps)
    close(maps["grid"], run["crop0/grid"])
    close(logits[0], run["crop0/logits"])
