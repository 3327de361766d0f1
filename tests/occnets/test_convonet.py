# SPDX-License-Identifier: MIT
"""Behaviour of the ConvONet networks: options, gradients, extensions, error texts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

import occnets
from convonet_cases import small_config
from occnets.models import build_model
from occnets.models.blocks import ResnetBlockFC, cell_position, positional_encoding
from occnets.models.conv3d import Conv3d
from occnets.models.crop import crop_index, crop_inputs, crop_query, local_coordinates, normalize_in_volume, round_up
from occnets.models.decoders import LocalDecoder, LocalPointDecoder
from occnets.models.encoders import LocalPoolPointnet, LocalVoxelEncoder
from occnets.models.maps import layout_of, stack_planes
from occnets.models.norm import GroupNorm
from occnets.models.pointnet2 import PointNetPlusPlus, ball_neighbours, farthest_points
from occnets.models.unet import UNet
from occnets.models.unet3d import SingleConv, UNet3D
from occnets.models.unet3d_light import UNet3DLight, pixel_shuffle_3d

PLANES = {"plane_type": ["xz", "xy", "yz"], "plane_resolution": 16}
GRID = {"plane_type": "grid", "grid_resolution": 8}
BOTH = {"plane_type": ["grid", "yz", "xz"], "plane_resolution": 16, "grid_resolution": 8}
UNET = {"unet": True, "unet_kwargs": {"depth": 2, "start_filts": 8}}
UNET3D = {"unet3d": True, "unet3d_kwargs": {"num_levels": 2, "f_maps": 8}}
LIGHT = {"unet3d": True, "unet3d_kwargs": {"variant": "light", "f_maps": 8, "num_levels": 2, "out_channels": 8}}


def cloud(batch: int = 2, count: int = 100) -> torch.Tensor:
    return torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize(
    "options",
    [{"plane_type": ["yz"], "plane_resolution": 16}, PLANES | UNET, GRID | UNET3D, BOTH | UNET | UNET3D, GRID | LIGHT],
    ids=["plane", "planes", "grid", "both", "light"],
)
@pytest.mark.parametrize("scatter_type", ["max", "mean"])
def test_gradients_reach_every_parameter_and_the_queries(options: dict, scatter_type: str) -> None:
    torch.manual_seed(0)
    model = build_model(small_config(**options, scatter_type=scatter_type))
    for module in model.modules():
        if isinstance(module, ResnetBlockFC):
            torch.nn.init.normal_(module.fc_1.weight, std=0.2)
    query = (cloud(2, 50) * 0.9).requires_grad_()
    logits = model(query, cloud())
    assert logits.shape == (2, 50)
    functional.binary_cross_entropy_with_logits(logits, torch.ones(2, 50)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [PLANES | UNET, GRID | UNET3D, BOTH], ids=["planes", "grid", "both"])
def test_order_of_points_does_not_matter(options: dict) -> None:
    torch.manual_seed(0)
    model = build_model(small_config(**options)).eval()
    points = cloud()
    order = torch.randperm(points.shape[1])
    with torch.no_grad():
        torch.testing.assert_close(model(points, points[:, order]), model(points, points))


def test_samples_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    model = build_model(small_config(**BOTH, **UNET, **UNET3D)).eval()
    points = cloud(3)
    with torch.no_grad():
        together = model(points, points)
        alone = torch.cat([model(p[None], p[None]) for p in points])
    torch.testing.assert_close(together, alone)


def test_points_beyond_the_given_lengths_are_ignored() -> None:
    torch.manual_seed(0)
    encoder = LocalPoolPointnet(c_dim=8, hidden_dim=16, **GRID)
    points = cloud(1, 40)
    padded = torch.cat((points, torch.full((1, 25, 3), 0.3)), dim=1)
    expected = encoder(points)["grid"]
    torch.testing.assert_close(encoder(padded, lengths=torch.tensor([40]))["grid"], expected)


def test_maps_are_named_and_ordered_like_the_family() -> None:
    maps = LocalPoolPointnet(c_dim=8, hidden_dim=16, **BOTH)(cloud())
    assert list(maps) == ["grid", "xz", "yz"]
    assert maps["grid"].shape == (2, 8, 8, 8, 8) and maps["xz"].shape == (2, 8, 16, 16)
    layout = layout_of(maps, 0.1, "corners")
    assert (layout.maps, layout.plane_resolution, layout.grid_resolution) == (("xz", "yz", "grid"), 16, 8)


def test_rows_of_a_plane_are_the_second_coordinate() -> None:
    points = torch.tensor([[[0.5, 0.0, -0.5]]])
    plane = LocalPoolPointnet(c_dim=8, hidden_dim=16, plane_type="xz", plane_resolution=4)(points)["xz"]
    filled = plane[0].abs().sum(dim=0).nonzero()
    assert filled.tolist() == [[0, 3]]  # z lowest: row 0; x highest: column 3


def test_stacked_planes_keep_channels_last_memory() -> None:
    maps = {name: torch.rand(2, 8, 4, 4).contiguous(memory_format=torch.channels_last) for name in ("xz", "xy", "yz")}
    stacked = stack_planes(maps)
    assert stacked.shape == (2, 3, 8, 4, 4) and stacked.movedim(2, -1).is_contiguous()
    assert torch.equal(stacked[:, 1], maps["xy"])


def test_unets_return_channels_last() -> None:
    plane = UNet(8, in_channels=8, depth=2, start_filts=8)(torch.rand(1, 8, 8, 8))
    assert plane.is_contiguous(memory_format=torch.channels_last)
    for unet in (UNet3D(8, 8, f_maps=8, num_levels=2), UNet3DLight(in_channels=8, out_channels=4, f_maps=8)):
        assert unet(torch.rand(1, 8, 8, 8, 8)).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("order", ["gcr", "cr", "cbl", "bce", "crg"])
def test_layer_orders_of_the_3d_unet(order: str) -> None:
    unet = UNet3D(8, 4, f_maps=8, num_levels=2, layer_order=order)
    assert unet(torch.rand(2, 8, 4, 4, 4)).shape == (2, 4, 4, 4, 4)
    convolutions = [m for m in unet.encoders.modules() if isinstance(m, torch.nn.Conv3d)]
    assert all((conv.bias is None) == ("g" in order or "b" in order) for conv in convolutions)


def test_few_channels_are_normalised_in_one_group() -> None:
    assert [SingleConv(channels, 8, "gcr", 8).groupnorm.num_groups for channels in (4, 8, 16)] == [1, 8, 8]


@pytest.mark.parametrize(("deviation", "tolerance"), [(1.0, 2e-6), (0.02, 2e-6), (0.001, 1e-4)])
def test_group_norm_is_accurate_on_nearly_constant_channels_last_input(deviation: float, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 12, 12, 12, generator=generator) * deviation + 0.3
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    norm = GroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight, generator=generator)
    upstream = torch.randn(x.shape, generator=generator)
    actual = norm(x)
    exact_x = x.detach().double().contiguous().requires_grad_()
    weight, bias = norm.weight.detach().double().requires_grad_(), norm.bias.detach().double().requires_grad_()
    exact = functional.group_norm(exact_x, 4, weight, bias)
    assert actual.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(actual.double(), exact, atol=tolerance * exact.abs().max().item(), rtol=0)
    got = torch.autograd.grad(actual, (x, norm.weight, norm.bias), upstream)
    wanted = torch.autograd.grad(exact, (exact_x, weight, bias), upstream.double())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2 * tolerance * b.abs().max().item() + 1e-5, rtol=1e-4)


def test_pixel_shuffle_moves_channels_into_space() -> None:
    x = torch.arange(8 * 3 * 2, dtype=torch.float32).reshape(1, 24, 1, 1, 2)
    y = pixel_shuffle_3d(x, 2)
    assert y.shape == (1, 3, 2, 2, 4)
    for z, row, col, channel in ((0, 0, 0, 0), (1, 0, 3, 2), (0, 1, 2, 1)):
        source = ((z * 2 + row) * 2 + col % 2) * 3 + channel
        assert y[0, channel, z, row, col] == x[0, source, 0, 0, col // 2]


def test_light_unet_refines_the_grid_and_the_decoder_follows() -> None:
    model = build_model(small_config(**GRID, **LIGHT))
    maps = model.encode(cloud())
    assert maps["grid"].shape == (2, 8, 16, 16, 16)
    narrow = copy.deepcopy(LIGHT)
    narrow["unet3d_kwargs"]["out_channels"] = 4
    model = build_model(small_config(**GRID, **narrow))
    assert model.decoder.options.c_dim == 4
    assert model(cloud(), cloud()).shape == (2, 100)


def test_bundled_architecture_is_small_and_cheap() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    assert occnets.model_info("convonet-grid").parameters < 2_500_000
    model = occnets.create_model("convonet-grid").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        grid = model.encode(cloud(1, 200))["grid"]
    assert grid.shape[2:] == (64, 64, 64)
    assert counter.get_total_flops() < 12e9


def test_local_coordinates_make_the_encoder_equivariant_to_shifts_by_cells() -> None:
    torch.manual_seed(0)
    encoder = LocalPoolPointnet(c_dim=8, hidden_dim=16, local_coord=True, padding=0.0, **GRID)
    cell = (1.0 + 1e-3) / 8
    points = cloud(1, 60) * 0.4
    # Away from cell borders, where rounding may move a point to the next cell.
    points = points[(cell_position(points, 8, 0.0).abs() < 0.98).all(dim=-1)][None]
    moved = encoder(points + torch.tensor([cell, 0.0, 0.0]))["grid"]
    torch.testing.assert_close(moved[..., 1:], encoder(points)["grid"][..., :-1], atol=1e-4, rtol=1e-4)


def test_cell_position_spans_the_cell() -> None:
    cell = (1.0 + 0.1 + 1e-3) / 32
    corner = -0.5 * (1.0 + 0.1 + 1e-3) + 3 * cell
    points = torch.tensor([[corner + 0.01 * cell], [corner + 0.5 * cell], [corner + 0.99 * cell]]).repeat(1, 3)
    np.testing.assert_allclose(cell_position(points, 32, 0.1)[:, 0], [-0.98, 0.0, 0.98], atol=1e-4)
    assert cell_position(torch.tensor([[9.0, -9.0, 0.0]]), 32, 0.1).abs().max() <= 1.0


def test_registration_reaches_both_halves_and_changes_the_samples() -> None:
    config = small_config(**GRID)
    torch.manual_seed(0)
    corners = build_model(config)
    config["model"]["registration"] = "cells"
    cells = build_model(config)
    cells.load_state_dict(corners.state_dict())
    assert cells.encoder.layout.registration == cells.decoder.options.registration == "cells"
    assert not torch.allclose(corners(cloud(), cloud()), cells(cloud(), cloud()))


def test_concatenating_decoder() -> None:
    config = small_config(**BOTH)
    config["model"]["decoder_kwargs"]["concat_feat"] = True
    model = build_model(config)
    assert model.decoder.fc_c[0].in_features == 24
    maps = model.encode(cloud())
    query = cloud(2, 30)
    sampled = model.decoder.sample(query, maps)
    single = LocalDecoder(c_dim=8, hidden_size=8)
    for position, name in enumerate(("xz", "yz", "grid")):
        torch.testing.assert_close(
            sampled[..., 8 * position : 8 * position + 8], single.sample(query, {name: maps[name]})
        )
    assert model.decode(query, maps).shape == (2, 30)


@pytest.mark.parametrize("concat", [False, True])
def test_nearest_sampling_returns_map_values(concat: bool) -> None:
    maps = {"xz": torch.rand(1, 8, 4, 4), "grid": torch.rand(1, 8, 4, 4, 4)}
    decoder = LocalDecoder(c_dim=8, hidden_size=8, sample_mode="nearest", padding=0.0, concat_feat=concat, num_maps=2)
    query = torch.tensor([[[-0.5, -0.5, 0.49]]])
    plane, grid = maps["xz"][0, :, 3, 0], maps["grid"][0, :, 3, 0, 0]
    expected = torch.cat((plane, grid)) if concat else plane + grid
    torch.testing.assert_close(decoder.sample(query, maps)[0, 0], expected)


def test_voxel_encoder_puts_a_voxel_where_linspace_does() -> None:
    encoder = LocalVoxelEncoder(c_dim=8, plane_type="grid", grid_resolution=4, kernel_size=1)
    torch.nn.init.ones_(encoder.conv_in.weight)
    torch.nn.init.zeros_(encoder.conv_in.bias)
    voxels = torch.zeros(1, 4, 4, 4)
    voxels[0, 3, 0, 1] = 1.0
    grid = encoder(voxels)["grid"]
    assert grid.shape == (1, 8, 4, 4, 4)
    assert grid[0, 0].nonzero().tolist() == [[1, 0, 3]]  # axes (z, y, x)


def test_positional_encoding_order() -> None:
    first = positional_encoding(torch.tensor([0.1, 0.5, 0.9]))[:12]
    expected = [-0.58779, 0, 0.58779, -0.80902, 1, -0.80902, 0.95106, 0, -0.95106, 0.30902, 1, 0.30902]
    np.testing.assert_allclose(first, expected, atol=1e-5)


def test_crop_coordinates() -> None:
    local = local_coordinates(torch.tensor([0.0123, -0.0012, 0.0]), 0.005)
    np.testing.assert_allclose(local, [0.46, 0.76, 0.0], atol=1e-4)
    assert [round_up(n, 8) for n in (88, 89, 95, 153)] == [88, 96, 96, 160]
    volume = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
    position = normalize_in_volume(torch.tensor([[[0.5, 0.5, 3.0]]]), volume)
    assert position.tolist() == [[[0.5, 0.25, 0.75]]]
    assert crop_index(position, "grid", 4).tolist() == [[2 + 4 * (1 + 4 * 3)]]
    assert crop_index(position, "yz", 4).tolist() == [[1 + 4 * 3]]


def crop_model(**model: object) -> torch.nn.Module:
    config = small_config(unet3d=True, unet3d_kwargs={"num_levels": 2, "f_maps": 8}, plane_type=["grid"])
    config["model"] |= {"encoder": "pointnet_crop_local_pool", "decoder": "simple_local_crop", **model}
    config["data"] |= {"unit_size": 0.02, "query_vol_size": 5, "input_type": "pointcloud_crop"}
    return build_model(config)


@pytest.mark.parametrize("encoding", ["linear", "sin_cos"])
def test_crop_model_does_not_see_where_its_window_lies(encoding: str) -> None:
    torch.manual_seed(0)
    model = crop_model(local_coord=True, pos_encoding=encoding).double().eval()
    size, layout = model.crop.input_size, model.encoder.layout
    assert model.crop.resolution == 20 and size == pytest.approx(0.4)
    points, query = cloud(1, 80).double() * size * 0.9, cloud(1, 20).double() * 0.1
    found = []
    for shift in (0.0, 0.02 * 37):
        volume = torch.full((2, 3), -size / 2, dtype=torch.float64) + shift
        volume[1] += size
        # Half a cell from the lattice, so that rounding does not change cells.
        inputs = crop_inputs(points + shift + 0.0013, volume, layout)
        found.append(model(crop_query(query + shift + 0.0013, volume, layout), inputs))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-6)


def test_points_outside_the_window_leave_no_trace_in_the_maps() -> None:
    torch.manual_seed(0)
    model = crop_model()
    volume = torch.tensor([[-0.2] * 3, [0.2] * 3])
    inside = cloud(1, 50) * 0.35
    both = torch.cat((inside, inside + 1.0), dim=1)
    inputs = crop_inputs(both, volume, model.encoder.layout)
    assert inputs["mask"][0, 50:].all() and (inputs["index"]["grid"][0, 0, 50:] == 20**3).all()
    expected = model.encode(crop_inputs(inside, volume, model.encoder.layout))["grid"]
    torch.testing.assert_close(model.encode(inputs)["grid"], expected)


def test_whole_scene_window_of_crop_models() -> None:
    with torch.device("meta"):
        model = occnets.create_model("convonet-room-crop-grid64", whole_scene=True)
        window = occnets.create_model("convonet-room-crop-grid64").crop
    assert model.crop.resolution == 288 and model.crop.input_size == pytest.approx(1.44)
    assert model.crop.query_size == pytest.approx(1.1)
    assert window.resolution == 88 and window.query_size == pytest.approx(0.125)


def test_farthest_points_are_greedy() -> None:
    points = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [0.4, 0, 0], [0.9, 0, 0]]])
    assert farthest_points(points, 4, torch.tensor([0])).tolist() == [[0, 1, 2, 3]]
    assert farthest_points(points, 2, torch.tensor([2])).tolist() == [[2, 1]]


def test_ball_neighbours_come_in_order_and_are_padded_with_the_first() -> None:
    points = torch.tensor([[[5.0, 0, 0], [0.1, 0, 0], [0.0, 0, 0], [0.2, 0, 0]]])
    centre = torch.tensor([[[0.0, 0, 0]]])
    assert ball_neighbours(points, centre, 0.15, 3).tolist() == [[[1, 2, 1]]]
    assert ball_neighbours(points, centre, 1.0, 2).tolist() == [[[1, 2]]]


def test_pointnet2_is_deterministic_unless_asked_otherwise() -> None:
    torch.manual_seed(0)
    encoder = PointNetPlusPlus(c_dim=8).eval()
    points = cloud(1, 600)
    with torch.no_grad():
        assert torch.equal(encoder(points)["features"], encoder(points)["features"])
        varying = PointNetPlusPlus(c_dim=8, random_start=True).eval()
        varying.load_state_dict(encoder.state_dict())
        assert not torch.equal(varying(points)["features"], varying(points)["features"])


def test_point_decoder_chunks_do_not_change_the_result() -> None:
    torch.manual_seed(0)
    whole = LocalPointDecoder(c_dim=8, hidden_size=16, gaussian_val=0.2)
    chunked = LocalPointDecoder(c_dim=8, hidden_size=16, gaussian_val=0.2, chunk=7)
    chunked.load_state_dict(whole.state_dict())
    points = {"points": cloud(), "features": torch.rand(2, 100, 8)}
    torch.testing.assert_close(chunked(cloud(2, 30), points), whole(cloud(2, 30), points))


BAD = {
    "encoder name": ({"encoder": "pointnet_local_pol"}, "did you mean 'pointnet_local_pool'"),
    "decoder name": ({"decoder": "simple_locall"}, "did you mean 'simple_local'"),
    "encoder option": ({"encoder_kwargs": {**GRID, "hiden_dim": 3}}, "did you mean 'hidden_dim'"),
    "decoder option": ({"decoder_kwargs": {"sample_mod": "nearest"}}, "did you mean 'sample_mode'"),
    "unet option": ({"encoder_kwargs": {**PLANES, "unet": True, "unet_kwargs": {"dept": 4}}}, "did you mean 'depth'"),
    "unet3d option": ({"encoder_kwargs": {**GRID, "unet3d": True, "unet3d_kwargs": {"fmaps": 4}}}, "'f_maps'"),
    "variant": ({"encoder_kwargs": {**GRID, "unet3d": True, "unet3d_kwargs": {"variant": "lite"}}}, "'light'"),
    "resolution": ({"encoder_kwargs": {"plane_type": ["xz"]}}, "plane_resolution must be a positive integer"),
    "plane": ({"encoder_kwargs": {"plane_type": ["zx"], "plane_resolution": 8}}, "names out of xz, xy, yz, grid"),
    "scatter": ({"encoder_kwargs": {**GRID, "scatter_type": "sum"}}, "scatter_type must be 'max' or 'mean'"),
    "local planes": ({"encoder_kwargs": {**PLANES, "local_coord": True}}, "local_coord needs plane_type 'grid'"),
    "sample mode": ({"decoder_kwargs": {"sample_mode": "cubic"}}, "sample_mode must be one of bilinear, nearest"),
    "unused": ({"pos_encoding": "sin_cos"}, "model.pos_encoding: neither LocalPoolOptions nor DecoderOptions"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_configurations_say_what_to_write(case: str) -> None:
    changes, message = BAD[case]
    config = small_config(**GRID)
    config["model"] |= changes
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_unet_errors() -> None:
    with pytest.raises(ValueError, match="upsample.*cannot be combined"):
        UNet(4, up_mode="upsample", merge_mode="add")
    with pytest.raises(ValueError, match="divisible by 4"):
        UNet(4, in_channels=4, depth=3, start_filts=4)(torch.rand(1, 4, 6, 6))
    with pytest.raises(ValueError, match="layer_order"):
        UNet3D(8, 8, f_maps=8, layer_order="gr")
    with pytest.raises(ValueError, match="divisible by 4"):
        UNet3DLight(in_channels=8, f_maps=8)(torch.rand(1, 8, 6, 6, 6))
    with pytest.raises(ValueError, match="must divide the width 12"):
        UNet3DLight(in_channels=8, f_maps=12)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="not both"):
        LocalVoxelEncoder(plane_type=["xz", "grid"], grid_resolution=8)
    with pytest.raises(ValueError, match="gaussian_val"):
        LocalPointDecoder()
    with pytest.raises(ValueError, match=r"lacks \['grid'\]"):
        crop_model().encode({"points": cloud(), "index": {}})
    with pytest.raises(ValueError, match="method.*conv_onet"):
        build_model({"method": "conv_net"})
    config = small_config(plane_type=["grid"], unet3d=True)
    config["model"] |= {"encoder": "pointnet_crop_local_pool", "decoder": "simple_local_crop"}
    with pytest.raises(ValueError, match="unit_size"):
        build_model(config)


def test_voxel_files_that_call_themselves_onet_are_recognised() -> None:
    config = occnets.model_info("convonet-voxel-3plane").config | {"method": "onet"}
    with torch.device("meta"):
        assert type(build_model(config)).__name__ == "ConvolutionalOccupancyNetwork"


@pytest.mark.parametrize(("channels", "side", "bias"), [(16, 32, True), (8, 4, False)])
def test_gradients_of_a_single_sample_are_those_of_torch(channels: int, side: int, bias: bool) -> None:
    conv = Conv3d(channels, 8, 3, padding=1, bias=bias)
    layout = torch.channels_last_3d
    x = torch.randn(1, channels, side, side, side).contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn(1, 8, side, side, side)
    values = [x, *conv.parameters()]
    found = torch.autograd.grad((conv(x) * weights).sum(), values)
    expected = torch.nn.functional.conv3d(x, conv.weight, conv.bias, padding=1)
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), values), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
