# SPDX-License-Identifier: MIT
"""Occupancy Networks decode through the fused kernel in inference, and say why when they cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from occnets.models import fused_conditional
from occnets.models.fused_conditional import ConditionalField, fuse_conditional
from occnets.models.onet import DECODERS, OccupancyNetwork
from test_onet import shuffle


def make(name: str = "cbatchnorm", **fields: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    options, maker = DECODERS[name]
    decoder = shuffle(maker(options(**{"c_dim": 6, "z_dim": 4, "hidden_size": 24, **fields}))).eval()
    return decoder, {"c": torch.randn(2, 6), "z": torch.randn(2, 4)}


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("z_dim", [0, 4])
@pytest.mark.parametrize("name", DECODERS)
def test_the_fused_field_is_the_decoder(name: str, z_dim: int, leaky: bool) -> None:
    decoder, features = make(name, z_dim=z_dim, **({} if name == "cbatchnorm2" else {"leaky": leaky}))
    features["z"] = features["z"][:, :z_dim]
    field = fuse_conditional(decoder, features)
    assert field is not None
    query = torch.rand(2, 70, 3) - 0.5
    expected = decoder.double()(query.double(), {key: value.double() for key, value in features.items()})
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(field(query).double(), expected, atol=1e-5 * scale, rtol=1e-5)
    assert not field(query.requires_grad_()).requires_grad and field(query[:, :0]).shape == (2, 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    real = ConditionalField.__call__
    monkeypatch.setattr(ConditionalField, "__call__", lambda self, query: found.append(1) or real(self, query))
    return found


def test_models_choose_it_in_inference_only(calls: list[int]) -> None:
    decoder, features = make()
    model = OccupancyNetwork(decoder).eval()
    query = torch.rand(2, 20, 3) - 0.5
    recorded = model.decode(query, features)
    assert recorded.requires_grad and not calls
    with torch.no_grad():
        fast = model.decode(query, features)
    assert len(calls) == 1
    torch.testing.assert_close(fast, recorded.detach(), atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        model.decode(query, features)
        model.train().decode(query, features)
    assert len(calls) == 2


def test_changed_weights_and_statistics_are_seen() -> None:
    decoder, features = make()
    query = torch.rand(2, 20, 3) - 0.5
    with torch.no_grad():
        first = fuse_conditional(decoder, features)
        assert fuse_conditional(decoder, features).weights is first.weights
        for tensor in (decoder.fc_out.weight, decoder.bn.bn.running_mean, decoder.block2.bn_1.conv_beta.bias):
            before = fuse_conditional(decoder, features)(query)
            tensor.add_(0.3)
            after = fuse_conditional(decoder, features)(query)
            assert not torch.allclose(before, after, atol=1e-3)
            torch.testing.assert_close(after, decoder(query, features), atol=1e-4, rtol=1e-4)


class _Hooked:
    """A decoder with a hook, whose effect a kernel would skip."""

    def __call__(self) -> tuple[nn.Module, dict[str, Tensor]]:
        decoder, features = make()
        decoder.block1.register_forward_hook(lambda module, args, out: out)
        return decoder, features


def _as_double() -> tuple[nn.Module, dict[str, Tensor]]:
    decoder, features = make()
    return decoder.double(), {key: value.double() for key, value in features.items()}


def _half_features() -> tuple[nn.Module, dict[str, Tensor]]:
    decoder, features = make()
    return decoder, features | {"c": features["c"].half()}


def _training() -> tuple[nn.Module, dict[str, Tensor]]:
    decoder, features = make()
    return decoder.train(), features


@pytest.mark.parametrize(
    ("reason", "case"),
    [
        ("Linear has no fused form", lambda: (nn.Linear(3, 1), make()[1])),
        ("hidden_size 300 is more than 256", lambda: make(hidden_size=300)),
        ("dim 2", lambda: make(dim=2)),
        ("the decoder has hooks", _Hooked()),
        ("weights of torch.float64", _as_double),
        ("features of torch.float16, torch.float32", _half_features),
        ("training mode", _training),
    ],
)
def test_what_the_kernel_cannot_take_is_refused_with_a_reason(
    reason: str, case: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="occnets"):
        assert fused_conditional.fuse_conditional(*case()) is None
    assert reason in caplog.text
