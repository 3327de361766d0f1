# SPDX-License-Identifier: MIT
"""Behaviour of the Occupancy Network parts: folding, latent codes, image variants, refusals."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import occnets
from occnets.about import print_models
from occnets.config import load_config
from occnets.memory import query_bytes
from occnets.models import build_model
from occnets.models.conv_encoders import Pix2MeshEncoder, PSGNEncoder, R2N2Encoder, R2N2ResidualEncoder
from occnets.models.image_encoders import ImageEncoder, ImagePyramidEncoder, PosedImageEncoder
from occnets.models.latent import LatentEncoder, interpolate_latents, kl_to_prior, sample_normal
from occnets.models.onet import DECODERS, OccupancyNetwork
from occnets.models.onet_encoders import IndexEncoder, ResnetPointNet, SimplePointNet, VoxelEncoder
from occnets.models.pose import rotation_from_6d, rotation_to_6d
from occnets.models.resnet import ResNet


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def shuffle(module: nn.Module) -> nn.Module:
    """Random parameters and statistics, so that nothing is zero or one by construction."""
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_().mul_(0.2)
            if key.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return module


def config(**model: Any) -> dict[str, Any]:
    return {"method": "onet", "data": {"dim": 3}, "model": {"c_dim": 16, **model}}


def rotations(count: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    return q * q.det()[:, None, None].sign()


# -- decoders


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("z_dim", [0, 4])
@pytest.mark.parametrize("name", DECODERS)
def test_folded_norms_give_the_evaluation_mode_network(name: str, z_dim: int, leaky: bool) -> None:
    options, maker = DECODERS[name]
    fields = {"c_dim": 6, "z_dim": z_dim, "hidden_size": 16, **({} if name == "cbatchnorm2" else {"leaky": leaky})}
    decoder = shuffle(maker(options(**fields))).double().eval()
    features = {"c": torch.randn(3, 6, dtype=torch.float64), "z": torch.randn(3, z_dim, dtype=torch.float64)}
    query = torch.rand(3, 11, 3, dtype=torch.float64) - 0.5
    scales, shifts = decoder.folded(features)
    assert scales.shape == shifts.shape == (3, len(decoder.norms()), 16)
    assert len(decoder.norms()) == len(decoder.layers()) + 1
    folded = decoder.forward_folded(query, scales, shifts, decoder.offset(features))
    torch.testing.assert_close(folded, decoder(query, features), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "cbatchnorm2"])
def test_stacked_weights_and_folded_norms_are_the_whole_network(name: str, leaky: bool) -> None:
    options, maker = DECODERS[name]
    decoder = shuffle(maker(options(c_dim=6, z_dim=4, hidden_size=16, leaky=leaky))).double().eval()
    features = {"c": torch.randn(2, 6, dtype=torch.float64), "z": torch.randn(2, 4, dtype=torch.float64)}
    query = torch.rand(2, 11, 3, dtype=torch.float64) - 0.5
    parts, (scales, shifts) = decoder.stacked(), decoder.folded(features)
    last, others = (0.2 if parts["leaky"] else 0.0), (0.2 if parts["leaky"] and not parts["residual"] else 0.0)
    net = entered = query @ parts["fc_p"][0].T + parts["fc_p"][1] + decoder.offset(features)[:, None]
    for index, (weight, bias) in enumerate(zip(*parts["layers"], strict=True)):
        moved = scales[:, None, index] * net + shifts[:, None, index]
        net = nn.functional.leaky_relu(moved, others) @ weight.T + bias
        if parts["residual"] and index % 2:
            net = entered = entered + net
    moved = nn.functional.leaky_relu(scales[:, None, -1] * net + shifts[:, None, -1], last)
    torch.testing.assert_close(moved @ parts["fc_out"][0] + parts["fc_out"][1], decoder(query, features))


@pytest.mark.parametrize("name", DECODERS)
def test_shapes_of_a_batch_do_not_touch_each_other(name: str) -> None:
    options, maker = DECODERS[name]
    decoder = shuffle(maker(options(c_dim=6, z_dim=4, hidden_size=16))).eval()
    features = {"c": torch.randn(3, 6), "z": torch.randn(3, 4)}
    query = torch.rand(3, 11, 3) - 0.5
    both = decoder(query, features)
    assert both.shape == (3, 11) and not torch.allclose(both[0], both[1])
    alone = decoder(query[1:2, 3:5], {key: value[1:2] for key, value in features.items()})
    torch.testing.assert_close(alone, both[1:2, 3:5])
    assert decoder(query[:, :0], features).shape == (3, 0)


def test_legacy_names_change_nothing_but_the_names() -> None:
    options, maker = DECODERS["cbatchnorm"]
    new, old = (maker(options(c_dim=6, z_dim=0, hidden_size=8, legacy=legacy)) for legacy in (False, True))
    state = shuffle(new).eval().state_dict()
    old.load_state_dict(
        {
            key.replace("conv_gamma", "fc_gamma").replace("conv_beta", "fc_beta"): value.squeeze(-1)
            if "conv_" in key
            else value
            for key, value in state.items()
        },
        strict=True,
    )
    query, features = torch.rand(2, 7, 3), {"c": torch.randn(2, 6)}
    assert torch.equal(old.eval()(query, features), new(query, features))


def test_the_memory_of_a_query_counts_its_convolutions() -> None:
    with torch.device("meta"):
        narrow, wide = (
            build_model(config(encoder="pointnet_simple", decoder="cbatchnorm", decoder_kwargs={"hidden_size": size}))
            for size in (64, 256)
        )
    assert query_bytes(wide) == 4 * query_bytes(narrow) >= 4 * 256


def test_new_conditional_decoder_ignores_its_condition() -> None:
    options, maker = DECODERS["cbatchnorm"]
    decoder = maker(options(c_dim=6, z_dim=0, hidden_size=8))
    query = torch.rand(1, 7, 3).expand(2, -1, -1)
    logits = decoder(query, {"c": torch.randn(2, 6)})
    torch.testing.assert_close(logits[0], logits[1])


# -- encoders


@pytest.mark.parametrize("encoder", [SimplePointNet, ResnetPointNet])
def test_point_encoders_see_a_set(encoder: type[nn.Module]) -> None:
    net = shuffle(encoder(c_dim=8, hidden_dim=16))
    points = torch.rand(2, 50, 3) - 0.5
    code = net(points)
    assert code.shape == (2, 8) and not torch.allclose(code[0], code[1])
    again = torch.cat((points.flip(1), points[:, :7]), dim=1)
    torch.testing.assert_close(net(again), code)


def test_voxel_encoder_with_coordinates_knows_where() -> None:
    voxels = torch.zeros(2, 32, 32, 32)
    voxels[0, 2:6, 2:6, 2:6] = 1
    voxels[1, 18:22, 18:22, 18:22] = 1
    plain, aware = build_model(config(encoder="voxel_simple", decoder="simple")), None
    aware = build_model(config(encoder="voxel_coord", decoder="simple"))
    assert plain.encoder.conv_in.in_channels == 1 and aware.encoder.conv_in.in_channels == 4
    assert plain.encode(voxels)["c"].shape == aware.encode(voxels)["c"].shape == (2, 16)
    with pytest.raises(ValueError, match=r"must be \(B, 32, 32, 32\), got \(2, 16, 16, 16\)"):
        VoxelEncoder()(voxels[:, :16, :16, :16])


def test_index_encoder_is_an_embedding_under_the_name_encoder_weight() -> None:
    model = build_model(config(encoder="idx", encoder_kwargs={"num_shapes": 5}, decoder="cbatchnorm"))
    assert model.state_dict()["encoder.weight"].shape == (5, 16)
    assert torch.equal(model.encode(torch.tensor([3, 1]))["c"], model.encoder.weight[[3, 1]])
    with pytest.raises(ValueError, match="num_shapes"):
        IndexEncoder(c_dim=4)


def test_feature_maps_of_the_compared_methods() -> None:
    images = torch.rand(1, 3, 224, 224)
    last, lateral = PSGNEncoder(c_dim=32).feature_maps(images)
    assert last.shape == (1, 32, 4, 4)
    assert [tuple(m.shape) for m in lateral] == [(1, 4, 28, 28), (1, 8, 14, 14), (1, 16, 7, 7)]
    encoder = Pix2MeshEncoder()
    maps = encoder.feature_maps(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    torch.testing.assert_close(encoder(images), maps[-1].mean(dim=(2, 3)))


@pytest.mark.parametrize("encoder", [R2N2Encoder, R2N2ResidualEncoder])
def test_r2n2_encoders_take_their_own_image_size(encoder: type[nn.Module]) -> None:
    net = encoder(c_dim=8)
    assert net(torch.rand(1, 3, 127, 127)).shape == (1, 8)
    with pytest.raises(ValueError, match="set data.img_size: 127"):
        net(torch.rand(1, 3, 224, 224))


# -- images


def test_resnets_reduce_by_32_and_load_torchvision_files() -> None:
    net = ResNet("resnet18", pool=False).eval()
    images = torch.rand(1, 3, 96, 64)
    assert net(images).shape == (1, 512, 3, 2)
    pooled = ResNet("resnet18").eval()
    pooled.load_torchvision({**net.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)})
    torch.testing.assert_close(pooled(images), net(images).mean(dim=(2, 3)))
    with pytest.raises(RuntimeError, match="Missing key"):
        ResNet("resnet34").load_torchvision(net.state_dict())
    with pytest.raises(ValueError, match="resnet18, resnet34"):
        ResNet("resnet19")
    with torch.device("meta"):
        assert ResNet("resnet50").channels == 2048


def test_image_encoder_normalises_by_itself() -> None:
    encoder = ImageEncoder("resnet18", c_dim=512, use_linear=False).eval()
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    torch.testing.assert_close(encoder(grey), encoder.features(torch.zeros(1, 3, 64, 64)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="set c_dim: 512 or use_linear: true"):
        ImageEncoder("resnet18", c_dim=256, use_linear=False)
    with pytest.raises(ValueError, match="load torchvision's file"):
        ImageEncoder("resnet18", pretrained=True)
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        ImagePyramidEncoder(backbone="resnet-50")


def test_every_scale_of_the_pyramid_counts() -> None:
    encoder = ImagePyramidEncoder(c_dim=8, backbone="resnet18", n_scales=3).eval()
    images = torch.rand(1, 3, 128, 160)
    code = encoder(images)
    assert code.shape == (1, 8)
    code.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    with torch.no_grad():
        for index in range(3):
            weight = encoder.lateral[index].weight
            kept = weight.clone()
            weight.zero_()
            assert not torch.allclose(encoder(images), code, atol=1e-4), index
            weight.copy_(kept)
    with pytest.raises(ValueError, match="needs 32 pixels a side, got 16"):
        encoder(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="n_scales"):
        ImagePyramidEncoder(backbone="resnet18", n_scales=0)


def test_six_numbers_describe_a_rotation() -> None:
    matrices = rotations(20)
    codes = rotation_to_6d(matrices)
    assert codes.shape == (20, 6) and torch.equal(codes[:, :3], matrices[:, :, 0])
    torch.testing.assert_close(rotation_from_6d(codes), matrices)
    made = rotation_from_6d(torch.randn(20, 6, dtype=torch.float64))
    torch.testing.assert_close(made @ made.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(made.det(), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("rotation", ["matrix", "6d"])
def test_the_pose_is_concatenated_to_the_image(rotation: str) -> None:
    encoder = PosedImageEncoder(c_dim=8, encoder="simple_conv", rotation=rotation, pose_dim=5)
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, :3, :3] = rotations(1)[0].float()
    images = torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1)
    code = encoder({"image": images, "pose": pose})
    assert encoder.c_dim == 13 and code.shape == (2, 13)
    torch.testing.assert_close(code[0, :8], code[1, :8])
    assert not torch.allclose(code[0, 8:], code[1, 8:])
    assert torch.equal(encoder({"image": images, "pose": pose[:, :3]}), code)
    with pytest.raises(ValueError, match=r"'image' and 'pose', got \['image'\]"):
        encoder({"image": images})
    with pytest.raises(ValueError, match=r"got \(2, 3, 3\)"):
        encoder({"image": images, "pose": pose[:, :3, :3]})


def test_the_decoder_takes_the_pose_channels() -> None:
    model = build_model(config(encoder="image_pose", encoder_kwargs={"encoder": "simple_conv"}, decoder="cbatchnorm"))
    assert model.decoder.options.c_dim == 16 + 32
    inputs = {"image": torch.rand(2, 3, 64, 64), "pose": torch.eye(4).repeat(2, 1, 1)}
    assert model(torch.rand(2, 9, 3), inputs).shape == (2, 9)
    with pytest.raises(ValueError, match="rotation"):
        PosedImageEncoder(encoder="simple_conv", rotation="euler")


# -- latent codes


def test_divergence_is_that_of_the_distributions() -> None:
    mean, logstd = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, logstd.exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl_to_prior(mean, logstd), torch.distributions.kl_divergence(posterior, prior).sum(1))
    assert torch.equal(kl_to_prior(mean[:, :0], logstd[:, :0]), torch.zeros(3, dtype=torch.float64))


def test_draws_have_the_posterior_s_moments_and_gradients() -> None:
    mean, logstd = torch.full((4000, 2), 3.0), torch.full((4000, 2), math.log(0.5), requires_grad=True)
    draws = sample_normal(mean, logstd, torch.Generator().manual_seed(1))
    assert abs(draws.mean().item() - 3.0) < 0.03 and abs(draws.std().item() - 0.5) < 0.02
    draws.square().sum().backward()
    assert logstd.grad is not None and logstd.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["spherical", "linear"])
def test_interpolation_begins_and_ends_at_the_codes(mode: str) -> None:
    start, end = torch.randn(64, dtype=torch.float64), 2 * torch.randn(64, dtype=torch.float64)
    way = interpolate_latents(start, end, 9, mode)
    torch.testing.assert_close(way[[0, -1]], torch.stack((start, end)))
    if mode == "spherical":
        expected = torch.linspace(start.norm().item(), end.norm().item(), 9, dtype=torch.float64)
        torch.testing.assert_close(way.norm(dim=1), expected)
        # Equal angles: every step turns as far as the others.
        unit = way / way.norm(dim=1, keepdim=True)
        torch.testing.assert_close((unit[1:] * unit[:-1]).sum(1), (unit[0] @ unit[1]).expand(8))


@pytest.mark.parametrize("end", [torch.zeros(4), torch.ones(4), -torch.ones(4)])
def test_interpolation_without_an_angle_is_straight(end: Tensor) -> None:
    way = interpolate_latents(torch.ones(4), end, 3)
    torch.testing.assert_close(way[1], (torch.ones(4) + end) / 2)


def test_interpolation_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="must be"):
        interpolate_latents(torch.ones(4), torch.ones(5), 3)
    with pytest.raises(ValueError, match="'linear'"):
        interpolate_latents(torch.ones(4), torch.ones(4), 3, "cubic")
    with pytest.raises(ValueError, match="at least 2"):
        interpolate_latents(torch.ones(4), torch.ones(4), 1)


@pytest.mark.parametrize("leaky", [False, True])
def test_posterior_does_not_depend_on_the_order_of_the_queries(leaky: bool) -> None:
    encoder = shuffle(LatentEncoder(z_dim=7, c_dim=5, leaky=leaky))
    query, occupancy, c = torch.rand(2, 20, 3), torch.randint(0, 2, (2, 20)).float(), torch.randn(2, 5)
    mean, logstd = encoder(query, occupancy, c)
    assert mean.shape == logstd.shape == (2, 7)
    again = encoder(query.flip(1), occupancy.flip(1), c)
    torch.testing.assert_close(again, (mean, logstd))
    assert not torch.allclose(encoder(query, 1 - occupancy, c)[0], mean)
    with pytest.raises(ValueError, match=r"`c` \(B, 5\) is needed"):
        encoder(query, occupancy)


def unconditional() -> OccupancyNetwork:
    return build_model(config(encoder=None, encoder_latent="simple", z_dim=8, decoder="simple"))


def test_training_reaches_every_parameter_of_an_unconditional_model() -> None:
    model = shuffle(unconditional())
    query = torch.rand(2, 40, 3) - 0.5
    occupancy = (query.norm(dim=2) < 0.4).float()
    entropy, divergence = model.negative_elbo(query, occupancy, generator=torch.Generator().manual_seed(0))
    assert entropy.dim() == divergence.dim() == 0 and entropy > 0 and divergence > 0
    (entropy + divergence).backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Without a latent code only the cross-entropy of forward() is left.
    plain = build_model(config(encoder="pointnet_simple", decoder="simple"))
    entropy, divergence = plain.negative_elbo(query, occupancy, query)
    logits = plain(query, query)
    bce = nn.functional.binary_cross_entropy_with_logits(logits, occupancy, reduction="none")
    torch.testing.assert_close(entropy, bce.sum(dim=1).mean())
    assert divergence == 0


def test_shapes_between_two_codes() -> None:
    model = shuffle(unconditional()).double()
    query = torch.rand(1, 30, 3, dtype=torch.float64) - 0.5
    codes = torch.randn(2, 8, dtype=torch.float64)
    way = model.interpolate(codes[0], codes[1], 5)
    assert way["z"].shape == (5, 8) and way["c"].shape == (5, 0)
    logits = model.decode(query.expand(5, -1, -1), way)
    ends = model.decode(query.expand(2, -1, -1), {"c": codes[:, :0], "z": codes})
    torch.testing.assert_close(logits[[0, -1]], ends)
    drawn = [model.generate(3, generator=torch.Generator().manual_seed(seed))["z"] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])


def test_features_with_and_without_sampling() -> None:
    model = build_model(config(encoder="pointnet_simple", encoder_latent="simple", z_dim=8, decoder="cbatchnorm"))
    points = torch.rand(2, 30, 3)
    mean = model.encode(points)
    assert mean["z"].shape == (2, 8) and not mean["z"].any()
    draw = model.encode(points, sample=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw["c"], mean["c"]) and draw["z"].abs().min() > 0
    with pytest.raises(ValueError, match=r"this one has an encoder; use encode\(inputs, sample=True\)"):
        model.generate(2)
    plain = build_model(config(encoder=None, decoder="simple"))
    assert plain.encode()["c"].shape == (1, 0) and plain(torch.rand(3, 4, 3)).shape == (3, 4)
    with pytest.raises(ValueError, match="has no latent code"):
        plain.generate(2)


def test_parts_are_registered_in_the_original_order() -> None:
    model = build_model(config(encoder="pointnet_simple", encoder_latent="simple", z_dim=8, decoder="cbatchnorm"))
    assert [name for name, _ in model.named_children()] == ["decoder", "encoder_latent", "encoder"]


# -- configurations


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"encoder": "pointnet_resnt", "decoder": "simple"}, "did you mean 'pointnet_resnet'"),
        ({"encoder": "pointnet_resnet", "decoder": "cbatchnrm"}, "did you mean 'cbatchnorm'"),
        (
            {"encoder": "pointnet_resnet", "decoder": "simple", "encoder_kwargs": {"hiden_dim": 4}},
            "model.encoder_kwargs: unknown option 'hiden_dim'.*did you mean 'hidden_dim'",
        ),
        ({"encoder": "pointnet_resnet", "decoder": "simple", "z_dim": 64}, "set z_dim: 0"),
        ({"encoder": "pointnet_resnet", "decoder": "simple", "encoder_latent": "simple", "z_dim": 0}, "positive z_dim"),
        (
            {"encoder": "image_pose", "decoder": "simple", "encoder_kwargs": {"encoder": "resnet81"}},
            "did you mean 'resnet18'",
        ),
        ({"encoder": "resnet18", "decoder": "simple", "use_camera": True}, "image_pose"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(model: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_model(config(**model))


def test_packaged_names_are_listed() -> None:
    assert {"onet-pointcloud", "onet-img", "onet-voxel", "onet-unconditional"} <= set(occnets.list_models())
    assert "onet-base" not in occnets.list_models()
    assert occnets.model_info("onet-unconditional").input_type == "none"
    loaded = load_config("onet-unconditional-cars")
    assert loaded["data"]["classes"] == ["02958343"] and loaded["model"]["encoder"] is None


def test_models_of_a_missing_library_are_listed_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm is needed for the backbone convnext_tiny.*occkernels\[backbones\]"):
        occnets.create_model("onet-img-convnext-tiny")
    info = occnets.model_info("onet-img-convnext-tiny")
    assert info.parameters == 30_123_617 and "occkernels[backbones]" in info.missing
    monkeypatch.setattr("occnets.zoo.list_models", lambda: ["onet-img-convnext-tiny", "onet-voxel"])
    assert print_models(as_json=False) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "30,123,617 parameters" in first and "occkernels[backbones]" in first and "7,857,473 parameters" in second
    assert print_models(as_json=True) == 0
    assert "occkernels[backbones]" in json.loads(capsys.readouterr().out)[0]["missing"]
