# SPDX-License-Identifier: MIT
"""Registers torch operators of the ``occkernels`` namespace. One call an operator keeps its whole story in one file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
