# SPDX-License-Identifier: MIT
"""Scenes: tiled equals untiled, no seams, empty tiles skipped, memory bounded, work continued, surfaces trimmed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from occnets import create_model
from occnets.check import check_mesh
from occnets.components import is_watertight
from occnets.finish import EmptyReconstructionError
from occnets.models import build_model
from occnets.models.crop import crop_inputs, crop_query
from occnets.normalize import DegenerateCloudError
from occnets.reconstruct import Reconstruction, Reconstructor
from occnets.scenes import SceneConfig, reconstruct_scene
from occnets.scenes.mesh import clean_parts, fit_scene, trim, weld
from occnets.scenes.network import WindowNetwork, why_not_windows
from occnets.scenes.settings import choose_side
from occnets.scenes.store import TileResult
from occnets.scenes.tiles import BLOCK, make_frame, make_tiles, unique_rows
from occnets.scenes.windows import CellTable, TileWork
from scene_helpers import NORMLESS, balanced, scene_model, spheres

UNIT = 0.21
GROUPED = {**NORMLESS, "norm": "group", "num_groups": 4}
RAW = {"unit_size": UNIT, "fit": False, "components": "all"}


@pytest.fixture(scope="module")
def froth() -> tuple[Reconstructor, np.ndarray, float]:
    """A network whose surface fills the scene with bubbles, the cloud, and the threshold for it."""
    reconstructor, points = scene_model(), spheres()
    return reconstructor, points, balanced(reconstructor, points, UNIT)


def arrays(result: Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(result.mesh.vertices), np.asarray(result.mesh.faces)


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [1, 8, 11, 16])
def test_blocks_are_those_within_reach_of_a_cell(reach: int) -> None:
    cells = unique_rows(np.random.default_rng(reach).integers(20, 120, (40, 3)))
    lattice = make_tiles(cells, reach, 2, 2)
    low, high = lattice.blocks * BLOCK, lattice.blocks * BLOCK + BLOCK - 1
    gap = np.maximum(np.maximum(low[:, None] - cells, cells - high[:, None]), 0).max(axis=2)
    assert (gap.min(axis=1) <= reach).all()
    everything = np.array(list(itertools.product(range(10), repeat=3)))
    low, high = everything * BLOCK, everything * BLOCK + BLOCK - 1
    gap = np.maximum(np.maximum(low[:, None] - cells, cells - high[:, None]), 0).max(axis=2)
    assert np.array_equal(everything[gap.min(axis=1) <= reach], lattice.blocks)


def test_tiles_hold_every_block_once_after_their_lower_neighbours() -> None:
    cells = unique_rows(np.random.default_rng(0).integers(20, 300, (60, 3)))
    lattice = make_tiles(cells, 4, 3, 2)
    own = np.concatenate([tile.blocks for tile in lattice.tiles])
    assert np.array_equal(unique_rows(own), lattice.blocks) and len(own) == len(lattice.blocks)
    order = {tile.index: number for number, tile in enumerate(lattice.tiles)}
    assert len(order) < np.prod(lattice.blocks.max(axis=0) // 3 + 1)  # empty tiles are no tiles
    for tile in lattice.tiles:
        assert ((tile.blocks // 3) == tile.index).all()
        for shift in itertools.product((0, 1), repeat=3):
            below = tuple(i - d for i, d in zip(tile.index, shift, strict=True))
            assert order.get(below, -1) <= order[tile.index]
    for block, shift in itertools.product(lattice.blocks.tolist(), itertools.product((0, 1), repeat=3)):
        assert tuple((b + d) // 3 for b, d in zip(block, shift, strict=True)) in order  # something closes its surface


def test_frames_contain_what_is_within_reach() -> None:
    points = spheres()
    frame = make_frame(points, UNIT, 8)
    assert (frame.to_cells(points) >= 8).all()
    np.testing.assert_allclose(frame.to_input(frame.to_cells(points)), points, rtol=0, atol=1e-9)


def test_far_points_are_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="larger --unit-size"):
        make_tiles(np.array([[0, 0, 0], [10**6, 0, 0]]), 4, 2, 2)


# --- the field -------------------------------------------------------------------------------------------------------


def test_window_values_equal_those_of_the_whole_scene(froth: Any) -> None:
    reconstructor, points, _ = froth
    network = WindowNetwork(reconstructor.model)
    local = make_frame(points, UNIT, 8).to_cells(points)
    where = np.floor(local).astype(np.int64)
    order = np.lexsort(where.T[::-1])
    fresh = np.concatenate([[True], (np.diff(where[order], axis=0) != 0).any(axis=1)])
    cells = where[order][fresh]
    table = CellTable(cells, network.cell_features(local[order], np.cumsum(fresh) - 1))
    values: dict[int, dict[tuple[int, ...], np.ndarray]] = {}
    for side in (1, 2, 6):
        work = TileWork(network, table, make_tiles(cells, 8, side, 2), 2, 0.0)
        found = values.setdefault(side, {})
        for tile in work.lattice.tiles:
            for volume in work.values([tile]) if len(tile.blocks) else ():
                for block in tile.blocks:
                    x, y, z = (block % side) * 32
                    found[tuple(block)] = volume[x : x + 32, y : y + 32, z : z + 32]
    assert len(values[6]) > 10 and values[1].keys() == values[2].keys() == values[6].keys()
    scale = max(np.abs(block).max() for block in values[6].values())
    for side, (key, whole) in itertools.product((1, 2), values[6].items()):
        np.testing.assert_allclose(values[side][key], whole, rtol=0, atol=3e-6 * scale)


def test_cell_features_do_not_depend_on_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network = WindowNetwork(scene_model().model)
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(0, 50, 700))
    owner = np.unique(owner, return_inverse=True)[1]
    points = rng.random((700, 3)) * 9
    whole = network.cell_features(points, owner)
    monkeypatch.setattr("occnets.scenes.network._POINTS", 20)
    done: list[int] = []
    parts = network.cell_features(points, owner, lambda count, total: done.append(count))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert len(done) > 20 and done[-1] == 700


def test_crop_models_of_the_family_agree_with_their_own_window() -> None:
    torch.manual_seed(0)
    unit = 0.05
    config = {
        "method": "conv_onet",
        "data": {"input_type": "pointcloud_crop", "dim": 3, "padding": 0.1, "unit_size": unit, "query_vol_size": 17},
        "model": {
            "encoder": "pointnet_crop_local_pool",
            "encoder_kwargs": {
                "hidden_dim": 8, "plane_type": ["grid"], "unet3d": True,
                "unet3d_kwargs": {"num_levels": 2, "f_maps": 4, "layer_order": "cr"},
            },
            "decoder": "simple_local_crop",
            "decoder_kwargs": {"hidden_size": 16, "n_blocks": 2},
            "c_dim": 8, "local_coord": True, "registration": "cells",
        },
    }  # fmt: skip
    model = build_model(config).eval()
    network = WindowNetwork(model)
    halo, window = network.field.halo, model.crop
    points = np.random.default_rng(0).random((3000, 3)) * window.resolution
    points = points[np.lexsort(np.floor(points).T[::-1])]
    fresh = np.concatenate([[True], (np.diff(np.floor(points), axis=0) != 0).any(axis=1)])
    table = CellTable(np.floor(points).astype(np.int64)[fresh], network.cell_features(points, np.cumsum(fresh) - 1))
    size = np.array([window.resolution] * 3)
    corner = halo + 1
    features = network.features(table.window(np.zeros(3, np.int64), size))
    cut = features[..., corner - 1 :, corner - 1 :, corner - 1 :][..., : BLOCK + 2, : BLOCK + 2, : BLOCK + 2]
    ours = network.block_values(cut, 2)[0]
    volume = torch.stack([torch.zeros(3), torch.full((3,), window.input_size)])
    cloud = torch.from_numpy(points * unit).float()[None]
    steps = (torch.arange(1, 2 * BLOCK + 1) / 2 + corner) * unit
    query = torch.cartesian_prod(steps, steps, steps)[None]
    with torch.no_grad():
        maps = model.encode(crop_inputs(cloud, volume, model.encoder.layout))
        theirs = model.decode(crop_query(query, volume, model.encoder.layout), maps).view(ours.shape)
    # On a cell's border the position in the cell jumps, and rounding decides on which side of it float32 metres are.
    inside = torch.arange(1, 2 * BLOCK + 1) % 2 == 1
    pick = torch.meshgrid(inside, inside, inside, indexing="ij")
    pick = pick[0] & pick[1] & pick[2]
    assert pick.sum() == BLOCK**3
    torch.testing.assert_close(ours[pick], theirs[pick], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("convonet-grid", "absolute positions"),
        ("convonet-shapenet-3plane", "planes mix"),
        ("onet-pointcloud", "not one that"),
    ],
)
def test_models_that_cannot_be_used_are_refused_with_the_reason(name: str, reason: str) -> None:
    model = create_model(name)
    assert reason in str(why_not_windows(model))
    with pytest.raises(ValueError, match=f"{reason}.*use convonet-crop"):
        WindowNetwork(model)


# --- meshes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_tiled_equals_untiled_and_has_no_seams(froth: Any, steps: int) -> None:
    reconstructor, points, threshold = froth
    options = {**RAW, "threshold": threshold, "steps": steps}
    whole = reconstruct_scene(reconstructor, points, window=320, **options)
    tiled = reconstruct_scene(reconstructor, points, window=32, **options)
    small = reconstruct_scene(reconstructor, points, window=16, batch=3, **options)
    assert whole.stats["field"]["tiles"] == 1 and small.stats["field"]["tiles"] > tiled.stats["field"]["tiles"] > 4
    vertices, faces = arrays(whole)
    assert len(faces) > 3000
    for other in (tiled, small):
        assert np.array_equal(faces, arrays(other)[1])
        np.testing.assert_allclose(arrays(other)[0], vertices, rtol=0, atol=1e-4 * UNIT)
        assert not check_mesh(*arrays(other)).problems() and not other.warnings
    assert is_watertight(faces, len(vertices))


def test_group_norms_are_held_and_windows_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("occnets.scenes.reconstruct._NORM_CELLS", 16)
    reconstructor, points = scene_model(GROUPED), spheres()
    threshold = balanced(reconstructor, points, UNIT)
    options = {**RAW, "threshold": threshold}
    before = {name: value.clone() for name, value in reconstructor.model.state_dict().items()}
    whole = reconstruct_scene(reconstructor, points, window=320, **options)
    tiled = reconstruct_scene(reconstructor, points, window=32, **options)
    assert np.array_equal(arrays(whole)[1], arrays(tiled)[1])
    np.testing.assert_allclose(arrays(whole)[0], arrays(tiled)[0], rtol=0, atol=1e-4 * UNIT)
    assert any("group norms" in note for note in tiled.warnings)
    assert all(torch.equal(value, before[name]) for name, value in reconstructor.model.state_dict().items())


def test_pieces_are_welded_by_edge_not_by_distance() -> None:
    planes = (np.empty((0, 1), np.float32),) * 3
    first = TileResult(
        np.array([[0.5, 1, 0], [1, 0.5, 0], [0.5, 0, 0]], np.float32),
        np.array([9, 4, 7]),
        np.array([[0, 1, 2]], np.int32),
        planes,
    )
    # Edge 4 comes with other coordinates; edge 8 comes with those of edge 7.
    second = TileResult(
        np.array([[1.001, 0.5, 0], [0.5, 0, 0], [2, 2, 2]], np.float32),
        np.array([4, 8, 11]),
        np.array([[1, 0, 2]], np.int32),
        planes,
    )
    vertices, faces = weld([(np.zeros(3), first), (np.zeros(3), second)])
    assert len(vertices) == 5
    assert vertices.tolist() == [[1, 0.5, 0], [0.5, 0, 0], [0.5, 0, 0], [0.5, 1, 0], [2, 2, 2]]
    assert sorted(map(sorted, faces.tolist())) == [[0, 1, 3], [0, 2, 4]]


def test_no_tile_no_mesh() -> None:
    vertices, faces = weld([])
    assert vertices.shape == faces.shape == (0, 3)


def icosphere(center: tuple[float, float, float], radius: float) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    ball = trimesh.creation.icosphere(3, radius)
    return np.asarray(ball.vertices) + center, np.asarray(ball.faces)


def together(*meshes: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in meshes])
    faces = [faces + start for (_, faces), start in zip(meshes, starts, strict=False)]
    return np.concatenate([vertices for vertices, _ in meshes]), np.concatenate(faces)


def test_made_up_parts_and_crumbs_are_dropped() -> None:
    ball, core = icosphere((0, 0, 0), 20.0), icosphere((0, 0, 0), 12.0)
    core = core[0], core[1][:, ::-1]  # the inner side of what the network cannot see through
    crumb, other = icosphere((20.5, 0, 0), 0.4), icosphere((60, 0, 0), 3.0)
    points = np.concatenate([ball[0] * 1.01, other[0]])
    everything = together(ball, core, crumb, other)
    (vertices, faces), removed = clean_parts(everything, points, "clean")
    assert removed == 2 and len(vertices) == len(ball[0]) + len(other[0]) and is_watertight(faces, len(vertices))
    assert len(clean_parts(everything, points, "largest")[0][0]) == len(ball[0])
    assert clean_parts(everything, points, "all") == (everything, 0)


def test_trimming_leaves_a_sheet_near_the_points() -> None:
    vertices, faces = icosphere((0, 0, 0), 10.0)
    points = vertices[vertices[:, 2] > 0]
    kept, sheet = trim((vertices, faces), points, 1.0)
    assert 0.4 * len(faces) < len(sheet) < 0.6 * len(faces) and kept[:, 2].min() > -1.0
    assert not is_watertight(sheet, len(kept))
    assert not len(trim((vertices, faces), points + 100.0, 1.0)[1])


def test_slabs_fit_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = icosphere((0, 0, 0), 10.0)
    stretched = vertices * [3.0, 1.0, 1.0]
    points = stretched * 1.02
    whole = fit_scene((stretched, faces), points)
    assert np.abs(np.linalg.norm(whole / [3.0, 1.0, 1.0], axis=1) - 10.2).mean() < 0.05
    monkeypatch.setattr("occnets.scenes.mesh._SLAB", 150)
    np.testing.assert_allclose(fit_scene((stretched, faces), points), whole, rtol=0, atol=0.02)


# --- options, memory, continuation ----------------------------------------------------------------------------------


def test_cells_follow_the_spacing_and_are_told(froth: Any) -> None:
    reconstructor, points, threshold = froth
    said: list[str] = []
    stages: list[str] = []
    result = reconstruct_scene(
        reconstructor, points, threshold=threshold, components="all", say=said.append, fit=False,
        progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}"),
    )  # fmt: skip
    spacing, unit = result.stats["input"]["spacing"], result.stats["settings"]["unit_size"]
    assert spacing == pytest.approx(np.sqrt(4 * np.pi / 300), rel=0.2) and unit == pytest.approx(1.4 * spacing)
    assert len(said) == 1 and f"cells of {unit:.4g} (--unit-size)" in said[0] and "(--window)" in said[0]
    tiles = result.stats["field"]["tiles"]
    assert stages[0] == "encode 600/600" and stages[-1] == f"tiles {tiles}/{tiles}"
    scaled = reconstruct_scene(reconstructor, points * 1000.0, threshold=threshold, components="all", fit=False)
    assert scaled.stats["settings"]["unit_size"] == pytest.approx(1000 * unit)


def test_the_window_shrinks_with_the_memory() -> None:
    extent = np.array([50, 40, 3])
    sides = [choose_side(memory << 20, 1000, 24, extent) for memory in (300, 500, 1000, 4000)]
    assert sides == sorted(sides) and sides[0] < sides[-1]
    for side, memory in zip(sides, (300, 500, 1000, 4000), strict=True):
        assert np.prod(np.minimum(extent, side) * BLOCK + 48) * 1000 <= memory << 20
    with pytest.raises(ValueError, match="raise --memory"):
        choose_side(1 << 20, 1000, 24, extent)


class _Stop(Exception):
    pass


def test_interrupted_work_is_continued(froth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reconstructor, points, threshold = froth
    options = {**RAW, "threshold": threshold, "window": 32}
    expected = arrays(reconstruct_scene(reconstructor, points, **options))
    folder = tmp_path / "work"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "tiles" and done == 3:
            raise _Stop

    with pytest.raises(_Stop):
        reconstruct_scene(reconstructor, points, folder=folder, progress=stop, **options)
    assert len(list(folder.glob("tile-*.npz"))) == 3 and not list(folder.glob("*.tmp"))
    windows: list[int] = []
    original = TileWork.values
    monkeypatch.setattr(TileWork, "values", lambda self, tiles: windows.append(len(tiles)) or original(self, tiles))
    found = reconstruct_scene(reconstructor, points, folder=folder, **options)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(found), expected, strict=True))
    computed = sum(windows)
    again = reconstruct_scene(reconstructor, points, folder=folder, **options)
    assert sum(windows) == computed and np.array_equal(arrays(again)[0], expected[0])


def test_a_folder_of_something_else_is_refused(froth: Any, tmp_path: Path) -> None:
    reconstructor, points, threshold = froth
    options = {**RAW, "threshold": threshold, "window": 64}
    reconstruct_scene(reconstructor, points, folder=tmp_path / "a", **options)
    with pytest.raises(ValueError, match="another reconstruction: level, points differ"):
        changed = {**options, "threshold": 0.5 * threshold}
        reconstruct_scene(reconstructor, points + 0.001, folder=tmp_path / "a", **changed)
    with pytest.raises(ValueError, match="model differ"):
        reconstruct_scene(scene_model(seed=5), points, folder=tmp_path / "a", **options)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no tiles"):
        reconstruct_scene(reconstructor, points, folder=tmp_path / "b", **options)


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (np.zeros((5, 3)), DegenerateCloudError, "has 5 points"),
        (np.full((50, 3), np.nan), DegenerateCloudError, "NaN"),
        (np.zeros((50, 3)), DegenerateCloudError, "coincide"),
        (np.zeros((50, 2)), ValueError, "shape"),
    ],
)
def test_bad_clouds_are_refused(points: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reconstruct_scene(scene_model(), points)


def test_an_empty_surface_is_an_error(froth: Any) -> None:
    reconstructor, points, _ = froth
    with pytest.raises(EmptyReconstructionError, match="no surface"):
        reconstruct_scene(reconstructor, points, threshold=1 - 1e-12, unit_size=UNIT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 40}, "multiple of 16"),
        ({"unit_size": 0.0}, "unit_size"),
        ({"steps": 0}, "steps"),
        ({"reach": 17}, "reach"),
        ({"threshold": 1.0}, "threshold"),
        ({"components": "some"}, "components"),
        ({"memory": "much"}, "size of memory"),
        ({"trim": float("nan")}, "trim"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneConfig(**options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown option resolution"):
        reconstruct_scene(scene_model(), spheres(), resolution=3)


# --- the bundled model ----------------------------------------------------------------------------------------------


def rooms(rooms: int, count: int, seed: int) -> tuple[Any, np.ndarray]:
    from occnets.data.rooms import PlanConfig, make_floor

    scene = make_floor(seed, PlanConfig(rooms=rooms))
    return scene, scene.scan(count, seed=seed, noise=0.005)[0]


@pytest.mark.slow
def test_the_bundled_model_reconstructs_rooms() -> None:
    from scipy.spatial import cKDTree

    scene, points = rooms(1, 8000, 5002)
    reconstructor = Reconstructor.from_pretrained("convonet-crop")
    whole = reconstruct_scene(reconstructor, points, fit=False, components="all", window=192)
    tiled = reconstruct_scene(reconstructor, points, fit=False, components="all", window=32)
    assert tiled.stats["field"]["tiles"] > 4 * whole.stats["field"]["tiles"]
    assert np.array_equal(arrays(whole)[1], arrays(tiled)[1])
    unit = whole.stats["settings"]["unit_size"]
    np.testing.assert_allclose(arrays(whole)[0], arrays(tiled)[0], rtol=0, atol=1e-3 * unit)
    closed = reconstruct_scene(reconstructor, points)
    assert closed.stats["mesh"]["watertight"] and not closed.warnings
    surface = cKDTree(np.asarray(closed.mesh.sample(100_000)))
    assert np.median(surface.query(scene.scan(5000, seed=9)[0])[0]) < 0.6 * unit
    sheet = reconstruct_scene(reconstructor, points, trim=2.0)
    near, _ = cKDTree(scene.surface(200_000)[0]).query(np.asarray(sheet.mesh.vertices))
    assert np.quantile(near, 0.9) < unit


@pytest.mark.slow
def test_a_floor_of_twenty_rooms_stays_within_its_memory(tmp_path: Path) -> None:
    import subprocess
    import sys

    _, points = rooms(20, 1_050_000, 7)
    assert len(points) >= 1_000_000
    np.save(tmp_path / "rooms.npy", points)
    code = (
        "import resource, sys; from occnets import cli\n"
        "words = ['reconstruct', sys.argv[1], '-o', sys.argv[2], '--scene', '--memory', '2G', '--quiet']\n"
        "assert cli.main(words) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rooms.npy"), str(tmp_path / "rooms.ply")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 6.0
