# SPDX-License-Identifier: MIT
"""Weights of another model as a beginning: norms folded, levels left out, nothing else lost."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from occnets.checkpoints import save_weights
from occnets.config import ConfigError, save_config
from occnets.models import build_model
from occnets.models.norm import FixedNorm, GroupNorm, average_norms
from occnets.training.warm import warm_start
from training_helpers import MODEL


def variant(**unet: Any) -> dict[str, Any]:
    config = copy.deepcopy(MODEL)
    config["model"]["encoder_kwargs"]["unet3d_kwargs"].update(unet)
    return config


def saved(folder: Path, config: dict[str, Any], seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, GroupNorm):
                part.weight.uniform_(0.5, 2.0)
                part.bias.uniform_(-0.5, 0.5)
    save_weights(model, folder / "model.safetensors")
    save_config(config, folder / "config.yaml")
    return model


def clouds(count: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"inputs": torch.rand(2, 400, 3, generator=generator) - 0.5} for _ in range(count)]


def test_group_norms_become_what_they_do_on_average() -> None:
    torch.manual_seed(0)
    norm = GroupNorm(2, 4)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    torch.nn.init.uniform_(norm.bias)
    network = torch.nn.Sequential(norm)
    x = torch.randn(1, 4, 6, 6, 6) * 3 + 1
    fixed = average_norms(network, lambda: network(x))["0"]
    assert isinstance(fixed, FixedNorm)
    torch.testing.assert_close(fixed(x), norm(x), rtol=1e-4, atol=1e-5)  # of one input, the average is its own
    several = average_norms(network, lambda: [network(x), network(2 * x)])["0"]
    assert not torch.allclose(several(x), norm(x), atol=1e-2) and not norm._forward_pre_hooks


def test_a_folded_model_equals_its_source_inside(tmp_path: Path) -> None:
    source = saved(tmp_path, variant(f_maps=[8, 8])).eval()
    model = build_model(variant(f_maps=[8, 8], norm="none")).eval()
    batches = [{"inputs": clouds()[0]["inputs"][:1]}]
    assert warm_start(model, str(tmp_path), batches) == []
    with torch.no_grad():
        ours, theirs = (each.encode(batches[0]["inputs"])["grid"] for each in (model, source))
    # Where convolutions see the zeros beyond the border, a shift moved into them is missing.
    middle = (..., slice(6, 10), slice(6, 10), slice(6, 10))
    assert (ours - theirs)[middle].abs().mean() < 0.25 * theirs[middle].std()
    torch.testing.assert_close(model.decoder.state_dict(), source.decoder.state_dict())


def test_levels_at_the_bottom_are_left_out(tmp_path: Path) -> None:
    source = saved(tmp_path, variant(f_maps=[8, 8, 16]))
    model = build_model(variant(f_maps=[8, 8]))
    assert warm_start(model, str(tmp_path), clouds()) == []
    ours, theirs = model.encoder.unet3d, source.encoder.unet3d
    torch.testing.assert_close(ours.up[0].state_dict(), theirs.up[1].state_dict())
    assert torch.equal(ours.reduce[0].weight, theirs.reduce[1].weight)
    assert torch.equal(ours.stem.conv1.weight, theirs.stem.conv1.weight)


def test_what_has_no_place_is_named_or_refused(tmp_path: Path) -> None:
    saved(tmp_path, variant(f_maps=[8, 8]))
    wide = build_model(variant(f_maps=[8, 16]))
    left = warm_start(wide, str(tmp_path), clouds())
    assert "encoder.unet3d.down.0.0.conv1.weight" in left and "encoder.fc_pos.weight" not in left
    with pytest.raises(ConfigError, match="has no weights of the names"):
        warm_start(torch.nn.Linear(3, 3), str(tmp_path), clouds())


def test_positions_stay_hidden(tmp_path: Path) -> None:
    saved(tmp_path, variant(f_maps=[8, 8]))
    config = variant(f_maps=[8, 8])
    config["model"]["decoder_kwargs"]["position"] = False
    model = build_model(config).eval()
    warm_start(model, str(tmp_path), clouds())
    assert not model.decoder.fc_p.weight.any() and not model.decoder.fc_p.weight.requires_grad
    grid = torch.full((1, 4, 16, 16, 16), 0.3)
    with torch.no_grad():
        values = model.decode(torch.rand(1, 50, 3) - 0.5, {"grid": grid})
    torch.testing.assert_close(values, values[:, :1].expand(-1, 50))


def test_training_can_start_from_a_model(tmp_path: Path) -> None:
    from occnets.training.runner import train
    from training_helpers import Ellipsoids, make_config

    folder = tmp_path / "source"
    folder.mkdir()
    saved(folder, MODEL)
    config = make_config(tmp_path / "run", initial=str(folder), max_steps=1)
    assert train(config, source=Ellipsoids()) is not None
