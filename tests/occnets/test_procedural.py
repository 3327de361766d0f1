# SPDX-License-Identifier: MIT
"""Procedural solids against closed forms, and the properties every random shape must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from occnets.data.draw import Draw, bars, chain, cut, moved, place, tensor, turn, union
from occnets.data.pool import UNIT, PoolConfig, ShapePool, main, write_pool
from occnets.data.primitives import KINDS, polygon_distance
from occnets.data.procedural import FAMILIES, ShapeConfig, make_sample, query_points, random_shape
from occnets.data.solid import RESIDUAL, DegenerateShape, make_solid
from occnets.data.trees import Combine, Displace, HalfSpaces, Node, Offset, Place, Polygon, Shell, Warp

ORIGIN = np.zeros(3)
SQUARE = tensor([[-0.3, -0.3], [0.3, -0.3], [0.3, 0.3], [-0.3, 0.3]])
TABLES = {
    "ellipsoid": ([0.5, 0.4, 0.3], 4 / 3 * math.pi * 0.5 * 0.4 * 0.3),
    "superquadric": ([0.5, 0.4, 0.3, 1.0, 1.0], 4 / 3 * math.pi * 0.5 * 0.4 * 0.3),
    "box": ([0.5, 0.4, 0.3, 0.0], 8 * 0.5 * 0.4 * 0.3),
    "cylinder": ([0.4, 0.3, 0.0], math.pi * 0.4**2 * 0.6),
    "cone": ([0.4, 0.2, 0.3], math.pi * 0.6 / 3 * (0.16 + 0.08 + 0.04)),
    "torus": ([0.35, 0.1], 2 * math.pi**2 * 0.35 * 0.01),
    "capsule": ([0.2, 0.2, 0.25], math.pi * 0.04 * 0.5 + 4 / 3 * math.pi * 0.008),
}


def uniform(count: int, seed: int = 0, half: float = 0.6) -> torch.Tensor:
    return (2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1) * half


def values(node: Node, points: torch.Tensor) -> torch.Tensor:
    return node(points.T.contiguous())


def test_every_primitive_has_a_known_volume():
    assert set(TABLES) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_volume_matches_the_closed_form(kind):
    table, volume = TABLES[kind]
    assert len(table) == KINDS[kind].parameters
    count = 200_000
    inside = (values(place(kind, table, ORIGIN), uniform(count)) < 0).double().mean().item()
    share = volume / 1.2**3
    assert abs(inside - share) < 4 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_instances_equal_separate_primitives(kind):
    draw, points = Draw(np.random.default_rng(1)), uniform(3000)
    table = TABLES[kind][0]
    centers, frames = [draw.vector(0.2) for _ in range(3)], [draw.rotation() for _ in range(3)]
    together = values(place(kind, table, centers, frames), points)
    single = [values(place(kind, table, c, r), points) for c, r in zip(centers, frames, strict=True)]
    torch.testing.assert_close(together, torch.stack(single).amin(0), atol=2e-6, rtol=0)
    frame = moved(place(kind, table, ORIGIN), centers[0], frames[0])
    torch.testing.assert_close(values(frame, points), single[0], atol=2e-6, rtol=0)


def test_distances_match_closed_forms():
    p = uniform(5000)
    sphere = p.norm(dim=1) - 0.4
    torch.testing.assert_close(values(place("ellipsoid", [0.4] * 3, ORIGIN), p), sphere, atol=1e-5, rtol=0)
    q = p.abs() - torch.tensor([0.4, 0.3, 0.2])
    box = q.clamp_min(0).norm(dim=1) + q.amax(1).clamp_max(0)
    torch.testing.assert_close(values(place("box", [0.4, 0.3, 0.2, 0.0], ORIGIN), p), box, atol=1e-6, rtol=0)
    extruded = moved(Polygon(SQUARE, 0.2), scale=[4 / 3, 1, 1])
    assert torch.equal(values(extruded, p) < 0, box < 0)
    torus = torch.hypot(p[:, :2].norm(dim=1) - 0.3, p[:, 2]) - 0.1
    torch.testing.assert_close(values(place("torus", [0.3, 0.1], ORIGIN), p), torus, atol=1e-6, rtol=0)
    angles = torch.arange(256) * (2 * math.pi / 256)
    ring = torch.stack([0.3 + 0.1 * torch.cos(angles), 0.1 * torch.sin(angles)], 1)
    torch.testing.assert_close(values(Polygon(ring, revolve=True), p), torus, atol=2e-4, rtol=0)
    capsule = values(chain([np.array([0, 0, -0.2]), np.array([0, 0, 0.2])], [0.1, 0.1]), p)
    height = p[:, 2].clamp(-0.2, 0.2)
    expected = (p - torch.stack([0 * height, 0 * height, height], 1)).norm(dim=1) - 0.1
    torch.testing.assert_close(capsule, expected, atol=1e-6, rtol=0)


def test_polygon_sign_is_the_even_odd_rule():
    star = tensor(
        [[math.cos(a) * r, math.sin(a) * r] for a, r in zip(np.arange(10) * 0.2 * np.pi, [1, 0.4] * 5, strict=True)]
    )
    p = 1.2 * uniform(4000, half=1.0)[:, :2]
    angle, radius = torch.atan2(p[:, 1], p[:, 0]), p.norm(dim=1)
    inside = polygon_distance(p[:, 0], p[:, 1], star) < 0
    # Along a ray from the centre a star-shaped polygon is left exactly once: outside stays outside.
    farther = polygon_distance(1.3 * radius * torch.cos(angle), 1.3 * radius * torch.sin(angle), star) < 0
    assert not (farther & ~inside).any()
    area = inside.double().mean().item() * 2.4**2
    assert area == pytest.approx(10 * 0.5 * 0.4 * math.sin(0.2 * math.pi), rel=0.08)


def test_set_operations_follow_boolean_algebra():
    p = uniform(4000)
    a, b = place("ellipsoid", [0.4] * 3, ORIGIN), place("box", [0.3, 0.3, 0.3, 0.0], [0.2, 0.1, 0.0])
    ia, ib = values(a, p) < 0, values(b, p) < 0
    assert torch.equal(values(union([a, b]), p) < 0, ia | ib)
    assert torch.equal(values(cut(a, [b]), p) < 0, ia & ~ib)
    assert torch.equal(values(Combine("intersection", (a, b)), p) < 0, ia & ib)
    blended = values(union([a, b], 0.1), p) < 0
    assert (blended | ~(ia | ib)).all() and blended.sum() > (ia | ib).sum()
    shell = values(Shell(a, 0.1), p) < 0
    assert torch.equal(shell, ia & ((values(a, p) + 0.1) > 0))
    grown = values(Offset(place("box", [0.2, 0.2, 0.2, 0.0], ORIGIN), 0.1), p)
    torch.testing.assert_close(grown, values(place("box", [0.3, 0.3, 0.3, 0.1], ORIGIN), p), atol=1e-6, rtol=0)
    cube = HalfSpaces(tensor(np.concatenate([np.eye(3), -np.eye(3)])), tensor([0.3] * 6))
    assert torch.equal(values(cube, p) < 0, values(place("box", [0.3, 0.3, 0.3, 0.0], ORIGIN), p) < 0)
    with pytest.raises(ValueError, match="operation"):
        values(Combine("xor", (a, b)), p)


def test_warps_keep_the_sign_of_the_moved_points():
    p, cube = uniform(3000), place("box", [0.3, 0.2, 0.4, 0.0], ORIGIN)
    angle = 1.5 * p[:, 2]
    c, s = torch.cos(angle), torch.sin(angle)
    twisted = torch.stack([c * p[:, 0] - s * p[:, 1], s * p[:, 0] + c * p[:, 1], p[:, 2]], 1)
    assert torch.equal(values(Warp(cube, "twist", 1.5), p) < 0, values(cube, twisted) < 0)
    wide = (1 + 0.5 * p[:, 2:]) * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, 1.0])
    assert torch.equal(values(Warp(cube, "taper", 0.5), p) < 0, values(cube, p / wide) < 0)
    assert torch.equal(values(Warp(cube, "bend", 0.0), p) < 0, values(cube, p) < 0)
    still = Displace(cube, tensor([[5.0, 0, 0]]), tensor([0.0]), tensor([0.0]))
    torch.testing.assert_close(values(still, p), values(cube, p))
    with pytest.raises(ValueError, match="kind"):
        values(Warp(cube, "shear", 0.5), p)


def test_bars_reach_from_start_to_end():
    start, end = np.array([0.1, -0.2, 0.3]), np.array([-0.3, 0.2, -0.1])
    axis = (end - start) / np.linalg.norm(end - start)
    for kind in ("capsule", "cone", "cylinder", "box"):
        node = bars(kind, [(start, end, 0.05, 0.05)])
        inner = values(node, tensor([start + 0.01 * axis, end - 0.01 * axis, (start + end) / 2]))
        outer = values(node, tensor([start - 0.08 * axis, end + 0.08 * axis]))
        assert (inner < 0).all() and (outer > 0).all(), kind
    assert np.allclose(turn(np.array([0.0, 0, 1]), math.pi / 2) @ [1, 0, 0], [0, 1, 0])


def test_surface_of_a_box_is_uniform_and_exact():
    solid = make_solid(place("box", [0.5, 0.25, 0.125, 0.0], ORIGIN))
    assert solid.scale == pytest.approx(1.0, abs=2e-3)
    points, normals = solid.surface(20_000, seed=3)
    half = torch.tensor([0.5, 0.25, 0.125]) / solid.scale
    # Sides in order x, y, z: each point lies on the face its normal names; areas give the expected shares.
    face = normals.abs().argmax(1)
    depth = half[face] - torch.gather(points.abs(), 1, face[:, None])[:, 0]
    assert depth.abs().max() < 3e-3
    area = torch.tensor([0.25 * 0.125, 0.5 * 0.125, 0.5 * 0.25])
    share = torch.bincount(face, minlength=3) / 20_000
    torch.testing.assert_close(share, area / area.sum(), atol=0.012, rtol=0)
    top = points[(face == 2) & (points[:, 2] > 0)]
    counts = torch.histogramdd(top[:, :2].contiguous(), bins=[8, 4], range=[-0.5, 0.5, -0.25, 0.25]).hist
    # 32 cells of about 180 points each: five standard deviations.
    assert (counts / counts.mean() - 1).abs().max() < 5 / math.sqrt(float(counts.mean()))


def test_surface_of_a_torus_matches_its_closed_form():
    solid = make_solid(
        Place(place("torus", [0.35, 0.15], ORIGIN), tensor(np.eye(3)), tensor([0.1, 0, 0]), tensor([0.8] * 3))
    )
    points, normals = solid.surface(4000)
    ring = torch.nn.functional.normalize(points * torch.tensor([1.0, 1.0, 0.0]), dim=1) * 0.35
    assert ((points - ring).norm(dim=1) - 0.15).abs().max() < 1e-3
    outward = torch.nn.functional.normalize(points - ring, dim=1)
    assert (normals * outward).sum(1).min() > 0.99


def test_projection_reaches_the_surface():
    solid = random_shape(4)
    points, normals = solid.surface(500)
    moved_points, good = solid.project(points + 0.01 * normals)
    assert good.double().mean() > 0.9
    assert solid.signed(moved_points[good]).abs().max() <= RESIDUAL
    assert (moved_points[good] - points[good]).norm(dim=1).median() < 0.004


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes_are_normalised_solids(seed):
    solid = random_shape(seed)
    points, normals = solid.surface(3000, seed)
    low, high = points.amin(0), points.amax(0)
    assert 0.96 < (high - low).amax() < 1.006
    assert (low > -0.504).all() and (high < 0.504).all()
    assert solid.signed(points).abs().max() < 2 * RESIDUAL
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(3000))
    outside, inside = solid.signed(points + 1e-3 * normals), solid.signed(points - 1e-3 * normals)
    assert ((outside > 0) & (inside < 0)).double().mean() > 0.985
    border = uniform(2000, half=0.55)
    border[:, 0] = 0.52
    assert not solid.occupancy(border).any()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_shapes(family):
    config = ShapeConfig(weights={family: 1.0}, several=0.0)
    for seed in range(3):
        solid = random_shape(seed, config)
        assert solid.family == family
        assert 0.002 < solid.occupancy(uniform(4000, half=0.5)).double().mean() < 0.95


def test_equal_seeds_give_equal_samples():
    first, second, other = make_sample(11), make_sample(11), make_sample(12)
    for name in ("points", "normals", "queries", "occupancy"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert not torch.equal(first.points, other.points)
    assert first.points.shape == (6000, 3) and first.queries.shape == (8192, 3)
    assert first.points.dtype == torch.float32 and first.occupancy.dtype == torch.bool
    assert torch.equal(first.occupancy, random_shape(11).occupancy(first.queries))
    assert 0.2 < first.occupancy.double().mean() < 0.6


def test_queries_follow_the_documented_mixture():
    surface = 0.3 * torch.nn.functional.normalize(uniform(4000), dim=1)
    query = query_points(surface, 8000, 0)
    assert query.shape == (8000, 3) and query.abs().max() <= 0.55
    near = ((query.norm(dim=1) - 0.3).abs() < 0.02).double().mean().item()
    # Normal spreads: P(|x| < .02) = .818, .383, 1.000; the uniform quarter adds its shell volume.
    shell = 4 / 3 * math.pi * (0.32**3 - 0.28**3) / 1.1**3
    assert near == pytest.approx(0.375 * 0.818 + 0.25 * 0.383 + 0.125 + 0.25 * shell, abs=0.025)


def test_double_precision_and_autograd_agree_with_single():
    solid = random_shape(3)
    points, normals = solid.surface(200)
    torch.testing.assert_close(
        solid.to("cpu", torch.float64).signed(points.double()).float(), solid.signed(points), atol=2e-5, rtol=0
    )
    variable = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(solid.signed(variable).sum(), variable)
    cosine = torch.nn.functional.cosine_similarity(slope, normals, dim=1)
    assert cosine.median() > 0.999 and (cosine > 0.95).double().mean() > 0.95


def test_unusable_trees_are_refused():
    with pytest.raises(DegenerateShape, match="no surface"):
        make_solid(Offset(place("ellipsoid", [0.3] * 3, ORIGIN), -5.0))
    with pytest.raises(DegenerateShape, match="border"):
        make_solid(place("ellipsoid", [3.0, 0.3, 0.3], ORIGIN))
    with pytest.raises(DegenerateShape, match="volume"):
        make_solid(place("capsule", [0.008, 0.008, 0.5], ORIGIN))
    with pytest.raises(ValueError, match="weights"):
        ShapeConfig(weights={"unicorn": 1.0})
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        random_shape(0).signed(torch.zeros(3))


def test_pool_round_trip_and_resume(tmp_path, capsys):
    arguments = [str(tmp_path), "--count", "5", "--seed", "20", "--surface", "500", "--queries", "400", "--chunk", "3"]
    assert main(arguments) == 0
    assert "5/5 shapes" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chunk-00000.npz", "chunk-00001.npz"]
    before = (tmp_path / "chunk-00000.npz").stat().st_mtime_ns
    (tmp_path / "chunk-00001.npz").unlink()
    sizes = PoolConfig(500, 400, 3)
    assert list(write_pool(tmp_path, 5, 20, workers=2, sizes=sizes)) == [3, 5]
    assert (tmp_path / "chunk-00000.npz").stat().st_mtime_ns == before
    pool = ShapePool(tmp_path)
    assert len(pool) == 5 and pool.seed(4) == 24 and pool.family(4) == random_shape(24).family
    solid, sample = random_shape(24), pool[4]
    assert torch.equal(solid.occupancy(sample.queries), sample.occupancy)
    assert solid.signed(sample.points).abs().max() < RESIDUAL + 2 * UNIT
    torch.testing.assert_close(sample.normals, solid.surface(500, 24)[1], atol=0.01, rtol=0)
    batch = pool.draw(4, 300, 200, np.random.default_rng(0))
    assert batch.points.shape == (4, 300, 3) and batch.occupancy.shape == (4, 200)
    with pytest.raises(ValueError, match="501"):
        pool.draw(1, 501, 10, np.random.default_rng(0))
    with pytest.raises(IndexError):
        pool[5]
    with pytest.raises(FileNotFoundError):
        ShapePool(tmp_path / "nothing")
