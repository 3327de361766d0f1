# SPDX-License-Identifier: MIT
"""Refinement of vertices by the field, and simplification that keeps the surface closed."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import occkernels
from fakes import ball
from occnets.check import check_mesh
from occnets.components import find_parts
from occnets.memory import in_chunks, is_out_of_memory, parse_size
from occnets.models import build_model
from occnets.refine import RefineOptions, refine_vertices, simplify_mesh
from occnets.refine.simplify import separate_pinches, target_faces


def mesh_of(field, resolution: int = 24, level: float = 0.0):  # noqa: ANN001, ANN201
    """Vertices and faces of the surface of ``field`` (..., 3) -> (...) in the padded unit cube."""
    axis = torch.linspace(-0.55, 0.55, resolution + 1)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    batch = occkernels.marching_cubes(field(grid), level, edge_margin=1e-3)
    return 1.1 * (batch.vertices.double().numpy() / resolution - 0.5), batch.faces.numpy()


def sphere(query: Tensor) -> Tensor:
    return 20 * ball((0.0, 0.0, 0.0), 0.4)(query)


def cube(query: Tensor) -> Tensor:
    return 20 * (0.3 - query.abs().amax(dim=-1))


def face_errors(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Distance of the faces' middles from the sphere."""
    return np.abs(np.linalg.norm(vertices[faces].mean(axis=1), axis=1) - 0.4)


# --- refinement ------------------------------------------------------------------------------------------------------


def test_faces_move_onto_the_surface() -> None:
    vertices, faces = mesh_of(sphere)
    refined = refine_vertices(vertices, faces, sphere, options=RefineOptions(steps=60))
    assert refined.after < 0.7 * refined.before and refined.step > 0
    assert face_errors(refined.vertices, faces).mean() < 0.7 * face_errors(vertices, faces).mean()
    assert check_mesh(refined.vertices, faces).ok


def test_threshold_is_a_probability() -> None:
    # Started at the level of 0.5 and asked for 0.2, the surface grows to where the logit is log(0.2 / 0.8).
    vertices, faces = mesh_of(sphere, 16)
    refined = refine_vertices(vertices, faces, sphere, 0.2, RefineOptions(steps=200, learning_rate=5e-4))
    expected = 0.4 + np.log(4) / 20
    assert np.linalg.norm(refined.vertices, axis=1).mean() == pytest.approx(expected, abs=0.01)


def test_normals_sharpen_edges() -> None:
    vertices, faces = mesh_of(cube, 21)
    options = RefineOptions(steps=100, normal_weight=0.1)

    def agreement(v: np.ndarray) -> float:
        """Mean of the largest component of the face normals: 1 when all faces are parallel to the sides."""
        a, b, c = (v[faces[:, i]] for i in range(3))
        normals = np.cross(b - a, c - a)
        areas = np.linalg.norm(normals, axis=1)
        return float((np.abs(normals).max(axis=1)).sum() / areas.sum())

    refined = refine_vertices(vertices, faces, cube, options=options)
    assert refined.after < refined.before and agreement(refined.vertices) > agreement(vertices)


def test_never_worse_and_reported() -> None:
    vertices, faces = mesh_of(sphere, 16)
    wild = refine_vertices(vertices, faces, sphere, options=RefineOptions(steps=10, learning_rate=0.5))
    assert wild.step == 0 and wild.after == wild.before and np.array_equal(wild.vertices, vertices)
    none = refine_vertices(vertices, faces, sphere, options=RefineOptions(steps=0))
    assert none.before == wild.before and np.array_equal(none.vertices, vertices)


def test_same_seed_same_vertices_whatever_the_chunk() -> None:
    vertices, faces = mesh_of(sphere, 12)
    options = RefineOptions(steps=10)
    seen: list[tuple[int, int]] = []
    first = refine_vertices(vertices, faces, sphere, options=options, progress=lambda *now: seen.append(now))
    again = refine_vertices(vertices, faces, sphere, options=options)
    small = refine_vertices(vertices, faces, sphere, options=dataclasses.replace(options, chunk=101))
    other = refine_vertices(vertices, faces, sphere, options=dataclasses.replace(options, seed=1))
    assert first.step and np.array_equal(first.vertices, again.vertices)
    assert not np.array_equal(first.vertices, other.vertices)
    np.testing.assert_allclose(small.vertices, first.vertices, atol=1e-6)
    assert seen == [(step, 10) for step in range(1, 11)]


@pytest.mark.parametrize("plane_type", [["xz", "xy", "yz"], "grid"])
def test_gradient_of_the_loss_through_a_network(plane_type: str | list[str]) -> None:
    """The direction that refinement takes is the derivative of what it measures, second derivatives included."""
    from occnets.refine.vertices import _Loss

    torch.manual_seed(0)
    encoder = {"hidden_dim": 8, "plane_type": plane_type, "plane_resolution": 8, "grid_resolution": 8}
    config = {
        "method": "conv_onet",
        "data": {"padding": 0.1},
        "model": {
            "encoder": "pointnet_local_pool",
            "encoder_kwargs": encoder,
            "decoder": "simple_local",
            "decoder_kwargs": {"hidden_size": 16},
            "c_dim": 8,
        },
    }
    model = build_model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    with torch.no_grad():
        features = model.encode(torch.rand(1, 200, 3) - 0.5)

    model.double()
    wide = {name: value.double() for name, value in features.items()}
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    vertices = torch.tensor([[0.1, 0.2, 0.05], [0.21, 0.19, 0.1], [0.2, 0.3, 0.02], [0.07, 0.31, 0.09]]).double()
    loss = _Loss(faces, lambda query: model.decode(query, wide), 0.4, RefineOptions(normal_weight=0.5))
    loss.dtype = torch.float64  # finite differences need it
    loss.draw = lambda: loss.fixed  # type: ignore[method-assign]
    gradient = loss.gradient(vertices)
    for index in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[index] = 1e-7
        step = step.view(4, 3)
        expected = (loss.measure(vertices + step) - loss.measure(vertices - step)) / 2e-7
        assert float(gradient.view(-1)[index]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_parameters_are_left_alone() -> None:
    vertices, faces = mesh_of(sphere, 12)
    weight = torch.nn.Parameter(torch.tensor(20.0))
    refine_vertices(vertices, faces, lambda q: weight * ball((0.0, 0.0, 0.0), 0.4)(q), options=RefineOptions(steps=2))
    assert weight.grad is None and weight.item() == 20.0


def test_memory_is_found_by_halving() -> None:
    vertices, faces = mesh_of(sphere, 24)
    sizes: list[int] = []

    def field(query: Tensor) -> Tensor:
        if query.shape[1] > 1500:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        sizes.append(query.shape[1])
        return sphere(query)

    found = refine_vertices(vertices, faces, field, options=RefineOptions(steps=2, chunk=4000))
    plain = refine_vertices(vertices, faces, sphere, options=RefineOptions(steps=2))
    assert max(sizes) == 1024 and len(faces) > 2048
    np.testing.assert_allclose(found.vertices, plain.vertices, atol=1e-6)


def test_wrong_arguments_of_refinement() -> None:
    vertices, faces = mesh_of(sphere, 12)
    with pytest.raises(ValueError, match="`faces` must have shape"):
        refine_vertices(vertices, faces[:, :2], sphere)
    with pytest.raises(ValueError, match="`vertices` must have shape"):
        refine_vertices(vertices[:0], faces, sphere)
    with pytest.raises(ValueError, match="`threshold` is a probability"):
        refine_vertices(vertices, faces, sphere, 1.0)
    with pytest.raises(ValueError, match="no gradient with respect to its query"):
        refine_vertices(vertices, faces, lambda query: torch.ones(query.shape[:2]))
    for name, value in {"steps": -1, "chunk": 0, "check_every": 0, "learning_rate": 0.0, "normal_weight": -1.0}.items():
        with pytest.raises(ValueError, match=f"`{name}`"):
            dataclasses.replace(RefineOptions(), **{name: value})


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 2**32), ("500 MB", 500 * 2**20), ("1.5GiB", 3 * 2**29), ("64k", 2**16), ("1000", 1000), (77, 77)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-4G", "4X", "0", "4 G B", 0])
def test_no_sizes(text: str | int) -> None:
    with pytest.raises(ValueError, match="such as 500M or 4G"):
        parse_size(text)


def test_chunks_cover_everything_once() -> None:
    done: list[int] = []

    def work(part: slice) -> None:
        if part.stop - part.start > 1200:
            raise MemoryError
        done.extend(range(part.start, part.stop))

    assert in_chunks(5000, 4800, work) == 1200 and done == list(range(5000))
    with pytest.raises(MemoryError):
        in_chunks(5000, 1024, lambda part: work(slice(0, 2000)))
    with pytest.raises(RuntimeError, match="shapes"):  # other errors are not retried
        in_chunks(10, 5, lambda part: (_ for _ in ()).throw(RuntimeError("shapes do not match")))
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and not is_out_of_memory(RuntimeError("x"))


# --- simplification --------------------------------------------------------------------------------------------------


def wavy(query: Tensor) -> Tensor:
    """A closed surface with many handles."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(query.shape[:-1])
    for _ in range(12):
        wave, phase = torch.randn(3, generator=generator) * 12, torch.rand(1, generator=generator) * 6
        total = total + torch.sin((query * wave).sum(dim=-1) + phase)
    return torch.minimum(total, 10 * (0.5 - query.abs().amax(dim=-1)))


@pytest.mark.parametrize(("target", "wanted"), [(0.5, None), (0.1, None), (500, 500)])
def test_simplified_sphere_is_closed_and_close(target: float, wanted: int | None) -> None:
    pytest.importorskip("fast_simplification")
    vertices, faces = mesh_of(sphere, 48)
    found = simplify_mesh(vertices, faces, target)
    wanted = wanted or round(target * len(faces))
    assert len(found.faces) == pytest.approx(wanted, rel=0.01) and found.warnings == ()
    assert check_mesh(found.vertices, found.faces).ok
    assert np.abs(np.linalg.norm(found.vertices, axis=1) - 0.4).max() < 0.005


@pytest.mark.parametrize("ratio", [0.3, 0.1, 0.03])
def test_simplification_keeps_a_difficult_surface_closed(ratio: float) -> None:
    pytest.importorskip("fast_simplification")
    vertices, faces = mesh_of(wavy, 40)
    found = simplify_mesh(vertices, faces, ratio)
    assert check_mesh(found.vertices, found.faces).ok
    assert len(found.faces) <= 1.05 * ratio * len(faces)


def test_small_mesh_and_lost_parts() -> None:
    pytest.importorskip("fast_simplification")
    vertices, faces = mesh_of(sphere, 16)
    same = simplify_mesh(vertices, faces, len(faces) + 10)
    assert same.vertices is vertices and same.faces is faces
    small = mesh_of(ball((0.45, 0.45, 0.45), 0.05), 48)
    large = mesh_of(sphere, 48)
    both = np.vstack([large[0], small[0]]), np.vstack([large[1], small[1] + len(large[0])])
    found = simplify_mesh(*both, 40)
    count = len(find_parts(found.vertices, found.faces).faces)
    assert check_mesh(found.vertices, found.faces).ok
    assert count == 2 or f"the number of components from 2 to {count}" in found.warnings[-1]


def test_targets() -> None:
    assert target_faces(0.25, 1000) == 250 and target_faces(5000, 7) == 5000 and target_faces(0.001, 100) == 4
    for wrong in (0, -1, 1, 3, 4.5, float("nan")):
        with pytest.raises(ValueError, match="a share between 0 and 1 or a number of faces"):
            target_faces(wrong, 100)


def test_missing_simplifier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    vertices, faces = mesh_of(sphere, 16)
    with pytest.raises(ImportError, match=r"occkernels\[mesh\]"):
        simplify_mesh(vertices, faces, 100)


def test_broken_simplifier_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def simplify(points: np.ndarray, faces: np.ndarray, **options: object) -> tuple[np.ndarray, np.ndarray]:
            return points, faces[: options["target_count"]]

    monkeypatch.setitem(sys.modules, "fast_simplification", Broken)
    vertices, faces = mesh_of(sphere, 16)
    found = simplify_mesh(vertices, faces, 100)
    assert found.faces is faces and "would have broken the surface" in found.warnings[0]


# --- pinches ---------------------------------------------------------------------------------------------------------

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


@pytest.mark.parametrize("shared", [1, 2])
def test_bodies_that_touch_are_cut_apart(shared: int) -> None:
    first = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    second = np.array([[0.0, 0, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1]])
    faces = np.vstack([TETRAHEDRON, TETRAHEDRON + 4])
    faces[faces == 4] = 0
    if shared == 2:
        faces[faces == 7] = 3
    found = separate_pinches(np.vstack([first, second]), faces)
    assert found is not None
    checked = check_mesh(found.vertices, found.faces)
    assert checked.ok and checked.volume == pytest.approx(1 / 3, rel=0.01)
    parts = find_parts(found.vertices, found.faces)
    middles = 2 * (shared - 1)  # each body gets its own on a shared edge
    assert list(parts.faces) == [4 + middles] * 2 and len(found.vertices) == 8 + middles
    # Apart in space, too; only the two tips were given at one place.
    assert len(np.unique(found.vertices.astype(np.float32), axis=0)) == len(found.vertices) - (2 - shared)


def test_edge_of_six_faces() -> None:
    wedges = []
    for turn in range(3):
        a, b = (turn / 3 * 2 * np.pi + offset for offset in (0.0, 0.6))
        wedges.append([[np.cos(a), np.sin(a), 0.5], [np.cos(b), np.sin(b), 0.5]])
    vertices = np.vstack([[[0.0, 0, 0], [0, 0, 1]], *wedges])
    # Corners 0 and 3 of each tetrahedron are the common edge.
    faces = np.vstack([np.array([0, 2 + 2 * k, 3 + 2 * k, 1])[TETRAHEDRON] for k in range(3)])
    assert check_mesh(vertices, faces).crowded_edges == 1
    found = separate_pinches(vertices, faces)
    assert found is not None and check_mesh(found.vertices, found.faces).ok
    assert (find_parts(found.vertices, found.faces).volumes > 0).all() and len(found.vertices) == 15


def test_folded_faces_are_removed() -> None:
    vertices = np.vstack([np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), [[2.0, 2, 2]]])
    fold = np.array([[1, 2, 4], [2, 1, 4]])
    assert check_mesh(vertices, np.vstack([TETRAHEDRON, fold])).duplicate == 1
    found = separate_pinches(vertices, np.vstack([TETRAHEDRON, fold]))
    assert found is not None and check_mesh(found.vertices, found.faces).ok and len(found.faces) == 4


def test_open_surfaces_cannot_be_mended_so() -> None:
    assert separate_pinches(np.eye(4)[:, :3], TETRAHEDRON[:3]) is None
    vertices, faces = mesh_of(sphere, 12)
    same = separate_pinches(vertices, faces)
    assert same is not None and len(same.vertices) == len(vertices)
    assert np.array_equal(np.sort(same.vertices, axis=0), np.sort(vertices, axis=0))
