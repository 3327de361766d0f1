# SPDX-License-Identifier: MIT
"""Registers torch operators of the ``occkernels`` namespace. One call an operator keeps its whole story in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_library: Any = torch.library.Library("occkernels", "DEF")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Any:
    """Define ``occkernels::<schema>`` for CPU and CUDA and return the callable overload.

    Args:
        schema: torch schema without namespace, e.g. ``"local_pool(Tensor features, ...) -> Tensor"``.
        implementation: called on CPU and CUDA tensors; it allocates with torch and calls the native module.
        fake: shapes, dtypes and strides of the outputs, nothing else.
        backward, setup_context: as for ``torch.library.register_autograd``.
        vmap: as for ``torch.library.register_vmap``.
        autocast: under autocast, floating inputs are cast to this type first.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    qualified = f"occkernels::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    if vmap is not None:
        torch.library.register_vmap(qualified, vmap, lib=_library)
    if autocast is not None:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(qualified, device, autocast, lib=_library)
    return getattr(torch.ops.occkernels, name).default


def fold_batch(operator: Any, info: Any, dims: Sequence[int | None], args: Sequence[Any]) -> tuple[Any, Any]:
    """vmap rule of an operator whose tensors all begin with a batch dimension B: V times B samples."""
    size = info.batch_size

    def fold(argument: Any, dim: int | None) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        moved = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return moved.flatten(0, 1)

    results = operator(*(fold(argument, dim) for argument, dim in zip(args, dims, strict=True)))
    return _unfold(results, lambda result: (result.unflatten(0, (size, result.shape[0] // size)), 0))  # type: ignore[no-untyped-call]


def fold_channels(
    operator: Any, info: Any, dims: Sequence[int | None], args: Sequence[Any], channels: tuple[int, ...]
) -> tuple[Any, Any]:
    """vmap rule of an operator that treats channels alike: V times C channels.

    Args:
        channels: positions of the arguments that end with the channel dimension. If any other tensor is batched too,
            the batch is folded into B instead.
    """
    size = info.batch_size
    others = [dim for at, dim in enumerate(dims) if at not in channels and isinstance(args[at], Tensor)]
    if any(dim is not None for dim in others):
        return fold_batch(operator, info, dims, args)

    def fold(at: int) -> Any:
        argument, dim = args[at], dims[at]
        if at not in channels:
            return argument
        if dim is None:
            return argument.unsqueeze(-2).expand(*argument.shape[:-1], size, argument.shape[-1]).flatten(-2)
        return argument.movedim(dim, -2).flatten(-2)

    results = operator(*(fold(at) for at in range(len(args))))
    return _unfold(results, lambda result: (result.unflatten(-1, (size, result.shape[-1] // size)), result.dim() - 1))  # type: ignore[no-untyped-call]


def _unfold(results: Any, unfold: Callable[[Tensor], tuple[Tensor, int]]) -> tuple[Any, Any]:
    if isinstance(results, Tensor):
        return unfold(results)
    # A one-dimensional empty result stands for an output that was not asked for.
    pairs = [(result, None) if result.dim() == 1 and not result.numel() else unfold(result) for result in results]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
