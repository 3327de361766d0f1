# SPDX-License-Identifier: MIT
"""Reconstruction with networks whose answer is known: units, frame, clean-up, field, components, errors."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import occkernels
from fakes import CONFIG, FieldModel, SphereModel, ball, sphere_points
from occnets.components import find_parts, is_watertight, mesh_statistics, winding_number
from occnets.config import load_config
from occnets.ensemble import EnsembleField, Turn, cube_symmetries
from occnets.extraction import extract_surface, lattice_of
from occnets.finish import Surface, finish_surface
from occnets.io import PointCloud, needs_doubles, read_mesh, write_mesh
from occnets.models import build_model
from occnets.normalize import DegenerateCloudError, clean_cloud, estimate_noise, subsample
from occnets.reconstruct import (
    EmptyReconstructionError,
    ReconstructionConfig,
    Reconstructor,
    pick_device,
    trained_range,
)
from occnets.refine import Refinement

UTM = (548_752.25, 4_176_973.5, 190.125)


def sphere(**options):  # noqa: ANN003, ANN201
    return Reconstructor(SphereModel(), CONFIG, "cpu").reconstruct(sphere_points(), resolution=32, **options)


# --- units and frame -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("center", "radius"), [((0, 0, 0), 0.5), (UTM, 12.5), ((1e-3, -2e-3, 0), 1e-4), ((0, 5e6, 0), 2e5)]
)
def test_sphere_comes_back_in_its_own_units(center: tuple, radius: float) -> None:
    points = sphere_points(radius=radius, center=center)
    result = Reconstructor(SphereModel(), CONFIG, "cpu").reconstruct(points, resolution=64, normals=True, fit=False)
    vertices = np.asarray(result.mesh.vertices)
    assert vertices.dtype == np.float64
    distance = np.linalg.norm(vertices - center, axis=1)
    # Linear interpolation along an edge of length h errs by at most h^2 / (8 r); the rest is float32 in the cube.
    edge = 2 * radius * 1.1 / 64
    assert np.abs(distance - radius).max() < edge**2 / (8 * radius) + 2e-6 * radius
    mesh = result.stats["mesh"]
    assert mesh["watertight"] and mesh["components"] == 1 and result.mesh.is_watertight
    assert mesh["volume"] == pytest.approx(4 / 3 * math.pi * radius**3, rel=3e-3)
    assert mesh["area"] == pytest.approx(4 * math.pi * radius**2, rel=3e-3)
    np.testing.assert_allclose(
        mesh["bounds"],
        np.array(center) + radius * np.array([[-1.0] * 3, [1.0] * 3]),
        rtol=0,
        atol=edge**2 / (4 * radius),
    )
    outward = (vertices - center) / distance[:, None]
    assert (outward * np.asarray(result.mesh.vertex_normals)).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("ending", [".ply", ".obj", ".glb"])
def test_utm_scan_keeps_millimetres_on_disk(tmp_path: Path, ending: str) -> None:
    points = sphere_points(radius=0.4, center=UTM)
    mesh = Reconstructor(SphereModel(), CONFIG, "cpu").reconstruct(points, resolution=64).mesh
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_mesh(tmp_path / f"a{ending}", mesh)
    back = read_mesh(tmp_path / f"a{ending}")
    assert needs_doubles(back.points)
    assert np.abs(back.points - np.asarray(mesh.vertices)).max() < 1e-6
    assert np.abs(np.linalg.norm(back.points - UTM, axis=1) - 0.4).max() < 1e-3


def test_network_sees_float32_in_the_unit_cube() -> None:
    model = SphereModel()
    Reconstructor(model, CONFIG, "cpu").reconstruct(sphere_points(center=UTM), resolution=16)
    (cloud,) = model.clouds
    assert float(cloud.abs().max()) == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(cloud.norm(dim=1), 0.5, atol=1e-6)


def test_clouds_in_the_unit_cube_stay_there() -> None:
    model, config = SphereModel(), {**CONFIG, "data": {**CONFIG["data"], "input_type": "partial_pointcloud"}}
    points = sphere_points(radius=0.2, center=(0.1, 0.2, -0.3))
    reconstructor = Reconstructor(model, config, "cpu", "m")
    half = points[points[:, 0] > 0.1]
    made = reconstructor.reconstruct(half, resolution=32, frame="unit", fit=False, outliers="off")
    np.testing.assert_allclose(model.clouds[-1].numpy(), half, atol=1e-6)
    assert made.mesh.volume == pytest.approx(4 / 3 * math.pi * 0.2**3, rel=0.02)  # the whole sphere
    np.testing.assert_allclose(made.mesh.centroid, [0.1, 0.2, -0.3], atol=1e-3)
    assert not [note for note in made.warnings if "completes parts" in note]
    assert [note for note in reconstructor.reconstruct(half, resolution=16).warnings if "completes parts" in note]
    with pytest.raises(ValueError, match=r"frame='unit'.*between -0.55 and 0.55, the largest is 1"):
        reconstructor.reconstruct(sphere_points(), frame="unit")


def test_same_seed_same_mesh() -> None:
    points = sphere_points(5000) + np.random.default_rng(1).normal(scale=0.01, size=(5000, 3))
    reconstructor = Reconstructor(SphereModel(), CONFIG, "cpu")
    first, again, other = (reconstructor.reconstruct(points, resolution=16, seed=seed).mesh for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.vertices, again.vertices)
    assert len(first.vertices) != len(other.vertices) or not np.array_equal(first.vertices, other.vertices)


def test_threshold_moves_the_surface() -> None:
    # The logit is 20 times the distance in the unit cube, so probability p lies at distance logit(p) / 20.
    volume = {p: sphere(threshold=p).stats["mesh"]["volume"] for p in (0.2, 0.5, 0.8)}
    for p, found in volume.items():
        radius = 1.0 - 2 * math.log(p / (1 - p)) / 20
        assert found == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)
    config = {**CONFIG, "test": {"threshold": 0.2}}
    result = Reconstructor(SphereModel(), config, "cpu").reconstruct(sphere_points(), resolution=32)
    assert result.stats["mesh"]["volume"] == volume[0.2] and result.stats["settings"]["threshold"] == 0.2


# --- input clean-up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.empty((0, 3)), "has 0 points"),
        (sphere_points(31), "has 31 points; at least 32"),
        (np.ones((100, 3)), "all points are equal"),
        (np.repeat(sphere_points(20), 5, axis=0), "20 different points"),
        (np.outer(np.linspace(0, 1, 100), [1, 2, 3]) + UTM, "on one line"),
        (sphere_points(200) * [1, 1, 0] + UTM, "on one plane"),
        (
            (sphere_points(200) * [1, 1, 0]) @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0],
            "on one plane",
        ),
        (np.vstack([sphere_points(50), [[0, np.nan, 0], [np.inf, 0, 0]]]), "2 of 52 points have NaN .* number 51"),
    ],
)
def test_degenerate_clouds(points: np.ndarray, message: str) -> None:
    with pytest.raises(DegenerateCloudError, match=message):
        Reconstructor(SphereModel(), CONFIG, "cpu").reconstruct(points)


def test_wrong_shapes_and_options() -> None:
    reconstructor = Reconstructor(SphereModel(), CONFIG, "cpu")
    with pytest.raises(ValueError, match=r"shape \(N, 3\), got \(50, 2\)"):
        reconstructor.reconstruct(np.zeros((50, 2)))
    with pytest.raises(ValueError, match="unknown option resolutoin; there are .*resolution"):
        reconstructor.reconstruct(sphere_points(), resolutoin=32)
    for option, value in {
        "resolution": 4,
        "threshold": 1.0,
        "ensemble": 49,
        "max_points": 3,
        "outliers": "some",
        "refine": -1,
        "simplify": 2,
        "memory": "63M",
    }.items():
        with pytest.raises(ValueError, match=f"`{option}`"):
            ReconstructionConfig(**{option: value})
    with pytest.raises(dataclasses.FrozenInstanceError):
        ReconstructionConfig().resolution = 3  # type: ignore[misc]


def test_stray_points_do_not_spoil_the_scale() -> None:
    points = np.vstack([sphere_points(), [[30.0, 0, 0], [0, -40, 3]], sphere_points(7)[:3]])
    clean = clean_cloud(points)
    assert (clean.outliers, clean.duplicates) == (2, 3)
    assert clean.frame.scale == pytest.approx(2.0) and "removed 2 outlying points" in clean.warnings[0]
    assert clean_cloud(points, outliers="off").frame.scale == pytest.approx(43, abs=15)
    np.testing.assert_allclose(clean.frame.to_input(clean.frame.to_unit(points)), points, atol=1e-12)


def test_auto_keeps_sparse_parts_and_strong_removes_noise() -> None:
    rng = np.random.default_rng(0)
    dense, sparse = sphere_points(3000), sphere_points(300, center=(3.0, 0, 0), seed=1)
    assert clean_cloud(np.vstack([dense, sparse])).outliers == 0
    noisy = np.vstack([dense, rng.uniform(-1.2, 1.2, (60, 3))])
    strong = clean_cloud(noisy, outliers="strong")
    assert clean_cloud(noisy).outliers < 5 and strong.outliers > 30
    assert np.abs(np.linalg.norm(strong.points, axis=1) - 1).max() < 0.35


def test_noise_estimate() -> None:
    rng = np.random.default_rng(7)
    for sigma in (0.005, 0.01):
        points = sphere_points(10_000, radius=0.5) + rng.normal(scale=sigma, size=(10_000, 3))
        assert estimate_noise(points) == pytest.approx(sigma, rel=0.15)
    assert estimate_noise(sphere_points(3000, radius=0.5)) < 0.004


def test_warnings_outside_the_trained_range() -> None:
    reconstructor = Reconstructor(SphereModel(), CONFIG, "cpu")
    assert sphere().warnings == ()
    few = reconstructor.reconstruct(sphere_points(100), resolution=16)
    assert any("100 points, the model was trained with 300" in note for note in few.warnings)
    noisy = sphere_points(3000) + np.random.default_rng(7).normal(scale=0.08, size=(3000, 3))
    assert any("trained with up to 1.0 %" in note for note in reconstructor.reconstruct(noisy, resolution=16).warnings)
    cloud = PointCloud(sphere_points(), notes=("two returns dropped",))
    assert reconstructor.reconstruct(cloud, resolution=16).warnings == ("two returns dropped",)


def test_points_given_to_the_network() -> None:
    model = SphereModel()
    reconstructor = Reconstructor(model, CONFIG, "cpu")
    for options, count in (({}, 3000), ({"max_points": 500}, 500), ({"max_points": 100_000}, 4000)):
        result = reconstructor.reconstruct(sphere_points(4000), resolution=16, **options)
        assert len(model.clouds[-1]) == len(result.cloud) == result.stats["input"]["points_used"] == count
    assert trained_range({}, "pointcloud_n", 7) == (7, 7)
    assert trained_range({"data": {"pointcloud_n": 300}}, "pointcloud_n", 7) == (300, 300)
    chosen = subsample(np.arange(100), 40, seed=1)
    assert len(set(chosen)) == 40 and (np.diff(chosen) > 0).all()


# --- the field -------------------------------------------------------------------------------------------------------


def dense(field, resolution: int, box: float = 1.1) -> occkernels.Mesh:  # noqa: ANN001
    """The surface of a field that was evaluated everywhere."""
    axis = (box * (torch.arange(resolution + 1, dtype=torch.float64) / resolution - 0.5)).float()
    values = field(torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1))
    return occkernels.marching_cubes(values, 0.0, edge_margin=1e-3, pad_value=-math.inf).mesh(0)


def found(field, resolution: int, points: np.ndarray, **options) -> Surface:  # noqa: ANN001, ANN003
    settings = ReconstructionConfig(resolution=resolution, fit=False, **options)
    near = torch.from_numpy(points).float()
    return extract_surface(EnsembleField(FieldModel(field), near, 1), settings, 0.0, 1.1, near)[0]


def two_balls(query: torch.Tensor) -> torch.Tensor:
    return torch.maximum(ball((0.2, 0.1, -0.1), 0.3)(query), ball((-0.3, 0.1, 0.3), 0.11)(query))


FAR = np.full((1, 3), 0.54)
"""A point near no surface."""


@pytest.mark.parametrize("resolution", [8, 24, 33, 64, 100, 128])
def test_surface_is_that_of_a_dense_evaluation(resolution: int) -> None:
    surface, expected = found(two_balls, resolution, FAR), dense(two_balls, resolution)
    # The same mesh in the same order, up to the rounding of coordinates.
    np.testing.assert_array_equal(surface.faces, expected.faces.numpy())
    place = 1.1 * (expected.vertices.double().numpy() / resolution - 0.5)
    np.testing.assert_allclose(surface.vertices, place, rtol=0, atol=2e-7)


def test_lattices_of_any_resolution() -> None:
    for resolution in range(8, 2049):
        initial, levels = lattice_of(resolution)
        cells = initial * 2**levels
        assert resolution <= cells < resolution + 2**levels and cells <= 1.04 * resolution, resolution
        assert initial < 64 and (initial >= 32 or levels == 0)
    assert [lattice_of(r) for r in (8, 62, 64, 128, 2048)] == [(8, 0), (62, 0), (32, 1), (32, 2), (32, 6)]


def test_surface_is_followed_out_of_the_coarse_cells() -> None:
    # A rod thinner than a coarse cell hangs on a ball and crosses many of them; no coarse node lies in it.
    def field(query: torch.Tensor) -> torch.Tensor:
        rod = 0.006 - (query[..., 1:] - torch.tensor([0.0172, 0.0172])).abs().amax(dim=-1)
        return torch.maximum(ball((-0.3, 0.0, 0.0), 0.15)(query), torch.minimum(rod, 0.45 - query[..., 0].abs()))

    surface, expected = found(field, 128, FAR), dense(field, 128)
    assert surface.vertices[:, 0].max() > 0.4
    np.testing.assert_array_equal(surface.faces, expected.faces.numpy())


def test_thin_parts_are_found_near_points() -> None:
    def field(query: torch.Tensor) -> torch.Tensor:
        return 0.012 - (query - torch.tensor([0.0172, 0.0172, 0.0172])).abs().amax(dim=-1)

    with pytest.raises(EmptyReconstructionError, match="everything for outside"):
        found(field, 128, FAR)
    surface = found(field, 128, np.array([[0.0172, 0.0172, 0.0272]]))
    np.testing.assert_array_equal(surface.faces, dense(field, 128).faces.numpy())


def test_only_nodes_near_the_surface_are_evaluated() -> None:
    sizes: list[int] = []

    def field(query: torch.Tensor) -> torch.Tensor:
        sizes.append(query.shape[1])
        return 30 * ball((0.0, 0.0, 0.0), 0.4)(query)

    seen: list[tuple[str, int, int]] = []
    reconstructor = Reconstructor(FieldModel(field), CONFIG, "cpu")
    result = reconstructor.reconstruct(
        sphere_points(), resolution=128, chunk=5000, progress=lambda *now: seen.append(now)
    )
    facts = result.stats["field"]
    assert facts["resolution"] == 128 and facts["nodes"] == 129**3 and facts["evaluated"] == sum(sizes)
    assert facts["evaluated"] < 0.2 * facts["nodes"] and max(sizes) == 5000
    assert seen[-1] == ("evaluate", sum(sizes), sum(sizes)) and all(done <= total for _, done, total in seen)


def test_failed_allocations_are_repeated_with_smaller_chunks(caplog: pytest.LogCaptureFixture) -> None:
    def field(query: torch.Tensor) -> torch.Tensor:
        if query.shape[1] > 3000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 30 * ball((0.0, 0.0, 0.0), 0.4)(query)

    result = Reconstructor(FieldModel(field), CONFIG, "cpu").reconstruct(sphere_points(), resolution=32)
    plain = Reconstructor(FieldModel(ball((0.0, 0.0, 0.0), 0.4)), CONFIG, "cpu")
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(
        result.mesh.vertices, plain.reconstruct(sphere_points(), resolution=32).mesh.vertices, atol=1e-5
    )


# --- ensemble --------------------------------------------------------------------------------------------------------


def test_cube_symmetries() -> None:
    turns = cube_symmetries()
    assert turns.shape == (48, 3, 3) and np.array_equal(turns[0], np.eye(3))
    assert len({turn.tobytes() for turn in turns + 0.0}) == 48
    np.testing.assert_allclose(np.linalg.det(turns), [1] * 24 + [-1] * 24, atol=1e-6)
    np.testing.assert_array_equal(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (48, 3, 3)))


def test_turns_are_the_symmetries() -> None:
    generator = torch.Generator().manual_seed(0)
    points, values = torch.rand(5, 3, generator=generator), torch.rand(2, 8, 8, 8, generator=generator)
    nodes = torch.arange(8.0) - 3.5
    lattice = torch.stack(torch.meshgrid(nodes, nodes, nodes, indexing="ij"), dim=-1)
    for matrix in cube_symmetries():
        turn = Turn.from_matrix(matrix)
        assert torch.equal(turn.points(points), points @ torch.from_numpy(matrix).T)
        assert torch.equal(turn.back(turn.points(points)), points)
        assert torch.equal(turn.cubes_back(turn.cubes(values)), values)
        # A turned array has at a turned node what the array has at the node.
        place = (turn.points(lattice) + 3.5).long()
        assert torch.equal(turn.cubes(values)[:, place[..., 0], place[..., 1], place[..., 2]], values)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_bricks_and_gradients_of_an_ensemble(count: int) -> None:
    torch.manual_seed(0)
    model = build_model(load_config("convonet-shapenet-3plane")).eval()
    points = torch.rand(200, 3) - 0.5
    with torch.no_grad():
        field = EnsembleField(model, points, count)
        corner = torch.tensor([[0, 8, 16], [56, 64, 0], [24, 32, 40]], dtype=torch.int32)
        mask = torch.randint(-(2**62), 2**62, (3, 8))
        spacing = 1.1 / 64
        values = field.bricks(torch.zeros(3, dtype=torch.int64), corner, mask, spacing, -0.55).view(3, 8, 8, 8)
        wanted = (mask[:, :, None] >> torch.arange(64) & 1).bool().view(3, 8, 8, 8)
        assert torch.equal(~values.isnan(), wanted)
        at = wanted.nonzero()
        query = (-0.55 + spacing * (corner[at[:, 0]].double() + at[:, 1:])).float()[None]
        plain = field(query)
        torch.testing.assert_close(values[wanted], plain[0], rtol=1e-5, atol=1e-5)
        turns = [torch.from_numpy(turn) for turn in cube_symmetries()[:count]]
        single = [model.decode(query @ turn.T, model.encode((points @ turn.T)[None])) for turn in turns]
        torch.testing.assert_close(plain, torch.stack(single).mean(dim=0), rtol=1e-4, atol=1e-4)
    tracked = query.clone().requires_grad_()
    (slope,) = torch.autograd.grad(field(tracked).sum(), tracked)
    found_value, found_slope = field.with_gradient(query)
    torch.testing.assert_close(found_value.detach(), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_slope.detach(), slope, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="must be centred"):
        field.bricks(torch.zeros(3, dtype=torch.int64), corner, mask, spacing, -0.5)


def test_ensemble_turns_queries_with_the_cloud() -> None:
    rng = np.random.default_rng(0)
    points = sphere_points() * [1.0, 0.8, 0.6] + rng.normal(scale=0.01, size=(2000, 3))
    model = SphereModel()
    reconstructor = Reconstructor(model, CONFIG, "cpu")
    single = reconstructor.reconstruct(points, resolution=24)
    many = reconstructor.reconstruct(points, resolution=24, ensemble=48)
    # The fake is equivariant, so the average over orientations is what one orientation gives.
    assert len(model.clouds) == 49 and torch.equal(model.clouds[0], model.clouds[1])
    assert len({cloud.numpy().tobytes() for cloud in model.clouds}) == 48
    assert single.mesh.vertices.shape == many.mesh.vertices.shape
    np.testing.assert_allclose(many.mesh.vertices, single.mesh.vertices, atol=1e-4)


# --- components and failures -----------------------------------------------------------------------------------------


def hollow(query: torch.Tensor) -> torch.Tensor:
    """A ball with a cavity, a smaller ball beside it, and a crumb."""
    shell = torch.minimum(ball((-0.12, 0, 0), 0.33)(query), -ball((-0.12, 0, 0), 0.15)(query))
    rest = torch.maximum(ball((0.4, 0.3, 0), 0.12)(query), ball((0.41, -0.41, 0.003), 0.019)(query))
    return 30 * torch.maximum(shell, rest)


@pytest.mark.parametrize(("mode", "components", "cavities"), [("all", 4, 1), ("clean", 3, 1), ("largest", 2, 1)])
def test_components(mode: str, components: int, cavities: int) -> None:
    points = sphere_points(radius=0.5)
    result = Reconstructor(FieldModel(hollow), CONFIG, "cpu").reconstruct(points, resolution=64, components=mode)
    mesh = result.stats["mesh"]
    assert (mesh["components"], mesh["cavities"], mesh["removed_components"]) == (components, cavities, 4 - components)
    assert mesh["watertight"] and len(np.unique(result.mesh.faces)) == len(result.mesh.vertices)
    shell = 4 / 3 * math.pi * (0.33**3 - 0.15**3)
    expected = shell + (4 / 3 * math.pi * 0.12**3 if mode != "largest" else 0)
    assert mesh["volume"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("value", "message"), [(-5.0, "everything for outside; try a lower"), (5.0, "everything for inside; try a higher")]
)
def test_no_surface(value: float, message: str) -> None:
    model = FieldModel(lambda query: torch.full(query.shape[:2], value))
    with pytest.raises(EmptyReconstructionError, match=message):
        Reconstructor(model, CONFIG, "cpu").reconstruct(sphere_points(), resolution=16)


def test_damaged_weights_and_inverted_fields() -> None:
    nan = FieldModel(lambda query: torch.full(query.shape[:2], math.nan))
    with pytest.raises(ValueError, match="returned NaN at .* check its weights"):
        Reconstructor(nan, CONFIG, "cpu").reconstruct(sphere_points(), resolution=16)


def test_surface_at_the_border_is_closed_and_told() -> None:
    model = FieldModel(lambda query: 30 * ball((0.5, 0.0, 0.0), 0.4)(query))
    result = Reconstructor(model, CONFIG, "cpu").reconstruct(sphere_points(radius=0.5), resolution=32)
    assert result.stats["mesh"]["watertight"] and any("reaches the border" in note for note in result.warnings)
    assert result.mesh.bounds[1, 0] == pytest.approx(0.55, abs=1e-3)


def test_vertices_stay_apart_when_rounded_and_merged() -> None:
    # A box whose faces pass exactly through lattice nodes: without a margin vertices would coincide there.
    model = FieldModel(lambda query: 30 * (0.275 - query.abs().amax(dim=-1)))
    mesh = Reconstructor(model, CONFIG, "cpu").reconstruct(sphere_points(radius=0.5), resolution=32).mesh
    rounded = np.asarray(mesh.vertices).astype(np.float32)
    assert len(np.unique(rounded, axis=0)) == len(rounded)
    merged = mesh.copy()
    merged.merge_vertices()
    assert merged.is_watertight and len(merged.vertices) == len(mesh.vertices)


# --- after extraction ------------------------------------------------------------------------------------------------


def test_refined_simplified_and_with_normals() -> None:
    pytest.importorskip("fast_simplification")
    plain = sphere(fit=False)
    seen: list[tuple[str, int, int]] = []
    result = sphere(fit=False, refine=20, simplify=0.25, normals=True, progress=lambda *now: seen.append(now))
    mesh = result.stats["mesh"]
    assert mesh["simplified_from"] == plain.stats["mesh"]["faces"] and mesh["watertight"] and mesh["problems"] == []
    assert mesh["faces"] == pytest.approx(mesh["simplified_from"] / 4, rel=0.01)
    assert mesh["refinement"]["after"] < mesh["refinement"]["before"] and mesh["refinement"]["best_step"] > 0
    assert [now for now in seen if now[0] == "refine"] == [("refine", step, 20) for step in range(1, 21)]
    vertices, normals = np.asarray(result.mesh.vertices), np.asarray(result.mesh.vertex_normals)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1.0).max() < 0.02
    assert (normals * vertices).sum(axis=1).min() > 0.95
    assert "refinement" not in plain.stats["mesh"] and "simplified_from" not in plain.stats["mesh"]


def test_refinement_steps_follow_the_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    from occnets import reconstruct

    used: list[float] = []

    def record(vertices, faces, field, threshold, options, **rest):  # noqa: ANN001, ANN003, ANN202
        used.append(options.learning_rate)
        return reconstruct.Refinement(vertices, 1.0, 1.0, 0)

    monkeypatch.setattr(reconstruct, "refine_vertices", record)
    reconstructor = Reconstructor(SphereModel(), CONFIG, "cpu")
    for resolution in (64, 256):
        result = reconstructor.reconstruct(sphere_points(), resolution=resolution, refine=5)
        assert any("found nothing better" in note for note in result.warnings)
    assert used == pytest.approx([1e-4, 5e-5])


def test_memory_limits_the_chunks_not_the_result() -> None:
    model = SphereModel()
    sizes: list[int] = []
    plain = model.decode
    model.decode = lambda query, features: sizes.append(query.shape[1]) or plain(query, features)  # type: ignore
    reconstructor = Reconstructor(model, CONFIG, "cpu")
    free = reconstructor.reconstruct(sphere_points(), resolution=48)
    widest = max(sizes)
    sizes.clear()
    tight = reconstructor.reconstruct(sphere_points(), resolution=48, memory="64M")
    assert max(sizes) < widest and tight.stats["settings"]["memory"] == 64 * 2**20
    np.testing.assert_array_equal(tight.mesh.vertices, free.mesh.vertices)


def test_defects_are_told() -> None:
    settings = ReconstructionConfig(fit=False, components="all")
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    open_one = Surface(vertices, faces[:3], None)
    finish_surface(open_one, settings, vertices, lambda v, f: None)  # type: ignore[arg-type,return-value]
    assert open_one.notes == ["the mesh is defective: it has 3 open edges (holes)"]
    assert open_one.facts["problems"] == ["3 open edges (holes)"]
    broken = Surface(vertices, faces, None)
    moved = Refinement(np.where(vertices == 1, np.nan, vertices), 1.0, 0.5, 1)
    with pytest.raises(ValueError, match="3 vertices of the mesh are NaN"):
        finish_surface(broken, dataclasses.replace(settings, refine=1), vertices, lambda v, f: moved)
    with pytest.raises(EmptyReconstructionError, match="encloses no volume"):
        finish_surface(Surface(vertices, faces[:, ::-1], None), settings, vertices, lambda v, f: moved)


def test_models_of_other_inputs_and_devices() -> None:
    with pytest.raises(ValueError, match="reads voxels; point clouds need"):
        Reconstructor(SphereModel(), {"data": {"input_type": "voxels"}}, "cpu").reconstruct(sphere_points())
    with pytest.raises(ValueError, match="must be auto, cpu, cuda"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="torch sees"):
        pick_device("cuda:99")
    assert pick_device("cpu") == torch.device("cpu")


def test_mesh_statistics_of_a_tetrahedron() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) + 1e6
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    found = mesh_statistics(vertices, faces)
    assert found["volume"] == pytest.approx(1 / 6, rel=1e-9) and found["watertight"]
    assert found["area"] == pytest.approx(1.5 + math.sqrt(3) / 2)
    assert not is_watertight(faces[:3], 4) and not is_watertight(np.vstack([faces[:3], faces[3:, ::-1]]), 4)
    assert winding_number(vertices.mean(axis=0), vertices, faces) == pytest.approx(1)
    assert winding_number(vertices[0] - 1, vertices, faces) == pytest.approx(0, abs=1e-9)
    assert list(find_parts(vertices, np.vstack([faces])).faces) == [4]


def test_far_groups_of_points_do_not_set_the_scale() -> None:
    rng = np.random.default_rng(0)
    cable = np.array([6.0, 1.0, 0.0]) + rng.normal(0, 0.02, (15, 3))
    bird = np.array([-3.0, 5.0, 2.0]) + rng.normal(0, 0.02, (15, 3))
    clean = clean_cloud(np.concatenate([sphere_points(3000), cable, bird]))
    assert clean.outliers == 30 and clean.frame.scale == pytest.approx(2.0)
    # Near groups stay: they do not change the scale, and may be parts of the object.
    near = np.array([1.4, 0.0, 0.0]) + rng.normal(0, 0.02, (25, 3))
    assert clean_cloud(np.concatenate([sphere_points(3000), near])).outliers == 0
    # So does a second object.
    other = sphere_points(300, radius=0.5, center=(8.0, 0.0, 0.0))
    assert clean_cloud(np.concatenate([sphere_points(3000), other])).outliers == 0
