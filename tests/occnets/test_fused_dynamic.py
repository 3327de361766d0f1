# SPDX-License-Identifier: MIT
"""Planes chosen per cloud through the fused decoder: same logits and gradients, falls back with a reason."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from occnets.config import load_config, merge
from occnets.ensemble import EnsembleField
from occnets.models import build_model, fused

NAMES = (
    "dpconvonet-shapenet-dynamic-3plane",
    "dpconvonet-shapenet-hybrid-7plane",
    "dpconvonet-shapenet-canonical-3plane",
    "transonet",
    "transonet-light",
)
QUERY = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.6
CLOUD = torch.rand(2, 400, 3, generator=torch.Generator().manual_seed(2)) - 0.5


def make(name: str, **decoder: object) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with a decoder that depends on its features, and the features of two clouds."""
    torch.manual_seed(0)
    small = {"encoder_kwargs": {"plane_resolution": 16}, "decoder_kwargs": decoder}
    model = build_model(merge(load_config(name), {"model": small})).eval()
    for parameter in model.decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        return model, model.encode(CLOUD)


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_field_is_the_decoder(name: str) -> None:
    model, features = make(name)
    field = fused.fuse(model.decoder, features)
    assert field is not None
    query = QUERY.clone().requires_grad_()
    expected = model.decoder(query, features)
    (slope,) = torch.autograd.grad(expected.sum(), query)
    torch.testing.assert_close(field(QUERY), expected.detach(), rtol=1e-4, atol=1e-4)
    logits, gradient = field.with_gradient(QUERY)
    assert torch.equal(logits, field(QUERY))
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(model.decode(QUERY, features), field(QUERY))


@pytest.mark.parametrize("name", NAMES)
def test_bricks_are_the_decoder_at_their_nodes(name: str) -> None:
    model, features = make(name)
    field = fused.fuse(model.decoder, features)
    assert field is not None
    corner = torch.tensor([[0, 8, 16], [24, 0, 8]], dtype=torch.int32)
    found = field.bricks(torch.tensor([0, 1]), corner, torch.full((2, 8), -1), 1 / 32, -0.5)
    query = -0.5 + (corner[:, None] + torch.cartesian_prod(*[torch.arange(8)] * 3)) / 32
    with torch.no_grad():
        torch.testing.assert_close(found, model.decoder(query, features), rtol=1e-4, atol=1e-4)


def test_concatenated_planes_are_fused_too() -> None:
    model, features = make("dpconvonet-shapenet-dynamic-3plane", concat_feat=True, num_maps=3)
    field = fused.fuse(model.decoder, features)
    assert field is not None
    with torch.no_grad():
        torch.testing.assert_close(field(QUERY), model.decoder(QUERY, features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dpconvonet-shapenet-dynamic-3plane-pe", "positional encoding of the queries"),
        ("dpconvonet-shapenet-canonical-3plane-pe", "positional encoding of the queries"),
        ("transonet-published", "PublishedDecoder has no fused form"),
    ],
)
def test_other_decoders_answer_themselves_and_say_why(name: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = build_model(load_config(name)).eval()
    with torch.no_grad(), caplog.at_level(logging.DEBUG, logger="occnets"):
        features = model.encode(CLOUD)
        assert torch.equal(model.decode(QUERY, features), model.decoder(QUERY, features))
    assert words in caplog.text


def test_orientations_are_averaged_through_it() -> None:
    model, _ = make("dpconvonet-shapenet-hybrid-5plane")
    with torch.no_grad():
        field = EnsembleField(model, CLOUD[0], 3)
        assert len(field.fused) == 3
        found = field(QUERY[:1])
    parts = [
        model.decoder(turn.points(QUERY[:1]), part) for turn, part in zip(field.turns, field.features, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(parts).mean(dim=0).detach(), rtol=1e-4, atol=1e-4)
