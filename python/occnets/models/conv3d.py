# SPDX-License-Identifier: MIT
"""Three-dimensional convolutions that stay fast and channels-last for single samples on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALL = 20_480  # C * D * H up to which torch leaves oneDNN for a single sample


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` with the same parameters, without two slow paths torch takes on a CPU.

    * torch leaves oneDNN for an im2col product when the batch is one sample with C * D * H up to 20,480, which costs up
      to 2.5 times the time and loses the channels-last memory format; here oneDNN is called. In the backward pass,
      where the same happens at up to 5 times the time, a second sample of zeros avoids it (gradients are supported
      once, not twice).
    * A 1x1x1 convolution of a channels-last tensor is a matrix product of its rows and is computed as one (2 to 4
      times faster on one thread).

    While a graph is captured (``torch.compile``, ``torch.export``) the plain operator is used.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W); channels-last-3d memory is kept."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
            return super().forward(x)
        if self.kernel_size == (1, 1, 1) and x.is_contiguous(memory_format=torch.channels_last_3d):
            return functional.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        if len(x) == 1 and torch.backends.mkldnn.is_available():
            small = x.shape[1] * x.shape[2] * x.shape[3] <= _SMALL
            if small and torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
                return _OneSample.apply(
                    x, self.weight, self.bias, (self.padding, self.stride, self.dilation, self.groups)
                )
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(x)


class _OneSample(torch.autograd.Function):
    """oneDNN's convolution of a single sample, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.geometry = geometry
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, weight)
        return torch.mkldnn_convolution(x, weight, bias, *geometry)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        padding, stride, dilation, groups = ctx.geometry
        wanted = list(ctx.needs_input_grad[:3])
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            _with_zeros(grad),
            _with_zeros(x),
            weight,
            ctx.bias_sizes,
            stride,
            padding,
            dilation,
            False,
            [0, 0, 0],
            groups,
            wanted,
        )
        return grad_x[:1] if wanted[0] else None, grad_weight, grad_bias, None


def _with_zeros(x: Tensor) -> Tensor:
    """The sample and another one of zeros, channels-last."""
    pair = torch.empty(2, *x.shape[1:], dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    pair[:1] = x
    pair[1:] = 0
    return pair
