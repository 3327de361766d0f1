# SPDX-License-Identifier: MIT
"""TransONet's two networks of our own: token pruning that works, and the light one on three orthogonal planes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from convonet_cases import fill_hashed, hashed
from occkernels import FeatureLayout, bin_points
from occnets.config import load_config
from occnets.models import build_model
from occnets.models.dynamic import basis_and_scale, coordinate_planes, frame_from_axes
from occnets.reconstruct import Reconstructor

ENCODERS: dict[str, dict[str, Any]] = {
    "pruning_transformer": {
        "n_channels": 3,
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 4,
        "pruning_loc": [1, 2],
        "token_ratio": [0.7, 0.4],
    },
    "orthogonal_pool": {"unet_kwargs": {"depth": 3, "merge_mode": "add", "start_filts": 16}},
}


def small_config(encoder: str, **options: Any) -> dict[str, Any]:
    return {
        "method": "transonet",
        "data": {"dim": 3, "padding": 0.1},
        "model": {
            "encoder": encoder,
            "encoder_kwargs": {"hidden_dim": 16, "plane_resolution": 16, **ENCODERS[encoder], **options},
            "decoder": "dynamic_local",
            "decoder_kwargs": {"hidden_size": 16},
            "c_dim": 16,
            "registration": "cells",
        },
    }


def small_model(encoder: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(small_config(encoder, **options))


def clouds_and_queries() -> tuple[torch.Tensor, torch.Tensor]:
    return hashed("cloud", (2, 100, 3), -0.5, 0.5), hashed("query", (2, 20, 3), -0.5, 0.5)


def turns(count: int) -> torch.Tensor:
    return frame_from_axes(hashed("axes", (count, 6), -1.0, 1.0).double())


@pytest.mark.parametrize(("name", "count"), [("transonet-light", 1_770_000), ("transonet", 1_115_245)])
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = build_model(load_config(name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(count, rel=0.05 if "light" in name else 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_order_and_neighbours_in_the_batch_change_nothing(encoder: str) -> None:
    model = fill_hashed(small_model(encoder))
    clouds, query = clouds_and_queries()
    padded = torch.stack((clouds[0].flip(0), torch.cat((clouds[1, :60], torch.full((40, 3), torch.nan)))))
    with torch.no_grad():
        both = model.decode(query, model.encoder(padded, torch.tensor([100, 60])))
        for sample, cloud in enumerate((clouds[:1], clouds[1:, :60])):
            alone = model(query[sample : sample + 1], cloud)
            torch.testing.assert_close(both[sample : sample + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_reach_every_parameter(encoder: str) -> None:
    model = fill_hashed(small_model(encoder)).train()
    cloud, query = clouds_and_queries()
    features = model.encode(cloud)
    loss = model.decode(query, features).square().mean() + sum(model.auxiliary_losses(features).values())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_networks_learn_a_sphere(encoder: str) -> None:
    model = small_model(encoder, n_blocks=2).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    average = 0.5  # the entropy of the occupancies
    for _ in range(40):
        radius = 0.2 + 0.3 * torch.rand(4, 1, 1, generator=generator)
        cloud = radius * functional.normalize(torch.randn(4, 100, 3, generator=generator), dim=-1)
        query = torch.rand(4, 200, 3, generator=generator) - 0.5
        inside = (query.norm(dim=-1) < radius[..., 0]).float()
        features = model.encode(cloud)
        logits = model.decode(query, features)
        loss = functional.binary_cross_entropy_with_logits(logits, inside)
        optimizer.zero_grad()
        (loss + 0.01 * sum(model.auxiliary_losses(features).values())).backward()
        optimizer.step()
        average = 0.8 * average + 0.2 * loss.item()
    assert average < 0.25


@pytest.mark.parametrize("encoder", ENCODERS)
def test_reconstructor_drives_them(encoder: str) -> None:
    model = fill_hashed(small_model(encoder))
    points = functional.normalize(hashed("ball", (400, 3), -1.0, 1.0), dim=-1)
    with torch.no_grad():
        model.decoder.fc_out.bias -= model(hashed("query", (1, 500, 3), -0.5, 0.5), points[None] / 2).median()
    reconstructor = Reconstructor(model, small_config(encoder), device="cpu")
    assert reconstructor.reconstruct(points.numpy(), resolution=16, fit=False).mesh.is_watertight


@pytest.mark.parametrize("encoder", ENCODERS)
def test_half_precision_keeps_the_planes_and_nearly_the_logits(encoder: str) -> None:
    model = small_model(encoder).eval()
    cloud, query = clouds_and_queries()
    with torch.no_grad():
        exact = model.encode(cloud)
        logits = model.decode(query, exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.encode(cloud)
            rough = model.decode(query, features)
    assert torch.equal(features["c_mat"], exact["c_mat"])
    # The features are rough; the fused decoder reads them as they are and computes in float32.
    assert any(value.dtype == torch.bfloat16 for value in features.values()) and rough.dtype == torch.float32
    assert (rough - logits).abs().mean() < 0.1 * logits.std()


def test_blocks_run_on_the_tokens_that_are_left() -> None:
    model = small_model("pruning_transformer").eval()
    seen: list[int] = []
    for block in model.encoder.transformer.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    cloud, _ = clouds_and_queries()
    model.encode(cloud)
    assert seen == [48, 34, 20]  # of three planes of 4 x 4 patches, 70 % and 40 %


def test_dropped_tokens_keep_their_value_and_are_seen_by_none() -> None:
    transformer = fill_hashed(small_model("pruning_transformer")).encoder.transformer
    tokens = hashed("tokens", (2, 48, 32), -1.0, 1.0)
    mixed, left = transformer.mix(tokens)
    for sample in range(2):
        expected = tokens[sample].clone()
        alive = list(range(48))
        for number, block in enumerate(transformer.blocks):
            if number:
                score = transformer.scorers[str(number)](expected[alive][None])[0]
                order = sorted(range(len(alive)), key=lambda index: -score[index].item())
                alive = [alive[index] for index in order[: (34, 20)[number - 1]]]
            expected[alive] = block(expected[alive][None])[0]
        assert sorted(left[sample].tolist()) == sorted(alive)
        torch.testing.assert_close(mixed[sample], expected, atol=1e-4, rtol=1e-4)
    assert sorted(left[0].tolist()) != sorted(left[1].tolist())


def test_training_gives_every_token_its_turn_and_always_leaves_as_many() -> None:
    transformer = small_model("pruning_transformer").encoder.transformer.train()
    tokens = hashed("tokens", (1, 48, 32), -1.0, 1.0)
    counts = torch.zeros(48)
    for _ in range(30):
        left = transformer.mix(tokens)[1]
        assert left.shape == (1, 20) and len(set(left[0].tolist())) == 20
        counts[left[0]] += 1
    assert counts.min() > 0 and counts.max() < 30


def test_training_differs_from_inference_by_the_noise_only(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = fill_hashed(small_model("pruning_transformer")).encoder.transformer
    tokens = hashed("tokens", (2, 48, 32), -1.0, 1.0)
    expected = transformer.mix(tokens)[0]
    monkeypatch.setattr(torch, "rand_like", lambda tensor: torch.full_like(tensor, 0.5))
    torch.testing.assert_close(transformer.train().mix(tokens)[0], expected)


def test_scores_learn_which_tokens_help() -> None:
    """One kind of token carries what the output needs, the other disturbs; its scorer comes to tell them apart."""
    torch.manual_seed(0)
    options = {"pruning_loc": [0], "token_ratio": [0.5], "depth": 1}
    transformer = small_model("pruning_transformer", **options).encoder.transformer.train()
    useful = torch.arange(48) % 2 == 0
    scorer = transformer.scorers["0"]
    optimizer = torch.optim.Adam(scorer.parameters(), lr=1e-2)
    kinds = hashed("kinds", (2, 32), -1.0, 1.0)
    with torch.no_grad():
        for parameter in transformer.blocks[0].parameters():
            parameter.mul_(2.0)
        change = transformer.blocks[0](kinds[None])[0] - kinds
    target = torch.where(useful[:, None], change[0], -change[1])
    for _ in range(40):
        tokens = kinds[(~useful).long()].expand(4, -1, -1)
        loss = (transformer.mix(tokens)[0] - tokens - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = scorer(kinds[(~useful).long()][None])[0]
    assert scores[useful].min() > scores[~useful].max() + 1.0


def test_keeping_all_tokens_is_no_pruning() -> None:
    pruned = small_model("pruning_transformer", token_ratio=[1.0, 1.0]).encoder.transformer.eval()
    plain = small_model("pruning_transformer", pruning_loc=[], token_ratio=[]).encoder.transformer.eval()
    plain.load_state_dict({k: v for k, v in pruned.state_dict().items() if not k.startswith("scorers")}, strict=True)
    planes, frames = hashed("planes", (2, 3, 16, 16, 16), -1.0, 1.0), turns(6).float().unflatten(0, (2, 3))
    torch.testing.assert_close(pruned(planes, frames), plain(planes, frames), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pruned.train()(planes, frames), plain.train()(planes, frames), atol=1e-5, rtol=1e-5)


def test_frames_are_rotations() -> None:
    frames = turns(50)
    unit = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(frames @ frames.mT, unit, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(50, dtype=torch.float64))


def test_new_light_network_starts_with_the_canonical_planes() -> None:
    encoder = small_model("orthogonal_pool").encoder
    cloud, _ = clouds_and_queries()
    torch.testing.assert_close(encoder.frame(cloud), torch.eye(3).expand(2, 3, 3), atol=0.02, rtol=0)
    bases, scale = basis_and_scale(coordinate_planes(torch.eye(3)[None]), margin=0.0)
    dynamic = FeatureLayout(dynamic_planes=3, plane_resolution=64)
    canonical = FeatureLayout(planes=("xz", "xy", "yz"), plane_resolution=64)
    ours = bin_points(cloud[:1], dynamic, bases=bases, basis_scale=scale).index
    assert torch.equal(ours, bin_points(cloud[:1], canonical).index)


def test_turning_cloud_and_frame_together_changes_no_cell() -> None:
    cloud = hashed("cloud", (1, 500, 3), -0.5, 0.5).double()
    layout = FeatureLayout(dynamic_planes=3, plane_resolution=64)
    frame, turn = turns(2)[:, None]
    expected = None
    for points, axes in ((cloud, frame), (cloud @ turn[0].T, frame @ turn[0].T)):
        c_mat = coordinate_planes(axes)
        # The normaliser is that of the turned cube; the cells stay where one scale is used for both.
        index = bin_points(points, layout, bases=c_mat[..., :3, :], basis_scale=torch.full((1, 3), 1.8).double()).index
        expected = index if expected is None else expected
        assert torch.equal(index, expected)


def test_every_corner_of_the_cube_has_a_place_in_every_plane() -> None:
    corners = torch.from_numpy(np.array(list(np.ndindex(2, 2, 2)))).double() * 2.0 - 1.0
    bases, scale = basis_and_scale(coordinate_planes(turns(50)), margin=0.0)
    reach = (bases[:, :, :2] @ corners.T).abs().amax(dim=(2, 3))
    torch.testing.assert_close(reach, scale, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        ("pruning_transformer", {"patch_size": 5}, "patch_size must divide plane_resolution 16, got 5"),
        ("pruning_transformer", {"num_heads": 5}, "embed_dim must be a multiple of 4 and of num_heads, got 32"),
        ("pruning_transformer", {"pruning_loc": [2, 3]}, r"ascending block numbers below depth 3, got \[2, 3\]"),
        ("pruning_transformer", {"token_ratio": [0.5]}, r"token_ratio must hold 2 descending shares in \(0, 1\]"),
        ("pruning_transformer", {"token_ratio": [0.5, 0.7]}, "descending shares"),
        ("pruning_transformer", {"unet": True}, "the transformer takes the U-Net's place"),
        ("pruning_transformer", {"token_ratios": [0.5]}, "did you mean 'token_ratio'"),
        ("orthogonal_pool", {"n_channels": 3}, "unknown option 'n_channels' for OrthogonalPoolOptions"),
        ("orthogonal_pool", {"scatter_type": "min"}, "scatter_type must be 'max' or 'mean', got 'min'"),
    ],
)
def test_errors_name_what_is_wrong(encoder: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(encoder, **options)
