# SPDX-License-Identifier: MIT
"""Procedural rooms: what is solid, what a scanner sees; crops of them as a pool for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from occnets.data import crops
from occnets.data.crops import CropConfig, crop_row, write_crops
from occnets.data.pool import UNIT, ShapePool
from occnets.data.rooms import PlanConfig, Scene, make_floor, seen_from


@pytest.fixture(scope="module")
def flat() -> Scene:
    return make_floor(3, PlanConfig(rooms=3, furniture=(1, 2)))


def test_floors_are_reproducible_and_have_their_rooms(flat: Scene) -> None:
    again = make_floor(3, PlanConfig(rooms=3, furniture=(1, 2)))
    assert np.array_equal(flat.boxes, again.boxes) and len(flat.items) == len(again.items) > 0
    assert len(flat.rooms) == 4  # and the corridor
    assert not np.array_equal(flat.boxes, make_floor(4, PlanConfig(rooms=3, furniture=(1, 2))).boxes)
    large = make_floor(0, PlanConfig(rooms=21, furniture=(0, 0)))
    assert len(large.rooms) == 22 and not large.items
    low, high = large.rooms[:, 0], large.rooms[:, 1]
    overlap = ((low[:, None] < high) & (low < high[:, None])).all(axis=2)
    assert overlap.sum() == 22  # every room with itself only
    assert not large.occupancy(0.5 * (low + high)).any()
    with pytest.raises(ValueError, match="rooms must be at least 1"):
        PlanConfig(rooms=0)
    with pytest.raises(ValueError, match="width must be"):
        PlanConfig(width=(3.0, 2.0))


def test_every_room_of_a_corridor_has_a_door() -> None:
    scene = make_floor(0, PlanConfig(rooms=6, furniture=(0, 0)))
    corridor = scene.rooms[-1]
    for low, high in scene.rooms[:-1]:
        along = np.linspace(low[0], high[0], 400)
        across = (low[1] + corridor[1, 1]) / 2 if low[1] >= corridor[1, 1] else (high[1] + corridor[0, 1]) / 2
        line = np.stack([along, np.full(400, across), np.full(400, 1.0)], axis=1)
        assert 0.1 < (~scene.occupancy(line)).mean() * (high[0] - low[0]) < 1.0


def test_surfaces_separate_inside_from_outside(flat: Scene) -> None:
    points, normals = flat.surface(3000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-4)
    assert flat.occupancy(points - 0.004 * normals).mean() > 0.995
    assert flat.occupancy(points + 0.004 * normals).mean() < 0.005
    # Uniform by area: as many points on the floor slab's lower side as its share of the boxes' faces says.
    low, high = flat.bounds
    below = np.abs(points[:, 2] - low[2]) < 1e-9
    area = (high - low)[0] * (high - low)[1]
    top = (np.abs(points[:, 0] - low[0]) < 1e-9).sum() / below.sum() * area
    assert top == pytest.approx((high - low)[1] * (high[2] - 0) + (high - low)[1] * (0 - low[2]), rel=0.4)


def test_area_of_a_solid_is_about_right(flat: Scene) -> None:
    from occnets.data.draw import place
    from occnets.data.solid import make_solid

    ball = make_solid(place("ellipsoid", [0.5, 0.5, 0.5], np.zeros(3)))
    assert ball.area(20_000) == pytest.approx(np.pi, rel=0.1)


def test_scanners_see_the_inside_only(flat: Scene) -> None:
    points, normals = flat.scan(4000, per_room=2, noise=0.0, seed=2)
    assert 3000 < len(points) <= 4000
    low, high = flat.rooms[:, 0].min(axis=0), flat.rooms[:, 1].max(axis=0)
    assert (points[:, 2] > -0.01).all()  # not the underside of the floor
    outside = (points[:, :2] < low[:2] - 1e-3).any(axis=1) | (points[:, :2] > high[:2] + 1e-3).any(axis=1)
    assert outside.mean() < 0.05  # the sides of windows
    noisy, _ = flat.scan(4000, per_room=2, noise=0.01, seed=2)
    assert np.std(noisy - points) == pytest.approx(0.01, rel=0.05)
    assert not flat.occupancy(flat.viewpoints(2, seed=2)).any()


def test_a_scan_of_little_gives_what_there_is(flat: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("occnets.data.rooms.seen_from", lambda points, normals, eyes: np.arange(len(points)) % 100 == 0)
    points, normals = flat.scan(500, per_room=1)
    assert 50 < len(points) == len(normals) < 500


def test_what_is_hidden_or_turned_away_is_not_seen() -> None:
    rng = np.random.default_rng(0)
    wall = np.stack([rng.uniform(-4, 4, 40_000), np.full(40_000, 3.0), rng.uniform(-4, 4, 40_000)], axis=1)
    plate = np.stack([rng.uniform(-0.5, 0.5, 3000), np.full(3000, 1.5), rng.uniform(-0.5, 0.5, 3000)], axis=1)
    towards = np.array([0.0, -1.0, 0.0])
    points = np.concatenate([wall, plate])
    seen = seen_from(points, np.broadcast_to(towards, points.shape), np.zeros((1, 3)))
    assert seen[40_000:].all()
    depth = np.abs(wall[:, [0, 2]]).max(axis=1)
    assert seen[:40_000][depth < 0.8].mean() < 0.02 and seen[:40_000][(depth > 1.4) & (depth < 3)].mean() > 0.98
    assert not seen_from(points, np.broadcast_to(-towards, points.shape), np.zeros((1, 3))).any()
    assert not seen_from(points, np.broadcast_to(towards, points.shape), np.zeros((1, 3)), reach=1.0).any()


def test_crops_are_cut_and_labelled_in_their_own_frame() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (20_000, 3)) * [1, 1, 0] + [5.0, 0.0, 1.0]
    normals = np.broadcast_to([0.0, 0.0, 1.0], points.shape)
    sizes = CropConfig(surface=800, queries=1000, fewest=500)
    row = crop_row((points, normals), lambda p: p[:, 2] < 1.0, (np.array([5.2, 0.1, 1.1]), 2.0), rng, sizes)
    assert row is not None
    local, queries = row["points"] * UNIT, row["queries"] * UNIT
    assert local.shape == (800, 3) and np.abs(local).max() <= 0.5 and np.abs(queries).max() <= crops.INNER + UNIT
    np.testing.assert_allclose(local[:, 2], -0.05, atol=UNIT)
    occupied = np.unpackbits(row["occupancy"], count=1000).astype(bool)
    assert np.array_equal(occupied, queries[:, 2] * 2.0 + 1.1 < 1.0) and 0.2 < occupied.mean() < 0.8
    assert crop_row((points, normals), lambda p: p[:, 2] < 1, (np.array([5.0, 0, 1]), 0.2), rng, sizes) is None


def test_a_pool_of_crops_is_written_once_and_read_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = CropConfig(
        surface=300, queries=400, fewest=100, per_room=4, per_solid=4, chunk=5, room_points=6000, solid_points=2000
    )
    assert list(write_crops(tmp_path, 8, sizes=sizes)) == [5, 8]
    pool = ShapePool(tmp_path)
    assert len(pool) == 8
    assert sorted({pool.family(i) for i in range(8)}) == ["room crop", "solid crop"]
    sample = pool[0]
    assert sample.points.shape == (300, 3) and sample.occupancy.float().mean() > 0.02
    torch.testing.assert_close(sample.normals.norm(dim=1), torch.ones(300), atol=0.02, rtol=0)
    monkeypatch.setattr(crops, "_rows", lambda *_: pytest.fail("a finished chunk was made again"))
    assert list(write_crops(tmp_path, 8, sizes=sizes)) == [5, 8]
    with pytest.raises(ValueError, match="count must be positive"):
        next(write_crops(tmp_path, 0))
