# SPDX-License-Identifier: MIT
"""Sizes of memory as people write them, chunks that fit into them, and what to do when they do not."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable

import torch

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SMALLEST_CHUNK = 1024
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
