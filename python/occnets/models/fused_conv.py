# SPDX-License-Identifier: MIT
"""Convolution and ReLU in one pass for inference on the CPU."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional

# Weights in oneDNN's own layout, and what they were made of. torch's plain convolution reorders them on every call,
# which for the small planes of these networks costs about a tenth of the time.
_packed: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Tensor]] = weakref.WeakKeyDictionary()


def conv_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``relu(conv(x))``; the same bits.

    Without gradients, on float32 channels-last tensors on the CPU, the two run as one oneDNN primitive on weights that
    are brought into its layout once.

    Args:
        conv: the convolution; its hooks, if it has any, are honoured by taking the plain path.
        x: (B, in, H, W).
    """
    if not _can_fuse(conv, x):
        return functional.relu(conv(x))
    weight = conv.weight
    state = (weight.data_ptr(), weight._version, tuple(x.shape), torch.get_num_threads())
    known = _packed.get(conv)
    if known is None or known[0] != state:
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
            weight.detach().to_mkldnn(), conv.padding, conv.stride, conv.dilation, conv.groups, list(x.shape)
        )
        known = _packed[conv] = (state, packed)
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, known[1], conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, "relu", [], ""
    )


def _can_fuse(conv: nn.Conv2d, x: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or conv.weight.dtype != torch.float32 or not x.numel():
        return False
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available() or conv.weight.is_inference():
        return False
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    if not plain or conv._forward_hooks or conv._forward_pre_hooks:
        return False
    known = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and hasattr(
        torch._C._nn, "mkldnn_reorder_conv2d_weight"
    )
    return known and x.is_contiguous(memory_format=torch.channels_last)
