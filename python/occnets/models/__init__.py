# SPDX-License-Identifier: MIT
"""Networks. ``build_model(config)`` makes one; the modules hold the parts."""

from occnets.models.registry import build_model

__all__ = ["build_model"]
