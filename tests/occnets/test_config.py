# SPDX-License-Identifier: MIT
"""Configurations: the family's files, inheritance, packaged names, error texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import occnets
from occnets.config import CONFIG_FOLDER, ConfigError, config_names, load_config, merge, save_config

# Parameter counts of the original configurations.
COUNTS = {
    "convonet-shapenet-1plane": 1_978_209,
    "convonet-shapenet-3plane": 1_978_209,
    "convonet-shapenet-3plane-partial": 1_978_209,
    "convonet-shapenet-grid32": 1_068_545,
    "convonet-shapenet-pointconv": 1_388_641,
    "convonet-room-1plane": 7_812_705,
    "convonet-room-3plane": 7_812_705,
    "convonet-room-grid32": 1_068_545,
    "convonet-room-grid64": 4_166_657,
    "convonet-room-combine": 8_838_017,
    "convonet-room-pointconv": 2_074_081,
    "convonet-room-crop-grid64": 4_166_657,
    "convonet-voxel-1plane": 1_951_873,
    "convonet-voxel-3plane": 1_951_873,
    "convonet-voxel-grid32": 1_042_209,
}

# A file as the family writes them: relative inheritance, dead keys, the wrong method of its voxel files.
FAMILY_CHILD = """
inherit_from: configs/voxel/base.yaml
training:
  batch_size: 8
generation:
  vis_n_outputs: 2
  refine: false
  n_x: 128
  n_z: 1
"""
FAMILY_BASE = """
method: onet
data:
  input_type: voxels
  path: data/ShapeNet
  dim: 3
model:
  encoder: voxel_simple_local
  encoder_kwargs:
    plane_resolution: 16
    plane_type: ['xz', 'xy', 'yz']
    unet: True
    unet_kwargs:
      depth: 2
      merge_mode: concat
      start_filts: 8
  decoder: simple_local
  decoder_kwargs:
    sample_mode: bilinear # bilinear / nearest
    hidden_size: 32
  c_dim: 8
training:
  batch_size: 64
  model_selection_metric: iou
"""


@pytest.mark.parametrize("name", COUNTS)
def test_packaged_configurations_have_the_original_sizes(name: str) -> None:
    info = occnets.model_info(name)
    assert info.parameters == COUNTS[name]
    assert not info.pretrained
    assert info.config["test"]["threshold"] == 0.2 and info.config["data"]["padding"] == 0.1


def test_every_packaged_model_is_listed_and_builds() -> None:
    names = occnets.list_models()
    assert set(COUNTS) | {"convonet-grid"} <= set(names) and len(set(names)) == len(names)
    assert not [name for name in config_names() if name == "default" or name.endswith("-base")]
    for name in config_names():
        with torch.device("meta"):
            try:
                assert isinstance(occnets.create_model(load_config(name)), torch.nn.Module)
            except ImportError as error:  # an optional library; the message says which extra has it
                assert "pip install 'occkernels[" in str(error), name


def write_family(folder: Path) -> Path:
    below = folder / "configs" / "voxel"
    below.mkdir(parents=True)
    (below / "base.yaml").write_text(FAMILY_BASE)
    child = below / "child.yaml"
    child.write_text(FAMILY_CHILD)
    return child


def test_family_files_load_as_they_are(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    config = load_config(write_family(tmp_path))
    assert not [warning for warning in recwarn if "is not one of the family" in str(warning.message)]
    assert config["training"]["batch_size"] == 8  # its own
    assert config["training"]["model_selection_metric"] == "iou"  # inherited
    assert config["training"]["checkpoint_every"] == 1000  # default
    assert config["inherit_from"] == "configs/voxel/base.yaml"
    model = occnets.create_model(tmp_path / "configs" / "voxel" / "child.yaml")
    assert model.encoder.layout.maps == ("xz", "xy", "yz")


def test_inheritance_works_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_family(tmp_path)
    elsewhere = tmp_path / "mine.yaml"
    elsewhere.write_text("inherit_from: configs/voxel/child.yaml\nmodel: {c_dim: 4}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.yaml")["model"]["c_dim"] == 4


def test_packaged_configurations_can_be_inherited(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("inherit_from: convonet-shapenet-3plane\nmodel: {encoder_kwargs: {plane_resolution: 32}}\n")
    config = load_config(path)
    assert config["model"]["encoder_kwargs"]["plane_resolution"] == 32
    assert config["model"]["encoder_kwargs"]["unet_kwargs"]["depth"] == 4


def test_merge_replaces_lists_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"x": [1, 2], "y": 1}, "b": 1}
    assert merge(base, {"a": {"x": [3]}, "b": {"c": 1}}) == {"a": {"x": [3], "y": 1}, "b": {"c": 1}}
    assert base == {"a": {"x": [1, 2], "y": 1}, "b": 1}


def test_saved_configurations_read_back(tmp_path: Path) -> None:
    config = load_config("convonet-room-combine")
    save_config(config, tmp_path / "below" / "config.yaml")
    assert load_config(tmp_path / "below" / "config.yaml") == config | {"inherit_from": "convonet-base"}
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {batch_szie: 4}", "unknown key 'batch_szie'; did you mean 'batch_size'"),
        ("trainig: {batch_size: 4}", "unknown key 'trainig'; did you mean 'training'"),
        ("training: 4", "section 'training' must be a mapping, got int"),
        ("- a", "mapping of sections, got list"),
        ("a: [", "not valid YAML"),
        ("inherit_from: mine.yaml", "inherit_from goes in a circle"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_keys_of_forks_are_kept_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {something_of_a_fork: 1}\n")
    with pytest.warns(UserWarning, match="something_of_a_fork"):
        assert load_config(path)["data"]["something_of_a_fork"] == 1


def test_unknown_names_suggest_a_known_one() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'convonet-shapenet-3plane'"):
        occnets.create_model("convonet-shapnet-3plane")


def test_unknown_options_inside_a_mapping_name_the_nearest() -> None:
    config = load_config("convonet-shapenet-3plane")
    config["model"]["encoder_kwargs"]["plane_resolutoin"] = 64
    with pytest.raises(ValueError, match="did you mean 'plane_resolution'"):
        occnets.create_model(config)


def test_packaged_files_are_commented() -> None:
    for path in CONFIG_FOLDER.glob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_lazy_names() -> None:
    assert set(occnets.__all__) <= set(dir(occnets))
    assert occnets.__version__.count(".") >= 2
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = occnets.no_such_name
