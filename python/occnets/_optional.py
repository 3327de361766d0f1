# SPDX-License-Identifier: MIT
"""One door for optional libraries, so that every missing one gives the same message."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, *, extra: str, why: str = "") -> Any:
    """Import ``module`` or say which extra installs it.

    Args:
        module: dotted import name.
        extra: name of the extra of this distribution that provides it.
        why: what the library is needed for, e.g. ``"to write event files"``.

    Raises:
        ImportError: the library is missing; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        purpose = f" {why}" if why else ""
        raise ImportError(
            f"{module} is needed{purpose} but could not be imported ({error}). "
            f"Install it with: pip install 'occkernels[{extra}]'"
        ) from error
