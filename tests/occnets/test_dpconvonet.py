# SPDX-License-Identifier: MIT
"""Dynamic planes: change of basis, similarity loss, behaviour of the networks on them, error texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convonet_cases import fill_hashed, hashed
from dpconvonet_cases import written_out_frame, written_out_position
from occkernels import FeatureLayout, bin_points
from occnets.config import load_config
from occnets.models import build_model
from occnets.models.dynamic import PlanePredictor, basis_and_scale, change_of_basis, similarity_loss
from occnets.models.registry import method_of
from occnets.reconstruct import Reconstructor

NORMALS = ((0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1), (0, 0, -1), (0.3, -0.2, 0.5))
# Recorded with the original code for NORMALS: three rows of the inverse and the normaliser.
FRAMES = (
    ((1, 0, -1e-6), (0, 1, -1e-6), (1e-6, 1e-6, 0.999999), 1.000001),
    ((0, 0, -1), (0, 1, 0), (1, 0, 0), 1.000002),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0), 1.000002),
    ((0.788675, -0.211325, -0.577349), (-0.211325, 0.788675, -0.577349), (0.577349,) * 3, 1.57735),
    ((0, -1, 0), (-1, 0, 0), (0, 0, -1), 1.000001),
    ((0.869227, 0.087181, -0.486664), (0.087181, 0.941879, 0.324441), (0.486664, -0.324441, 0.811106), 1.443073),
)


def small_config(kind: str = "dynamic", **encoder: Any) -> dict[str, Any]:
    decoder = {"pos_encoding": encoder.get("pos_encoding", False)}
    return {
        "method": "dynamic_planes_conv_onet",
        "data": {"dim": 3, "padding": 0.1},
        "model": {
            "encoder": f"{kind}_pointnet_local_pool",
            "encoder_kwargs": {"hidden_dim": 16, "plane_resolution": 16, "n_channels": 4, **encoder},
            "decoder": f"{kind}_simple_local",
            "decoder_kwargs": {"hidden_size": 16, **decoder},
            "c_dim": 8,
        },
    }


def small_model(kind: str = "dynamic", **encoder: Any) -> torch.nn.Module:
    return fill_hashed(build_model(small_config(kind, **encoder)))


def about_z(angle: float) -> torch.Tensor:
    c, s = np.cos(angle), np.sin(angle)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float32)


def test_change_of_basis_gives_the_recorded_frames() -> None:
    _, c_mat = change_of_basis(torch.tensor(NORMALS, dtype=torch.float32)[None])
    for actual, (*rows, normaliser) in zip(c_mat[0], FRAMES, strict=True):
        np.testing.assert_allclose(actual[:3], rows, atol=2e-6)
        np.testing.assert_allclose(actual[3], [normaliser] * 3, atol=2e-6)


def test_change_of_basis_follows_the_published_steps() -> None:
    normals = hashed("normals", (200, 3), -2.0, 2.0)
    unit, c_mat = change_of_basis(normals)
    exact = change_of_basis(normals.double())[1]
    for index, normal in enumerate(normals.numpy()):
        inverse, normaliser = written_out_frame(normal)
        np.testing.assert_allclose(exact[index, :3], inverse, atol=1e-12)
        np.testing.assert_allclose(exact[index, 3], [normaliser] * 3, atol=1e-12)
        np.testing.assert_allclose(c_mat[index], exact[index], atol=1e-6)
    np.testing.assert_allclose(unit.norm(dim=-1), np.ones(200), atol=1e-6)
    # A rotation, up to the shift of the normal: orthonormal, and it takes the normal to the z axis.
    rotation = exact[:, :3]
    assert (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-5
    turned = (rotation @ unit.double()[..., None])[..., 0] - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert turned.abs().max() < 1e-5


def test_points_land_in_the_recorded_places() -> None:
    points = torch.tensor([(0.1, 0.2, -0.3), (0.55, 0.55, 0.55), (-0.5, 0.4, 0.0)])
    expected = {
        (0, 0, 1): ((0.58658, 0.67316), (0.976189, 0.976189), (0.0671, 0.84632)),
        (1, 0, 0): ((0.759739, 0.67316), (0.023811, 0.976189), (0.499999, 0.84632)),
        (1, 1, 1): ((0.617205, 0.673068), (0.5, 0.5), (0.232489, 0.735258)),
        (0.3, -0.2, 0.5): ((0.652436, 0.560742), (0.657308, 0.95326), (0.256609, 0.702852)),
    }
    for normal, places in expected.items():
        inverse, normaliser = written_out_frame(np.array(normal))
        written = [written_out_position(point, inverse, normaliser, 0.1) for point in points.double().numpy()]
        np.testing.assert_allclose(written, places, atol=2e-6)


def test_cells_are_those_of_the_points_one_at_a_time() -> None:
    normals, points = hashed("normals", (2, 3, 3), -1.0, 1.0), hashed("cloud", (2, 50, 3), -0.7, 0.7)
    layout = FeatureLayout(dynamic_planes=3, plane_resolution=64)
    bases, scale = basis_and_scale(change_of_basis(normals)[1])
    bins = bin_points(points, layout, bases=bases, basis_scale=scale)
    checked = 0
    for sample, plane, number in np.ndindex(2, 3, 50):
        frame = written_out_frame(normals[sample, plane].numpy())
        column, row = written_out_position(points[sample, number].double().numpy(), *frame, 0.1) * 64
        if min(column % 1, 1 - column % 1, row % 1, 1 - row % 1) > 1e-4:  # float32 may round over a cell's border
            assert bins.index[sample, plane, number].item() == int(column) + 64 * int(row)
            checked += 1
    assert checked > 280


@pytest.mark.parametrize("angle", [0.3, 1.7, 3.0])
def test_frames_turn_with_the_cloud_about_the_z_axis(angle: float) -> None:
    """The shortest rotation from z to n commutes with rotations about z, and with no others."""
    normals, points, turn = hashed("normals", (20, 3), -1, 1), hashed("cloud", (50, 3), -0.5, 0.5), about_z(angle)
    before, after = change_of_basis(normals)[1], change_of_basis(normals @ turn.T)[1]
    projected = points @ before[:, :3].mT
    torch.testing.assert_close((points @ turn.T) @ after[:, :3].mT, projected @ turn.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_turning_points_and_frames_together_changes_no_cell(seed: int) -> None:
    """Features in a plane do not depend on the orientation when the plane follows it."""
    generator = np.random.default_rng(seed)
    turn = torch.from_numpy(np.linalg.qr(generator.normal(size=(3, 3)))[0])
    points = torch.from_numpy(generator.uniform(-0.5, 0.5, (1, 500, 3)))
    bases, scale = basis_and_scale(change_of_basis(torch.from_numpy(generator.normal(size=(1, 5, 3))))[1])
    layout = FeatureLayout(dynamic_planes=5, plane_resolution=64)
    plain = bin_points(points, layout, bases=bases, basis_scale=scale)
    turned = bin_points(points @ turn.T, layout, bases=bases @ turn.T, basis_scale=scale)
    assert torch.equal(plain.index, turned.index)


def test_every_point_of_the_cube_has_a_place_of_its_own_in_every_plane() -> None:
    corners = torch.tensor(np.array(list(np.ndindex(2, 2, 2))), dtype=torch.float64) * 1.1 - 0.55
    for normal in hashed("normals", (50, 3), -1.0, 1.0).double().numpy():
        inverse, normaliser = written_out_frame(normal)
        places = np.array([written_out_position(corner, inverse, normaliser, 0.1) for corner in corners.numpy()])
        assert 0.0 < places.min() < places.max() < 1.0


def test_similarity_loss_gives_the_recorded_values() -> None:
    skew = (3**-0.5,) * 3
    first = torch.tensor([[(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), skew]])
    assert similarity_loss(first).item() == pytest.approx(0.00823046, rel=1e-5)
    both = torch.tensor([[(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]])
    assert similarity_loss(both).item() == pytest.approx(1.0)
    assert similarity_loss(torch.cat((first, both))).item() == pytest.approx((0.00823046 + 1.0) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "hybrid"])
def test_both_losses_reach_the_plane_predictor(kind: str) -> None:
    model = small_model(kind)
    predictor = [*model.encoder.fc_plane_net.parameters(), *model.encoder.plane_params.parameters()]
    features = model.encode(hashed("cloud", (2, 100, 3), -0.5, 0.5))
    logits = model.decode(hashed("query", (2, 7, 3), -0.5, 0.5), features)
    for loss in (logits.square().mean(), model.auxiliary_losses(features)["similarity"]):
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in predictor)
        assert sum(int(parameter.grad.count_nonzero()) for parameter in predictor) > 100


@pytest.mark.parametrize(("kind", "planes"), [("dynamic", 1), ("dynamic", 9), ("hybrid", 4), ("hybrid", 9)])
def test_number_of_planes(kind: str, planes: int) -> None:
    model = small_model(kind, n_channels=planes, unet=True, unet_kwargs={"depth": 2, "start_filts": 8})
    features = model.encode(hashed("cloud", (2, 100, 3), -0.5, 0.5))
    dynamic = planes - (3 if kind == "hybrid" else 0)
    assert features["planes"].shape == (2, planes, 8, 16, 16) and features["normals"].shape == (2, planes, 3)
    assert features["c_mat"].shape == (2, dynamic, 4, 3)
    assert model.decode(hashed("query", (2, 7, 3), -0.5, 0.5), features).shape == (2, 7)


@pytest.mark.parametrize("options", [{}, {"pos_encoding": True}])
@pytest.mark.parametrize("kind", ["dynamic", "hybrid"])
def test_padding_order_and_neighbours_in_the_batch_change_nothing(kind: str, options: dict) -> None:
    model = small_model(kind, **options)
    clouds, query = hashed("cloud", (2, 100, 3), -0.5, 0.5), hashed("query", (2, 7, 3), -0.5, 0.5)
    lengths = torch.tensor([100, 60])
    filler = torch.full((40, 3), torch.nan)
    padded = torch.stack((clouds[0].flip(0), torch.cat((clouds[1, :60], filler))))
    features = model.encoder(padded, lengths)
    assert features["planes"].isfinite().all()
    both = model.decode(query, features)
    for sample, cloud in enumerate((clouds[:1], clouds[1:, :60])):
        alone = model(query[sample : sample + 1], cloud)
        torch.testing.assert_close(both[sample : sample + 1], alone, atol=1e-4, rtol=1e-4)


def test_offset_goes_to_filled_cells_only() -> None:
    encoder = small_model().encoder
    points = hashed("cloud", (1, 30, 3), -0.5, 0.5)
    raw = encoder.raw_normals(points, None)
    bases, scale = basis_and_scale(change_of_basis(raw)[1])
    bins = bin_points(points, encoder.layout, bases=bases, basis_scale=scale)
    planes = encoder.scatter(torch.zeros(1, 30, 8), bins, raw)
    for plane, layer in enumerate(encoder.plane_params_hdim):
        filled = torch.zeros(256, dtype=torch.bool)
        filled[bins.index[0, plane].long()] = True
        flat = planes[0, plane].flatten(1)
        torch.testing.assert_close(flat[:, filled], layer(raw[0, plane])[:, None].expand(-1, int(filled.sum())))
        assert not flat[:, ~filled].any()


def test_double_precision_and_autocast() -> None:
    model = small_model()
    cloud, query = hashed("cloud", (1, 200, 3), -0.5, 0.5), hashed("query", (1, 50, 3), -0.5, 0.5)
    with torch.no_grad():
        frames = model.encode(cloud)["c_mat"]
        single = model(query, cloud)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.encode(cloud)
            rough = model.decode(query, features)
        double = model.double()(query.double(), cloud.double())
    assert double.dtype == torch.float64 and torch.equal(features["c_mat"], frames)
    torch.testing.assert_close(single, double.float(), atol=1e-4, rtol=1e-4)
    assert rough.dtype == torch.float32  # the points' features are rough; scattering and the fused decoder are not
    assert (rough - single).abs().mean() < 0.05 * single.std()


def test_reconstructor_drives_a_network_on_dynamic_planes() -> None:
    model = small_model()
    points = np.random.default_rng(0).normal(size=(400, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    with torch.no_grad():
        unit = torch.from_numpy(points[None] / 2).float()
        middle = model(hashed("query", (1, 500, 3), -0.5, 0.5), unit).median()
        model.decoder.fc_out.bias -= middle
    result = Reconstructor(model, small_config(), device="cpu").reconstruct(points, resolution=16, fit=False)
    assert result.mesh.is_watertight and len(result.mesh.faces) > 100


def test_predictor_reads_existing_points_only() -> None:
    predictor = fill_hashed(PlanePredictor(3, 16))
    cloud = hashed("cloud", (2, 20, 3), -0.5, 0.5)
    expected = torch.cat((predictor(cloud[:1, :5]), predictor(cloud[1:])))
    torch.testing.assert_close(predictor(cloud, torch.tensor([5, 20])), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_kwargs": {"n_channels": 0}}, "n_channels counts all planes and must be at least 1, got 0"),
        ({"encoder_kwargs": {"n_chanels": 3}}, "did you mean 'n_channels'"),
        ({"encoder_kwargs": {"plane_net": "other"}}, "plane_net must be 'FCPlanenet', got 'other'"),
        ({"decoder_kwargs": {"sample_mode": "nearest"}}, "sample_mode must be one of bilinear, got 'nearest'"),
        ({"decoder": "hybrid_simple_local"}, "needs the decoder 'dynamic_simple_local', got 'hybrid_simple_local'"),
        ({"encoder": "dynamic_pointnet_pool"}, "did you mean 'dynamic_pointnet_local_pool'"),
        ({"z_dim": 128}, "z_dim: these networks have no latent code; it must be 0, got 128"),
        ({"registration": "centres"}, "`registration` must be 'corners' or 'cells', got 'centres'"),
    ],
)
def test_errors_name_what_is_wrong(change: dict, message: str) -> None:
    config = small_config()
    config["model"] |= change
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_files_of_transonet_are_told_from_those_of_dpconvonet() -> None:
    config = small_config(unet=False)
    assert method_of(config) == "dynamic_planes_conv_onet"
    config["model"] |= {"c_dim": 32}
    config["model"]["encoder_kwargs"] |= {"plane_resolution": 32}
    assert method_of(config) == "transonet"
    config["model"]["encoder_kwargs"] |= {"unet": True}
    assert method_of(config) == "dynamic_planes_conv_onet"


def test_canonical_encoder_has_planes_only() -> None:
    config = load_config("dpconvonet-shapenet-canonical-3plane-pe")
    config["model"]["encoder_kwargs"]["plane_type"] = ["xz", "grid"]
    with pytest.raises(ValueError, match="plane_type holds planes only"):
        build_model(config)


def test_hybrid_needs_a_plane_of_its_own() -> None:
    with pytest.raises(ValueError, match="must be at least 4, got 3"):
        build_model(small_config("hybrid", n_channels=3))
