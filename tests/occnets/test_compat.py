# SPDX-License-Identifier: MIT
"""Every system from its own files: weights as the originals save them, configurations as in their repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from family_cases import inputs_of, with_surface
from occnets.checkpoints import load_pretrained
from occnets.config import config_names, load_config
from occnets.models import build_model
from occnets.reconstruct import Reconstructor

# Files as they lie in the originals' repositories: what counts for a network, dead keys, wrong methods. Each system's
# last file is the one to use; `inherit_from` is relative to the folder the original programs start in.
CONVONET = {
    "method": "conv_onet",
    "data": {"input_type": "pointcloud", "classes": None, "path": "data/ShapeNet", "pointcloud_n": 3000,
             "pointcloud_file": "pointcloud.npz", "pointcloud_noise": 0.005, "points_subsample": 2048,
             "points_file": "points.npz", "points_iou_file": "points.npz", "voxels_file": None},
    "model": {"encoder": "pointnet_local_pool", "decoder": "simple_local", "c_dim": 32,
              "encoder_kwargs": {"hidden_dim": 32, "plane_type": ["xz", "xy", "yz"], "plane_resolution": 64,
                                 "unet": True,
                                 "unet_kwargs": {"depth": 4, "merge_mode": "concat", "start_filts": 32}},
              "decoder_kwargs": {"sample_mode": "bilinear", "hidden_size": 32}},
    "training": {"out_dir": "out/pointcloud/shapenet_3plane", "batch_size": 32, "model_selection_metric": "iou",
                 "model_selection_mode": "maximize", "print_every": 100, "n_workers": 12},
    "test": {"threshold": 0.2, "eval_mesh": True, "eval_pointcloud": False, "model_file": "model_best.pt"},
    "generation": {"vis_n_outputs": 2, "refine": False, "n_x": 128, "n_z": 1},
}  # fmt: skip

SYSTEMS: dict[str, dict[str, dict[str, Any]]] = {
    "onet": {
        "configs/pointcloud/onet.yaml": {
            "method": "onet",
            "data": {"path": "data/ShapeNet", "img_folder": "img_choy2016", "input_type": "pointcloud",
                     "pointcloud_n": 300, "pointcloud_noise": 0.005, "points_subsample": 2048},
            "model": {"encoder_latent": None, "decoder": "cbatchnorm", "encoder": "pointnet_resnet", "c_dim": 512,
                      "z_dim": 0, "encoder_kwargs": {"hidden_dim": 512}},
            "training": {"out_dir": "out/pointcloud/onet", "batch_size": 64, "model_selection_metric": "iou",
                         "model_selection_mode": "maximize", "visualize_every": 20000, "validate_every": 20000},
            "test": {"threshold": 0.2, "eval_mesh": True, "eval_pointcloud": False},
            "generation": {"batch_size": 100000, "refine": False, "n_x": 128, "n_z": 1},
        },
        "configs/pointcloud/onet_pretrained.yaml": {
            "inherit_from": "configs/pointcloud/onet.yaml",
            "training": {"out_dir": "out/pointcloud/onet_pretrained"},
            "test": {"model_file": "onet.pt"},
            "generation": {"generation_dir": "pretrained"},
        },
    },
    "onet-voxel": {
        "configs/voxels/onet.yaml": {
            "method": "onet",
            "data": {"input_type": "voxels", "points_subsample": 1024},
            "model": {"encoder_latent": None, "decoder": "cbatchnorm", "encoder": "voxel_simple", "c_dim": 256,
                      "z_dim": 0},
            "training": {"out_dir": "out/voxels/onet", "batch_size": 64},
            "test": {"threshold": 0.2},
        },
    },
    "onet-img": {
        "configs/img/onet.yaml": {
            "method": "onet",
            "data": {"input_type": "img", "img_folder": "img_choy2016", "img_size": 224, "points_subsample": 2048},
            "model": {"encoder_latent": None, "decoder": "cbatchnorm", "encoder": "resnet18", "c_dim": 256, "z_dim": 0},
            "training": {"out_dir": "out/img/onet", "batch_size": 64},
            "test": {"threshold": 0.2},
        },
        "configs/img/onet_legacy_pretrained.yaml": {
            "inherit_from": "configs/img/onet.yaml",
            "model": {"decoder_kwargs": {"legacy": True}},
            "test": {"model_file": "legacy.pt"},
        },
    },
    "convonet": {"configs/pointcloud/shapenet_3plane.yaml": CONVONET},
    "convonet-voxel": {
        "configs/voxel/voxel_shapenet_grid32.yaml": {
            "method": "onet",  # as they say; it is ConvONet
            "data": {"input_type": "voxels", "path": "data/ShapeNet", "points_subsample": 1024},
            "model": {"encoder": "voxel_simple_local", "decoder": "simple_local", "c_dim": 32,
                      "encoder_kwargs": {"plane_type": "grid", "grid_resolution": 32, "unet3d": True,
                                         "unet3d_kwargs": {"num_levels": 3, "f_maps": 32, "in_channels": 32,
                                                           "out_channels": 32}},
                      "decoder_kwargs": {"sample_mode": "bilinear", "hidden_size": 32}},
            "training": {"out_dir": "out/voxel/grid32", "batch_size": 64},
            "test": {"threshold": 0.2},
        },
    },
    "saconvonet": {
        "configs/pointcloud/shapenet_3plane.yaml": CONVONET,
        "configs/pointcloud/test_optim/chair_3plane.yaml": {
            "inherit_from": "configs/pointcloud/shapenet_3plane.yaml",
            "data": {"classes": ["03001627"], "test_split": "test_optim", "pointcloud_n": 3000},
            "test": {"threshold": 0.4, "model_file": "shapenet_3plane.pt"},
            "test_optim": {"onlyencoder": False, "learning_rate": 3.0e-5, "decay_rate": 0.3, "n_iter": 720,
                           "n_step": 300, "batch_size": 16, "npoints_surf": 512, "npoints_nonsurf": 1536, "sigma": 0.1,
                           "threshold": [0.4, 0.45, 0.5]},
        },
    },
    "dpconvonet": {
        "configs/pointcloud/shapenet/shapenet_dynamic_7plane.yaml": {
            "method": "dynamic_planes_conv_onet",
            "data": {"input_type": "pointcloud", "path": "data/ShapeNet", "pointcloud_n": 3000,
                     "pointcloud_noise": 0.005, "points_subsample": 2048},
            "model": {"encoder": "dynamic_pointnet_local_pool", "decoder": "dynamic_simple_local", "c_dim": 32,
                      "z_dim": 0, "encoder_latent": None, "n_channels": 7,
                      "encoder_kwargs": {"hidden_dim": 32, "plane_resolution": 64, "n_channels": 7, "unet": True,
                                         "unet_kwargs": {"depth": 4, "merge_mode": "concat", "start_filts": 32}},
                      "decoder_kwargs": {"sample_mode": "bilinear", "hidden_size": 32}},
            "training": {"out_dir": "out/pointcloud/dpoc", "batch_size": 2, "similarity": True},
            "test": {"threshold": 0.2, "model_file": "model_best.pt"},
        },
        "configs/pointcloud/rotations/degree_30.yaml": {
            "inherit_from": "configs/pointcloud/shapenet/shapenet_dynamic_7plane.yaml",
            "generation": {"generation_dir": "generation_30"},
            "degrees": 30,
        },
    },
    "transonet": {
        "configs/pointcloud/shapenet/shapenet_dynamic_3plane.yaml": {
            "method": "dynamic_planes_conv_onet",  # as they say
            "data": {"input_type": "pointcloud", "pointcloud_n": 3000, "pointcloud_noise": 0.005},
            "model": {"encoder": "dynamic_pointnet_local_pool", "decoder": "dynamic_simple_local", "c_dim": 32,
                      "z_dim": 0,
                      "encoder_kwargs": {"hidden_dim": 32, "plane_resolution": 32, "n_channels": 3, "unet": False},
                      "decoder_kwargs": {"sample_mode": "bilinear", "hidden_size": 32}},
            "training": {"out_dir": "out/pointcloud/3plane", "batch_size": 64, "similarity": True},
            "test": {"threshold": 0.2, "model_file": "model.pt"},
        },
    },
}  # fmt: skip

CLASSES = {
    "onet": "OccupancyNetwork",
    "onet-voxel": "OccupancyNetwork",
    "onet-img": "OccupancyNetwork",
    "convonet": "ConvolutionalOccupancyNetwork",
    "convonet-voxel": "ConvolutionalOccupancyNetwork",
    "saconvonet": "ConvolutionalOccupancyNetwork",
    "dpconvonet": "DynamicPlaneNetwork",
    "transonet": "TransONet",
}
QUERY = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(1)) - 0.5


def write_repository(root: Path, system: str) -> Path:
    """The system's configuration files, as in its repository; returns the last one."""
    path = root
    for name, content in SYSTEMS[system].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def original_content(model: nn.Module, state: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """What the originals save: weights, an optimiser with (here few) moments, counters, a numpy number."""
    wanted = list(model.decoder.fc_out.parameters())
    optimizer = torch.optim.Adam(wanted, lr=1e-4)
    for parameter in wanted:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {
        "model": model.state_dict() if state is None else state,
        "optimizer": optimizer.state_dict(),
        "epoch_it": 411,
        "it": 300_000,
        "loss_val_best": np.float64(0.87),
    }


def wrapped(state: dict[str, torch.Tensor], part: str = "") -> dict[str, torch.Tensor]:
    """A state dictionary as ``nn.DataParallel`` names it, around everything or one part."""
    return {
        f"{part}module.{key.removeprefix(part)}" if key.startswith(part) else key: value for key, value in state.items()
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_released_style_files_load_with_their_own_configuration(
    system: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = write_repository(tmp_path, system)
    config = load_config(path)
    reads = config["data"]["input_type"]
    torch.manual_seed(0)
    inputs = inputs_of(reads, 224)
    made = with_surface(build_model(config), inputs, threshold=config["test"]["threshold"])
    file = tmp_path / "model.pt"
    torch.save(original_content(made), file)
    owner = Reconstructor.from_pretrained(file, config=path, device="cpu")
    assert type(owner.model).__name__ == CLASSES[system] and owner.reads == reads
    assert not [entry for entry in recwarn if issubclass(entry.category, UserWarning)]
    with torch.no_grad():
        expected = made.decode(QUERY, made.encode(inputs))
        assert torch.equal(owner.model.decode(QUERY, owner.model.encode(inputs)), expected)
    assert mesh_of(owner, reads, inputs[0].numpy()).is_watertight


def mesh_of(owner: Reconstructor, reads: str, given: np.ndarray) -> Any:
    if reads == "voxels":
        return owner.reconstruct_voxels(given, resolution=16).mesh
    if reads == "img":
        return owner.reconstruct_image(given.transpose(1, 2, 0), resolution=16).mesh
    return owner.reconstruct(given, resolution=16, fit=False, outliers="off").mesh


@pytest.mark.parametrize("system", ["onet", "convonet", "dpconvonet", "transonet"])
def test_bare_and_wrapped_state_dictionaries_load(system: str, tmp_path: Path) -> None:
    path = write_repository(tmp_path, system)
    torch.manual_seed(1)
    made = build_model(load_config(path))
    state = made.state_dict()
    for content in (
        state,
        wrapped(state),
        wrapped(state, "encoder."),
        {"model": wrapped(state)},
        original_content(made, wrapped(state, "encoder.")),
    ):
        torch.save(content, tmp_path / "model.pt")
        loaded = load_pretrained(tmp_path / "model.pt", config=path)[0].state_dict()
        assert list(loaded) == list(state) and all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("system", ["onet", "saconvonet", "dpconvonet"])
def test_a_configuration_file_alone_finds_its_weights(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    path = write_repository(root, system)
    config = load_config(path)
    made = build_model(config)
    with pytest.raises(FileNotFoundError, match=r"its weights '.*' \(test.model_file\) are not in"):
        load_pretrained(path)
    file = root / config["training"]["out_dir"] / config["test"]["model_file"]
    file.parent.mkdir(parents=True)
    torch.save(original_content(made), file)
    monkeypatch.chdir(tmp_path)  # not the folder the original starts in
    loaded, found = load_pretrained(path)
    assert found["training"] == config["training"]
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_chains_relative_to_the_file_work_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(CONVONET))
    (tmp_path / "a" / "middle.yaml").write_text("inherit_from: ../base.yaml\nmodel: {encoder_kwargs: {n_blocks: 4}}\n")
    (tmp_path / "a" / "last.yaml").write_text("inherit_from: middle.yaml\nmodel: {decoder_kwargs: {n_blocks: 3}}\n")
    model = build_model(load_config(tmp_path / "a" / "last.yaml"))
    assert len(model.encoder.blocks) == 4 and len(model.decoder.blocks) == 3
    assert model.encoder.options.plane_resolution == 64


def test_no_network_has_a_part_called_module() -> None:
    """So that the wrapper's name can be taken out of any key."""
    for name in config_names():
        if not name.endswith(("-pe", "plane")) and not name.startswith(("onet-img-", "onet-unconditional-")):
            with torch.device("meta"):
                keys = build_model(load_config(name)).state_dict()
            assert not [key for key in keys if "module" in key.split(".")], name


def test_weights_of_another_system_are_refused(tmp_path: Path) -> None:
    path = write_repository(tmp_path, "convonet")
    torch.save(original_content(build_model(load_config(write_repository(tmp_path, "onet")))), tmp_path / "onet.pt")
    with pytest.raises(
        ValueError, match=r"onet\.pt: the weights do not fit this ConvolutionalOccupancyNetwork; missing"
    ):
        Reconstructor.from_pretrained(tmp_path / "onet.pt", config=path)
