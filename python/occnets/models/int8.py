# SPDX-License-Identifier: MIT
"""Weights in eight bits: symmetric, one scale for each output channel.

The weights of linear layers and convolutions are kept as int8 and multiplied by their scales where they are used, so
that layers and saved files work as before. On hardware with integer products a layer would also round
its input to int8, row by row, as it comes (dynamic quantisation); ``activations=True`` computes what it then would.
In torch on a CPU without such instructions the integer product is several times slower than the float one, so that the
numbers are multiplied as floats here: what becomes smaller is the file and the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LARGEST = 127


class Int8Weight(nn.Module):
    """A weight as int8 values and scales; a parametrisation of ``torch.nn.utils.parametrize``.

    Args:
        axis: the output channels' axis.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, values: Tensor, scale: Tensor) -> Tensor:
        """The weight of int8 values and scales of shape (1, ..., channels, ..., 1)."""
        return values.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """int8 values and scales of a weight; a channel's largest magnitude becomes 127."""
        others = [axis for axis in range(weight.ndim) if axis != self.axis]
        scale = weight.detach().abs().amax(dim=others, keepdim=True).clamp_min(1e-12) / _LARGEST
        return (weight.detach() / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def round_rows(values: Tensor) -> Tensor:
    """Values (..., C) rounded to 255 levels, with one scale for each row."""
    scale = values.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / _LARGEST
    return (values / scale).round() * scale


def quantise_encoder(model: nn.Module) -> nn.Module:
    """:func:`quantise` a network's encoder, which has most of the weights; fused decoders take floats.

    Raises:
        ValueError: the network has no encoder.
    """
    encoder = getattr(model, "encoder", None)
    if encoder is None:
        raise ValueError(f"quantise_encoder: this {type(model).__name__} has no encoder, whose weights become int8")
    quantise(encoder)
    return model


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (round_rows(inputs[0]), *inputs[1:])


def quantise(model: nn.Module, *, activations: bool = False) -> nn.Module:
    """Keep the weights of all linear layers and convolutions in int8, in place.

    Args:
        model: a trained network; it can no longer be trained.
        activations: also round the inputs of linear layers, as hardware with integer products does.

    Returns:
        The model.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    CVPR 2018, section 2.1, without zero points.
    """
    for layer in list(model.modules()):
        if not isinstance(layer, _LAYERS + _TRANSPOSED) or parametrize.is_parametrized(layer):
            continue
        layer.weight.requires_grad_(False)
        axis = 1 if isinstance(layer, _TRANSPOSED) else 0
        # "unsafe": the stored values have another type than the weight.
        parametrize.register_parametrization(layer, "weight", Int8Weight(axis), unsafe=True)
        if activations and isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_round_input)
    return model
