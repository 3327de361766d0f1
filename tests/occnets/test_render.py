# SPDX-License-Identifier: MIT
"""The software rasteriser: geometry of the picture, hidden surfaces, shading, both panels."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from fakes import sphere_points
from occnets.io import Geometry
from occnets.render import BACKGROUND, View, encode_png, render, render_png

CUBE = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
SQUARES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
CUBE_FACES = np.concatenate([SQUARES[:, [0, 1, 2]], SQUARES[:, [0, 2, 3]]])
FRONT = View(azimuth=0.0, elevation=0.0)


def drawn(image: np.ndarray) -> np.ndarray:
    return (image != np.array(BACKGROUND, dtype=np.uint8)).any(axis=2)


def sphere_mesh(count: int = 64) -> Geometry:
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 2 * count + 1), np.linspace(0, np.pi, count + 1), indexing="ij")
    points = np.stack([np.cos(u) * np.sin(v), np.cos(v), np.sin(u) * np.sin(v)], axis=-1).reshape(-1, 3)
    a = (np.arange(2 * count)[:, None] * (count + 1) + np.arange(count)).reshape(-1)
    b = a + count + 1
    return Geometry(points, faces=np.concatenate([np.stack([a, b, a + 1], 1), np.stack([b, b + 1, a + 1], 1)]))


def test_sphere_is_a_filled_disc_of_the_right_size() -> None:
    image = render([sphere_mesh()], size=200, view=FRONT)
    assert image.shape == (200, 200, 3) and image.dtype == np.uint8
    mask = drawn(image)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), columns.min()) == pytest.approx((12, 12), abs=1)  # a margin of 6 %
    assert (rows.max(), columns.max()) == pytest.approx((187, 187), abs=1)
    assert mask.sum() == pytest.approx(np.pi * 88**2, rel=0.02)


def test_both_panels_show_something_in_the_same_place() -> None:
    png = render_png([Geometry(sphere_points(3000)), sphere_mesh()], size=160)
    assert png.startswith(b"\x89PNG")
    image = np.asarray(Image.open(io.BytesIO(png)))
    assert image.shape == (160, 320, 3)
    left, right = drawn(image[:, :160]), drawn(image[:, 160:])
    assert left.sum() > 0.6 * right.sum() > 0.3 * left.size
    for axis in (0, 1):
        assert np.flatnonzero(left.any(axis))[0] == pytest.approx(np.flatnonzero(right.any(axis))[0], abs=3)
    blue, grey = image[:, :160][left].mean(axis=0), image[:, 160:][right].mean(axis=0)
    assert blue[2] > blue[0] + 30 and abs(grey[2] - grey[0]) < 30


@pytest.mark.parametrize("flip", [False, True])
def test_nearer_surfaces_hide_farther_ones(flip: bool) -> None:
    square = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    points = np.concatenate([square * 0.5 + [0, 0, 1.0], square])
    colors = np.repeat(np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8), 4, axis=0)
    faces = np.concatenate([faces, faces[:, ::-1] + 4])  # wound both ways: an open mesh is seen from both sides
    shape = Geometry(points, None, colors, (), faces[::-1] if flip else faces)
    image = render([shape], size=100, view=FRONT).astype(int)
    assert image[50, 50, 0] > image[50, 50, 2] + 60
    assert image[15, 15, 2] > image[15, 15, 0] + 60
    back = render([shape], size=100, view=View(azimuth=180, elevation=0)).astype(int)
    assert back[50, 50, 2] > back[50, 50, 0] + 60


def test_cube_faces_are_flat_and_differ() -> None:
    image = render([Geometry(CUBE, faces=CUBE_FACES)], size=200, view=View(azimuth=30, elevation=30)).astype(int)
    top, left, right = image[60, 100], image[130, 60], image[130, 150]
    assert min(np.abs(a - b).max() for a, b in ((top, left), (left, right), (top, right))) > 8
    # What is left is the darkening of crevices; interpolating normals across the edges would give 25.
    assert np.ptp(image[55:65, 95:105].reshape(-1, 3), axis=0).max() < 16


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_up_points_up(up: str) -> None:
    axis = "xyz".index(up)
    points = sphere_points(500) * 0.3
    points = np.vstack([points, np.eye(3)[axis] * 2 + 0.2 * sphere_points(500)])
    colors = np.repeat(np.array([[20, 20, 200], [200, 20, 20]], dtype=np.uint8), 500, axis=0)
    image = render([Geometry(points, None, colors)], size=120, view=View(up=up)).astype(int)
    red = np.argwhere(image[..., 0] > image[..., 2] + 40)
    blue = np.argwhere(image[..., 2] > image[..., 0] + 40)
    assert len(red) and len(blue) and red[:, 0].max() < blue[:, 0].min()
    assert red[:, 1].mean() == pytest.approx(blue[:, 1].mean(), abs=8)


def test_far_from_the_origin_and_tiny_looks_the_same() -> None:
    mesh = sphere_mesh(24)
    moved = Geometry(mesh.points * 1e-3 + [5e5, 4e6, 200.0], faces=mesh.faces)
    a, b = (render([shape], size=96).astype(int) for shape in (mesh, moved))
    assert np.abs(a - b).mean() < 1.0


def test_single_points_degenerate_faces_and_looking_down() -> None:
    assert drawn(render([Geometry(np.zeros((1, 3)))], size=64)).any()
    flat = Geometry(CUBE, faces=np.array([[0, 0, 1], [0, 1, 1], [2, 2, 2]]))
    assert not drawn(render([flat], size=64)).any()
    assert drawn(render([sphere_mesh(8)], size=64, view=View(elevation=90))).any()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        render([Geometry(np.empty((0, 3)))])
    with pytest.raises(ValueError, match="`size` must be from 16"):
        render([sphere_mesh(4)], size=4)
    with pytest.raises(ValueError, match="`up` must be x, y or z"):
        View(up="w")


def test_hundreds_of_thousands_of_faces_are_quick() -> None:
    mesh = sphere_mesh(280)
    assert mesh.faces is not None and len(mesh.faces) > 300_000
    start = time.process_time()
    image = render([mesh], size=400)
    # About 1.2 s of processor time where this was written; the limit only catches a loop over faces.
    assert time.process_time() - start < 12
    assert drawn(image).mean() > 0.5 and len(encode_png(image)) > 5000
