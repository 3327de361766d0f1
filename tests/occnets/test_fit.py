# SPDX-License-Identifier: MIT
"""Fitting an extracted surface to the measured points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import occkernels
from fakes import CONFIG, FieldModel, ball, sphere_points
from occnets.fit import FitOptions, fit_to_points, vertex_normals
from occnets.reconstruct import Reconstructor

RESOLUTION = 64


def mesh_of(signed, resolution: int = RESOLUTION):  # noqa: ANN001, ANN201
    """Vertices and faces of a field given as signed distance, negative inside, in the unit cube."""
    axis = torch.linspace(-0.55, 0.55, resolution + 1)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    batch = occkernels.marching_cubes(-signed(grid), 0.0, edge_margin=1e-3)
    vertices = 1.1 * (batch.vertices.double().numpy() / resolution - 0.5)
    return vertices, batch.faces.numpy()


def radii(vertices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vertices, axis=1)


def test_normals_point_outward_and_are_unit() -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.4)
    normals = vertex_normals(vertices, faces)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1.0)
    assert ((normals * vertices).sum(axis=1) / radii(vertices)).min() > 0.98


def test_surface_that_agrees_with_the_points_stays() -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.4)
    moved = fit_to_points(vertices, faces, sphere_points(3000, radius=0.4))
    # A curved surface must not shrink: the bound is the chord error of the lattice.
    assert np.abs(radii(moved) - 0.4).max() < 2 * (1.1 / RESOLUTION) ** 2 / (8 * 0.4)


@pytest.mark.parametrize("offset", [-0.008, 0.008])
def test_biased_surface_moves_onto_the_points(offset: float) -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.4 - offset)
    moved = fit_to_points(vertices, faces, sphere_points(3000, radius=0.4))
    assert np.abs(radii(moved) - 0.4).mean() < 0.1 * abs(offset)


@pytest.mark.parametrize("resolution", [48, 96])
def test_ripples_below_the_spacing_are_smoothed_at_any_resolution(resolution: int) -> None:
    # Ripples of wavelength 0.04 between points 0.06 apart.
    def rippled(p: torch.Tensor) -> torch.Tensor:
        return p.norm(dim=-1) - 0.4 - 0.003 * (p * 157).sin().prod(dim=-1)

    vertices, faces = mesh_of(rippled, resolution)
    points = sphere_points(600, radius=0.4)
    blurred, plain = (fit_to_points(vertices, faces, points, FitOptions(blur=blur)) for blur in (0.35, 0.0))
    assert radii(blurred).std() < 0.5 * radii(plain).std()
    assert abs(radii(blurred).mean() - 0.4) < 1.5e-3


def test_blur_is_repeated_averaging() -> None:
    from occnets.fit import _averaging, _blurred

    vertices, faces = mesh_of(lambda p: (p.abs() - 0.3).amax(dim=-1), 24)
    average = _averaging(len(vertices), faces)
    edges = vertices[faces[:, [1, 2, 0]]] - vertices[faces]
    variance = (edges**2).sum(axis=2).mean() / 4
    for rounds in (0, 1, 7, 40):
        expected = vertices
        for _ in range(rounds):
            expected = average @ expected
        found = _blurred(vertices, faces, average, np.sqrt(rounds * variance))
        np.testing.assert_allclose(found, expected, atol=5e-6)


def test_noise_is_averaged_not_followed() -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.404)
    noise = np.random.default_rng(1).normal(0, 0.005, (3000, 1))
    points = sphere_points(3000, radius=0.4)
    moved = fit_to_points(vertices, faces, points * (1 + noise / 0.4))
    error = radii(moved) - 0.4
    assert abs(error.mean()) < 0.001 and error.std() < 0.5 * 0.005


def test_both_sides_of_a_thin_plate_keep_their_distance() -> None:
    half = torch.tensor([0.4, 0.4, 0.01])

    def plate(p: torch.Tensor) -> torch.Tensor:
        return (p.abs() - half).amax(dim=-1)

    vertices, faces = mesh_of(plate, 128)
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.4, 0.4, (4000, 3))
    points[:, 2] = np.where(np.arange(4000) % 2, 0.01, -0.01)
    moved = fit_to_points(vertices, faces, points)
    inner = np.abs(moved[:, :2]).max(axis=1) < 0.35
    np.testing.assert_allclose(np.abs(moved[inner, 2]), 0.01, atol=5e-4)
    assert (np.sign(moved[inner, 2]) == np.sign(vertices[inner, 2])).all()


def test_nothing_moves_without_points_nearby() -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.3)
    points = sphere_points(2000, radius=0.4)  # further than FitOptions.reach everywhere
    assert np.array_equal(fit_to_points(vertices, faces, points), vertices)
    cap = sphere_points(4000, radius=0.305)
    cap = cap[cap[:, 2] > 0.15]
    moved = fit_to_points(vertices, faces, cap)
    below = vertices[:, 2] < -0.1
    assert np.abs(moved[below] - vertices[below]).max() < 1e-9 and radii(moved)[vertices[:, 2] > 0.25].mean() > 0.303


def test_outliers_do_not_pull() -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.4)
    strays = sphere_points(300, radius=0.415, seed=5)
    moved = fit_to_points(vertices, faces, np.concatenate([sphere_points(3000, radius=0.4), strays]))
    assert np.abs(radii(moved) - 0.4).max() < 5e-4


def test_input_is_not_changed_and_result_is_reproducible() -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.404)
    before, points = vertices.copy(), sphere_points(1000, radius=0.4)
    first, second = fit_to_points(vertices, faces, points), fit_to_points(vertices, faces, points)
    assert np.array_equal(vertices, before) and np.array_equal(first, second)
    assert not np.array_equal(first, fit_to_points(vertices, faces, points, FitOptions(rounds=1)))


@pytest.mark.parametrize(("name", "index"), [("vertices", 0), ("faces", 1), ("points", 2)])
def test_wrong_shapes_are_named(name: str, index: int) -> None:
    vertices, faces = mesh_of(lambda p: p.norm(dim=-1) - 0.4, 16)
    arguments = [vertices, faces, sphere_points(100, radius=0.4)]
    arguments[index] = arguments[index][:, :2]
    with pytest.raises(ValueError, match=f"`{name}` must have shape"):
        fit_to_points(*arguments)
    arguments[index] = np.zeros((0, 3))
    with pytest.raises(ValueError, match=f"`{name}` must have shape"):
        fit_to_points(*arguments)


def test_reconstruction_fits_unless_told_not_to() -> None:
    points = sphere_points(3000)  # radius 1: the network's ball is 2 % too large in the cube of side 2
    reconstructor = Reconstructor(FieldModel(ball((0.0, 0.0, 0.0), 0.51)), CONFIG, "cpu")
    fitted = reconstructor.reconstruct(points, resolution=64, normals=True)
    plain = reconstructor.reconstruct(points, resolution=64, fit=False)
    assert np.abs(radii(np.asarray(plain.mesh.vertices)) - 1.02).max() < 1e-3
    assert np.abs(radii(np.asarray(fitted.mesh.vertices)) - 1.0).mean() < 2e-3
    assert fitted.mesh.is_watertight and fitted.stats["settings"]["fit"] and not plain.stats["settings"]["fit"]
    outward = np.asarray(fitted.mesh.vertices) / radii(np.asarray(fitted.mesh.vertices))[:, None]
    agreement = (np.asarray(fitted.mesh.vertex_normals) * outward).sum(axis=1)
    assert agreement.mean() > 0.998 and agreement.min() > 0.9  # slivers of marching cubes tilt single normals
