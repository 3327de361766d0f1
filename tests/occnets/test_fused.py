# SPDX-License-Identifier: MIT
"""Inference through the fused decoder: chosen by itself, same logits, falls back with a reason."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from occnets.models import decoders, fused
from occnets.models.convonet import ConvolutionalOccupancyNetwork
from occnets.models.decoders import LocalDecoder


def make(names: tuple[str, ...] = ("grid", "xz", "xy", "yz"), **options: Any) -> tuple[LocalDecoder, dict[str, Tensor]]:
    torch.manual_seed(0)
    decoder = LocalDecoder(**({"c_dim": 8, "hidden_size": 16, "n_blocks": 2} | options))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    maps = {name: torch.randn(2, 8, *(7,) * (3 if name == "grid" else 2)) for name in names}
    return decoder.eval(), maps


def make_model(decoder: nn.Module) -> ConvolutionalOccupancyNetwork:
    return ConvolutionalOccupancyNetwork(decoder, nn.Identity()).eval()


QUERY = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"leaky": True},
        {"concat_feat": True, "num_maps": 4},
        {"registration": "cells", "padding": 0.0},
        {"n_blocks": 0},
    ],
)
def test_the_fused_field_is_the_decoder(options: dict[str, Any]) -> None:
    decoder, maps = make(**options)
    field = fused.fuse(decoder, maps)
    assert field is not None
    query = QUERY.clone().requires_grad_()
    expected = decoder(query, maps)
    (slope,) = torch.autograd.grad(expected.sum(), query)
    logits, gradient = field.with_gradient(QUERY)
    torch.testing.assert_close(field(QUERY), expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, field(QUERY), rtol=0, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("names", [("xz",), ("grid",), ("xz", "xy", "yz")])
def test_bricks_are_the_decoder_at_their_nodes(names: tuple[str, ...]) -> None:
    decoder, maps = make(names)
    field = fused.fuse(decoder, maps)
    assert field is not None
    corner = torch.tensor([[0, 8, 16], [24, 0, 8]], dtype=torch.int32)
    mask = torch.full((2, 8), -1)
    mask[1, 3] = 0
    found = field.bricks(torch.tensor([1, 0]), corner, mask, 1 / 32, -0.5)
    steps = torch.cartesian_prod(*[torch.arange(8)] * 3)
    query = -0.5 + (corner[:, None] + steps) / 32
    with torch.no_grad():
        expected = decoder(query, {name: values.flip(0) for name, values in maps.items()})
    assert found[1, 192:256].isnan().all() and found.isnan().sum() == 64
    known = ~found.isnan()
    torch.testing.assert_close(found[known], expected[known], rtol=1e-4, atol=1e-4)


def test_models_choose_it_in_inference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, maps = make()
    model = make_model(decoder)
    calls: list[int] = []
    real = fused.FusedField.__call__
    monkeypatch.setattr(fused.FusedField, "__call__", lambda self, query: calls.append(1) or real(self, query))
    expected = model.decode(QUERY, maps)
    assert not calls and expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(model.decode(QUERY, maps), expected.detach(), rtol=1e-4, atol=1e-4)
        assert calls == [1]
        model.train()
        model.decode(QUERY, maps)
    with torch.inference_mode():
        model.eval().decode(QUERY, maps)
    assert calls == [1, 1]


def test_changed_weights_are_seen() -> None:
    decoder, maps = make()
    model = make_model(decoder)
    with torch.no_grad():
        before = model.decode(QUERY, maps)
        first = fused.fuse(decoder, maps)
        second = fused.fuse(decoder, maps)
        assert first is not None and second is not None and first.weights is second.weights
        decoder.blocks[0].fc_0.weight.mul_(1.5)
        after = model.decode(QUERY, maps)
        torch.testing.assert_close(after, decoder(QUERY, maps), rtol=1e-4, atol=1e-4)
        assert (after - before).abs().max() > 1e-3
        decoder.load_state_dict({name: value * 0.5 for name, value in decoder.state_dict().items()})
        torch.testing.assert_close(model.decode(QUERY, maps), decoder(QUERY, maps), rtol=1e-4, atol=1e-4)


def test_weights_made_in_inference_mode_are_never_stale() -> None:
    with torch.inference_mode():
        decoder, maps = make()
        model = make_model(decoder)
        model.decode(QUERY, maps)
        decoder.fc_p.weight.mul_(2)
        torch.testing.assert_close(model.decode(QUERY, maps), decoder(QUERY, maps), rtol=1e-4, atol=1e-4)


class _Other(LocalDecoder):
    pass


def _cases() -> list[tuple[str, Any]]:
    def hooked() -> tuple[nn.Module, dict[str, Tensor]]:
        decoder, maps = make()
        decoder.fc_p.register_forward_hook(lambda module, inputs, output: None)
        return decoder, maps

    def mixed() -> tuple[nn.Module, dict[str, Tensor]]:
        decoder, maps = make()
        return decoder, maps | {"grid": maps["grid"].double()}

    return [
        ("sample_mode 'nearest'", lambda: make(sample_mode="nearest")),
        ("hidden_size 264", lambda: make(hidden_size=264)),
        ("_Other has no fused form", lambda: (_Other(c_dim=8, hidden_size=16), make()[1])),
        ("float64", lambda: (make()[0].double(), make()[1])),
        ("features of torch.float32, torch.float64", mixed),
        ("hooks", hooked),
    ]


@pytest.mark.parametrize(("words", "build"), _cases())
def test_a_decoder_outside_the_limits_is_told(words: str, build: Any, caplog: pytest.LogCaptureFixture) -> None:
    decoder, maps = build()
    with caplog.at_level(logging.DEBUG, logger="occnets"):
        assert fused.fuse(decoder, maps) is None
    assert words in caplog.text


def test_fallback_gives_the_decoders_own_answer() -> None:
    decoder, maps = make(sample_mode="nearest")
    with torch.no_grad():
        assert torch.equal(make_model(decoder).decode(QUERY, maps), decoder(QUERY, maps))
    assert decoders.DecoderOptions().sample_mode == "bilinear"
