# SPDX-License-Identifier: MIT
"""Sizes of memory as people write them, chunks that fit into them, and what to do when they do not."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from typing import Any

import torch

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SMALLEST_CHUNK = 1024
_PASSING, _KEPT = 12, 8  # arrays of a layer's width for a query; measured 9 and 6 on the networks here
_log = logging.getLogger(__name__)


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``"4G"``, ``"500 MB"``, ``"1.5GiB"`` or ``4294967296``; units are powers of 1024.

    Raises:
        ValueError: this is no size, or it is not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), flags=re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise ValueError(f"a size of memory is a number and a unit, such as 500M or 4G; got {text!r}")
    return size


def query_bytes(model: Any, *, kept: bool = False) -> int:
    """Estimate of the memory a network's decoder takes for one query.

    Args:
        model: a network; the widths and number of its linear layers and 1-D convolutions outside ``encoder`` are
            looked at.
        kept: all layers' values are kept, for first and second derivatives, not only those of the layer at work.
    """
    layers = []
    if isinstance(model, torch.nn.Module):
        named = model.named_modules()
        kinds = (torch.nn.Linear, torch.nn.Conv1d)
        layers = [m for name, m in named if isinstance(m, kinds) and not name.startswith("encoder")]
    widest = max((max(layer.weight.shape[:2]) for layer in layers), default=32)
    return 4 * (_KEPT * widest * max(len(layers), 16) if kept else _PASSING * widest)


def chunk_within(memory: int | str | None, each: int, most: int) -> int:
    """As many items of ``each`` bytes as fit into half of ``memory`` (None: any number), at most ``most``."""
    return most if memory is None else max(_SMALLEST_CHUNK, min(most, parse_size(memory) // (2 * each)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the device or the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def in_chunks(count: int, chunk: int, work: Callable[[slice], None]) -> int:
    """Call ``work`` with slices that cover ``range(count)``; after a failed allocation again, with half as many.

    Args:
        count: items.
        chunk: items at once to begin with.
        work: treats a slice; must bear being called twice with the same items.

    Returns:
        The chunk that worked in the end, for the next time.

    Raises:
        MemoryError, torch.OutOfMemoryError: even 1024 items do not fit.
    """
    start = 0
    while start < count:
        try:
            work(slice(start, min(start + chunk, count)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or chunk <= _SMALLEST_CHUNK:
                raise
            chunk = max(_SMALLEST_CHUNK, chunk // 2)
            _log.warning("out of memory: continuing with %d at a time", chunk)
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
            continue
        start += chunk
    return chunk
