# SPDX-License-Identifier: MIT
"""``occnets reconstruct --scene``: what is chosen is printed, options that do not fit are refused, work is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from occnets import cli
from occnets.commands.scene import SCENE_MODEL
from occnets.components import is_watertight
from occnets.io import PointCloud, read_mesh, write_mesh
from occnets.reconstruct import Reconstructor
from scene_helpers import balanced, crop_model, scene_model, spheres


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.ply"
    write_mesh(path, PointCloud(spheres(2)))
    return path


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were loaded; all are the same tiny network."""
    found: list[str] = []

    def load(name: str, *_: Any, **options: Any) -> Reconstructor:
        found.append(name)
        return scene_model()

    monkeypatch.setattr(Reconstructor, "from_pretrained", staticmethod(load))
    return found


def run(*words: Any) -> int:
    return cli.main([str(word) for word in words])


def test_a_scene_is_reconstructed_reported_and_resumed(
    scan: Path, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, work = tmp_path / "mesh.ply", tmp_path / "work"
    words = ["reconstruct", scan, "-o", out, "--scene", "--unit-size", 0.3, "--window", 32, "--keep-all", "--no-fit"]
    assert run(*words, "--json", "--resume", work, "--threshold", 0.45, "--memory", "1G") == 0
    said = capsys.readouterr()
    assert names == [SCENE_MODEL]
    assert "cells of 0.3 (--unit-size)" in said.err and "windows of 32 cells = 9.6 (--window)" in said.err
    record = json.loads(said.out)
    assert record["settings"]["unit_size"] == 0.3 and record["settings"]["memory"] == 2**30
    assert record["statistics"]["field"]["tiles"] == len(list(work.glob("tile-*.npz"))) > 1
    mesh = read_mesh(out)
    assert record["statistics"]["mesh"]["watertight"] and is_watertight(mesh.faces, len(mesh.points))
    assert run(*words, "--quiet", "--resume", work, "--threshold", 0.46, "--memory", "1G") == 1
    assert "holds the tiles of another reconstruction: level differ" in capsys.readouterr().err


def test_an_open_scene_is_trimmed(scan: Path, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    level = balanced(scene_model(), spheres(2), 0.3)
    words = ["reconstruct", scan, "--scene", "--model", "other", "--threshold", level, "--unit-size", 0.3, "--keep-all"]
    assert run(*words, "-o", tmp_path / "open.ply", "--open", 5, "--normals", "--no-fit", "--window", 32) == 0
    said = capsys.readouterr().err
    assert names == ["other"] and "open as asked" in said and "trimmed from" in said
    mesh = read_mesh(tmp_path / "open.ply")
    assert len(mesh.faces) and not is_watertight(mesh.faces, len(mesh.points))


def test_a_crop_model_is_adapted_to_the_scene_first(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = crop_model()
    monkeypatch.setattr(Reconstructor, "from_pretrained", staticmethod(lambda *_, **__: model))
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    level = balanced(model, spheres(2), 0.3)
    words = ["reconstruct", scan, "-o", tmp_path / "m.ply", "--scene", "--unit-size", 0.3, "--window", 32, "--keep-all"]
    words += ["--no-fit", "--quiet", "--json", "--threshold", level]
    volumes = []
    for more in ([], ["--optimize", 2, "--learning-rate", 3e-3], ["--optimize", 2, "--learning-rate", 3e-3]):
        assert run(*words, *more) == 0
        record = json.loads(capsys.readouterr().out)
        volumes.append(record["statistics"]["mesh"]["volume"])
    adapted = record["statistics"]["optimization"]
    assert adapted["steps"] == 2 and record["timings"]["optimize"] > 0
    assert record["settings"]["optimize"]["parameters"] == "encoder"
    assert volumes[0] != volumes[1] == volumes[2]
    assert all((value == before[key]).all() for key, value in model.model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--open"], "--open belongs to scenes; give --scene too"),
        (["--unit-size", "1"], "--unit-size belongs to scenes"),
        (["--resume", "x"], "--resume belongs to scenes"),
        (["--scene", "--resolution", "64"], "--resolution cannot be used with --scene: --steps"),
        (["--scene", "--ensemble", "4"], "--ensemble cannot be used with --scene"),
        (["--scene", "--refine"], "--refine cannot be used with --scene"),
        (["--scene", "--optimize"], "`optimize` needs a model that was trained on crops"),
        (["--scene", "--optimize", "3", "--save-every", "1"], "--save-every cannot be used with --scene"),
        (["--scene", "--simplify", "500"], "--simplify cannot be used with --scene"),
        (["--scene", "--points", "500"], "--points cannot be used with --scene"),
        (["--scene", "--window", "40"], "`window` must be a multiple of 16"),
        (["--scene", "--memory", "1M"], "raise --memory"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], message: str, scan: Path, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("reconstruct", scan, "-o", tmp_path / "m.ply", *words) == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("occnets: ") and not (tmp_path / "m.ply").exists()
