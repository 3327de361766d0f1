# SPDX-License-Identifier: MIT
"""The virtual scanner: every degradation alone, on solids whose answer is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from occnets.data.draw import place
from occnets.data.procedural import random_shape
from occnets.data.scanner import CLEAN, ScanConfig, scan, scan_solid, visible
from occnets.data.solid import make_solid


@pytest.fixture(scope="module")
def ball() -> tuple[torch.Tensor, torch.Tensor]:
    """Surface samples (2, 6000, 3) of a ball of radius 0.5 and their normals."""
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(2, 6000, 3, generator=generator), dim=2)
    return 0.5 * normals, normals


def only(**changes: object) -> ScanConfig:
    return dataclasses.replace(CLEAN, **changes)


def test_clean_scans_are_distinct_surface_samples(ball):
    result = scan(*ball, 3000, config=CLEAN, seed=1)
    assert result.points.shape == (2, 3000, 3)
    assert not result.outlier.any() and result.noise.abs().max() == 0
    rows = torch.arange(2)[:, None]
    assert torch.equal(result.points, ball[0][rows, result.index])
    assert torch.equal(result.normals, ball[1][rows, result.index])
    assert all(len(torch.unique(row)) == 3000 for row in result.index)


def test_equal_seeds_give_equal_scans(ball):
    first, second, other = (scan(*ball, 500, seed=s) for s in (5, 5, 6))
    assert torch.equal(first.points, second.points) and torch.equal(first.outlier, second.outlier)
    assert not torch.equal(first.points, other.points)
    stream = torch.Generator().manual_seed(5)
    assert torch.equal(scan(*ball, 500, seed=stream).points, first.points)
    assert not torch.equal(scan(*ball, 500, seed=stream).points, first.points)


def test_more_points_than_samples_repeat_evenly(ball):
    result = scan(*ball, 9000, config=CLEAN)
    counts = torch.bincount(result.index[0], minlength=6000)
    assert counts.min() == 1 and counts.max() == 2


def test_noise_has_the_reported_deviation(ball):
    result = scan(*ball, 5000, config=only(noise=(0.01, 0.01)))
    error = result.points - ball[0][torch.arange(2)[:, None], result.index]
    assert torch.equal(result.noise, torch.full((2,), 0.01))
    # 30,000 draws: the deviation is known to 0.4 %.
    assert error.std().item() == pytest.approx(0.01, rel=0.02)
    assert error.mean(dim=(0, 1)).abs().max() < 4e-4


def test_outliers_have_the_asked_fraction(ball):
    result = scan(*ball, 6000, config=only(outlier_chance=1.0, outliers=(0.2, 0.2)))
    assert result.outlier.double().mean().item() == pytest.approx(0.2, abs=0.015)
    off = (result.points.norm(dim=2) - 0.5).abs()
    assert off[~result.outlier].max() < 1e-5 and off[result.outlier].median() > 0.02
    assert result.normals[result.outlier].abs().max() == 0


def test_one_camera_sees_one_side(ball):
    seen = visible(*ball, torch.tensor([[[0.0, 0, 3]]]).expand(2, -1, -1))[:, 0]
    # From distance 3 a ball of radius .5 is seen down to z = .5 * .5 / 3, less where it is too slanted.
    assert not seen[ball[0][..., 2] < 0.08].any()
    assert seen[ball[0][..., 2] > 0.2].all()
    clouds = scan(*ball, 1000, config=only(view_chance=1.0, cameras=(1, 1))).points
    center = torch.nn.functional.normalize(clouds.mean(1, keepdim=True), dim=2)
    assert ((clouds * center).sum(2) > -0.05).all()
    many = scan(*ball, 4000, config=only(view_chance=1.0, cameras=(12, 12))).points
    assert many.mean(1).norm(dim=1).max() < clouds.mean(1).norm(dim=1).min()


def test_near_parts_hide_far_ones():
    generator = torch.Generator().manual_seed(1)
    square = torch.rand(4000, 2, generator=generator) - 0.5
    near = torch.cat([0.6 * square, torch.full((4000, 1), 0.3)], 1)
    far = torch.cat([square, torch.full((4000, 1), -0.3)], 1)
    points = torch.cat([near, far])[None]
    normals = torch.tensor([0.0, 0, 1]).expand_as(points)
    seen = visible(points, normals, torch.tensor([[[0.0, 0, 2.5]]]))[0, 0]
    assert seen[:4000].all()
    shadow = far[:, :2].abs().amax(1)
    # The shadow of the near square ends at .3 * 2.8 / 2.2 = .382.
    assert not seen[4000:][shadow < 0.35].any() and seen[4000:][shadow > 0.43].all()


def test_slanted_faces_do_not_hide_themselves():
    generator = torch.Generator().manual_seed(2)
    flat = torch.rand(6000, 2, generator=generator) - 0.5
    for angle in (0.3, 0.8, 1.2):
        normal = torch.tensor([math.sin(angle), 0.0, math.cos(angle)])
        along = torch.tensor([math.cos(angle), 0.0, -math.sin(angle)])
        points = flat[:, :1] * along + flat[:, 1:] * torch.tensor([0.0, 1.0, 0.0])
        seen = visible(points[None], normal.expand_as(points)[None], torch.tensor([[[0.0, 0, 2.0]]]))
        assert seen.double().mean() > 0.98, angle


def test_ray_noise_moves_points_along_their_view(ball):
    config = only(view_chance=1.0, cameras=(1, 1), noise=(0.01, 0.01), ray_noise=1.0)
    result = scan(*ball, 2000, config=config)
    error = result.points - ball[0][torch.arange(2)[:, None], result.index]
    # All rays start from one camera 1.5 to 3 away: the first principal direction holds nearly all of the noise.
    for row in error:
        spectrum = torch.linalg.svdvals(row)
        assert spectrum[0] ** 2 / spectrum.square().sum() > 0.9
    assert error.norm(dim=2).square().mean().sqrt().item() == pytest.approx(0.01, rel=0.08)


def test_holes_are_empty_balls(ball):
    config = only(hole_chance=1.0, holes=(1, 1), hole_radius=(0.15, 0.15))
    result = scan(*ball, 5500, config=config)
    for row in range(2):
        kept = torch.unique(result.index[row])
        missing = torch.ones(6000, dtype=torch.bool)
        missing[kept] = False
        # A ball of radius r around a surface point removes (r / 2R)^2 of a sphere: 2.25 % of 6,000; others are unlucky.
        distance = torch.cdist(ball[0][row][missing], ball[0][row][kept]).amin(1)
        assert distance.max() > 0.1
    removed = (scan(*ball, 6000, config=config).index.sort(1).values.diff(dim=1) == 0).sum(1)
    assert ((removed > 90) & (removed < 190)).all()


def test_density_is_uneven_within_its_ratio(ball):
    config = only(density_chance=1.0, density=20.0)
    points, normals = (t[:1].expand(16, -1, -1) for t in ball)
    uneven = scan(points, normals, 1500, config=config).points
    even = scan(points, normals, 1500, config=CLEAN).points
    octants = torch.tensor([4.0, 2.0, 1.0])

    def spread(clouds: torch.Tensor) -> float:
        codes = ((clouds > 0) * octants).sum(2).long()
        counts = torch.stack([torch.bincount(c, minlength=8) for c in codes]).double()
        return float((counts.amax(1) / counts.amin(1).clamp_min(1)).mean())

    assert spread(even) < 1.6 < 1.8 < spread(uneven) < 20


def test_rounding_puts_points_on_a_raster(ball):
    result = scan(*ball, 800, config=only(rounding_chance=1.0, rounding=(0.01, 0.01)))
    steps = result.points / 0.01
    assert (steps - steps.round()).abs().max() < 1e-3


def test_nothing_left_keeps_everything(ball):
    config = only(hole_chance=1.0, holes=(1, 1), hole_radius=(2.0, 2.0))
    result = scan(*ball, 6000, config=config)
    assert all(len(torch.unique(row)) == 6000 for row in result.index)


def test_solid_scans_draw_their_size():
    solid = make_solid(place("box", [0.5, 0.3, 0.2, 0.05], np.zeros(3)))
    config = dataclasses.replace(CLEAN, points=(300, 3000))
    counts = [scan_solid(solid, seed, config).points.shape[1] for seed in range(6)]
    assert all(300 <= count <= 3000 for count in counts) and len(set(counts)) > 3
    result = scan_solid(random_shape(2), 7, count=1234)
    assert result.points.shape == (1, 1234, 3) and torch.isfinite(result.points).all()
    assert torch.equal(result.points, scan_solid(random_shape(2), 7, count=1234).points)


def test_wrong_arguments_are_named(ball):
    points, normals = ball
    with pytest.raises(ValueError, match=r"\(B, S, 3\)"):
        scan(points[0], normals[0], 10)
    with pytest.raises(ValueError, match="count"):
        scan(points, normals, 0)
    for change in ({"noise": (0.2, 0.1)}, {"density": 0.5}, {"cameras": (0, 3)}, {"outliers": (0.0, 1.5)}):
        with pytest.raises(ValueError, match="ScanConfig"):
            ScanConfig(**change)
