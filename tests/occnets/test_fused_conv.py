# SPDX-License-Identifier: MIT
"""Convolution with ReLU: same bits as the plain path, follows the weights, leaves every other case alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from occnets.models import fused_conv
from occnets.models.fused_conv import conv_relu


def layer_and_input() -> tuple[nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Conv2d(16, 24, 3, padding=1), torch.randn(3, 16, 20, 20).contiguous(memory_format=torch.channels_last)


def test_same_as_convolution_then_relu_and_weights_are_packed_once() -> None:
    conv, x = layer_and_input()
    with torch.no_grad():
        torch.testing.assert_close(conv_relu(conv, x), functional.relu(conv(x)), rtol=1e-6, atol=1e-6)
        packed = fused_conv._packed[conv][1]
        assert conv_relu(conv, x).is_contiguous(memory_format=torch.channels_last)
        assert fused_conv._packed[conv][1] is packed


def test_changed_weights_are_packed_again() -> None:
    conv, x = layer_and_input()
    with torch.inference_mode():
        before = conv_relu(conv, x)
    with torch.no_grad():
        conv.weight.mul_(2.0)
        after = conv_relu(conv, x)
        torch.testing.assert_close(after, functional.relu(conv(x)), rtol=1e-6, atol=1e-6)
    assert (after - before).abs().max() > 0.1


def test_gradients_hooks_and_other_types_take_the_plain_path() -> None:
    conv, x = layer_and_input()
    conv_relu(conv, x).sum().backward()
    assert conv.weight.grad is not None and conv not in fused_conv._packed
    seen: list[int] = []
    hooked = conv.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        conv_relu(conv, x)
    hooked.remove()
    with torch.no_grad():
        conv_relu(conv.double(), x.double())
    assert seen == [1] and conv not in fused_conv._packed
