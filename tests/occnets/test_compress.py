# SPDX-License-Identifier: MIT
"""Smaller models: pruned weights, weights in eight bits, and the command that writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convonet_cases import fill_hashed, hashed
from occnets.checkpoints import WEIGHTS_NAME, load_pretrained, read_checkpoint, save_model
from occnets.cli import main
from occnets.config import load_config
from occnets.models import build_model
from occnets.models.int8 import Int8Weight, quantise, quantise_encoder, round_rows
from occnets.training.compress import compress, prune_small, sparsity
from test_transonet import small_config


@pytest.fixture
def light(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A small ``transonet-light`` with filled weights, and its folder."""
    config = load_config(small_config("orthogonal_pool"))
    model = fill_hashed(build_model(config))
    return model, save_model(model, tmp_path / "light", config)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(hashed("query", (1, 400, 3), -0.5, 0.5), hashed("cloud", (1, 300, 3), -0.5, 0.5))


def test_eight_bits_are_within_half_a_step() -> None:
    weight = hashed("weight", (5, 4, 3, 3), -2.0, 2.0)
    weight[2] = 0.0
    for axis in (0, 1):
        kept = Int8Weight(axis)
        values, scale = kept.right_inverse(weight)
        assert values.dtype == torch.int8 and scale.numel() == weight.shape[axis]
        found = kept(values, scale)
        assert ((found - weight).abs() <= 0.5001 * scale).all()
        again, _ = kept.right_inverse(found)
        assert torch.equal(again, values)
    rows = hashed("rows", (7, 16), -3.0, 3.0)
    assert ((round_rows(rows) - rows).abs() <= 0.5001 * rows.abs().amax(dim=1, keepdim=True) / 127).all()
    assert len(round_rows(rows)[0].unique()) <= 255


@pytest.mark.parametrize("activations", [False, True])
def test_a_quantised_network_is_close_and_has_int8_weights(light: tuple[nn.Module, Path], activations: bool) -> None:
    model, _ = light
    before = logits(model)
    quantise(model, activations=activations)
    matrices = [value for value in model.state_dict().values() if value.ndim > 1 and value.dtype == torch.int8]
    assert sum(value.numel() for value in matrices) > 0.95 * sum(
        value.numel() for value in build_model(small_config("orthogonal_pool")).parameters()
    )
    error = (logits(model) - before).abs().max() / before.abs().max()
    assert 0 < error < 0.1
    assert torch.equal(logits(quantise(model)), logits(model))  # a second time changes nothing


def test_every_kind_of_layer_is_quantised() -> None:
    layers = [
        (nn.Linear(4, 6), (3, 4)),
        (nn.Conv1d(4, 6, 3), (1, 4, 9)),
        (nn.Conv3d(2, 3, 3), (1, 2, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5)),
    ]
    for layer, size in layers:
        x = torch.randn(size)
        with torch.no_grad():
            wanted = layer(x)
            found = quantise(layer)(x)
        assert "parametrizations.weight.original0" in layer.state_dict(), layer
        assert 0 < (found - wanted).abs().max() < 0.03 * wanted.abs().max(), layer


def test_pruning_drops_the_smallest_weights_for_good(light: tuple[nn.Module, Path]) -> None:
    model, _ = light
    weights = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if name.endswith("weight")])
    biases = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("bias")}
    keys = set(model.state_dict())
    prune_small(model, 0.6)
    assert sparsity(model) == pytest.approx(0.6, abs=1e-3)
    assert set(model.state_dict()) == keys
    kept = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if name.endswith("weight")])
    assert weights[kept == 0].abs().max() <= weights[kept != 0].abs().min()
    assert torch.equal(kept[kept != 0], weights[kept != 0])
    assert all(torch.equal(p, biases[name]) for name, p in model.named_parameters() if name in biases)
    with pytest.raises(ValueError, match="prune_small"):
        prune_small(model, 1.0)


def test_a_compressed_model_loads_like_any_other(light: tuple[nn.Module, Path], tmp_path: Path, capsys: Any) -> None:
    model, folder = light
    assert main(["compress", str(folder), "-o", str(tmp_path / "small"), "--prune", "0.2"]) == 0
    assert "19.8% zero" in capsys.readouterr().out
    small, config = load_pretrained(tmp_path / "small")
    assert config["model"]["quantization"] == "int8"
    sizes = [(path / WEIGHTS_NAME).stat().st_size for path in (folder, tmp_path / "small")]
    assert sizes[1] < 0.3 * sizes[0]
    prune_small(model, 0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or not name.startswith("encoder."):  # stored as float16
                parameter.copy_(parameter.half().float())
    torch.testing.assert_close(logits(small), logits(quantise_encoder(model)), rtol=0, atol=1e-5)
    assert (tmp_path / "small" / "README.md").read_text().count("zero") == 1

    half = compress(folder, tmp_path / "half", int8=False)
    assert half.zeros == 0 and half.after > 1.7 * sizes[1]
    assert all(value.dtype == torch.float16 for value in read_checkpoint(half.folder / WEIGHTS_NAME).state.values())


def test_other_quantisations_are_refused() -> None:
    config = small_config("orthogonal_pool")
    config["model"]["quantization"] = "int4"
    with pytest.raises(ValueError, match="'int8' or absent, got 'int4'"):
        build_model(config)
