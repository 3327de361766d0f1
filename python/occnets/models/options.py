# SPDX-License-Identifier: MIT
"""Strict keyword options: every network takes a frozen dataclass, and a misspelt key names its nearest neighbour."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def nearest_hint(key: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the closest of ``known``, or an empty string when nothing is close."""
    match = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.6)
    return f"did you mean '{match[0]}'? " if match else ""


def known_options(cls: type) -> tuple[str, ...]:
    """Names of the fields of an options dataclass, in order."""
    return tuple(field.name for field in dataclasses.fields(cls))


def make_options(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build ``cls`` from a mapping and refuse keys it does not have.

    Args:
        cls: a dataclass whose fields are the accepted options.
        values: option name to value; missing names take the field's default.
        where: where the mapping comes from, for the message (``"model.encoder_kwargs"``).

    Raises:
        ValueError: an unknown key; the message names the nearest known one and lists all of them.
    """
    known = known_options(cls)
    for key in values:
        if key not in known:
            raise ValueError(
                f"{where}: unknown option {key!r} for {cls.__name__}; {nearest_hint(key, known)}"
                f"known options: {', '.join(known)}."
            )
    return cls(**dict(values))
