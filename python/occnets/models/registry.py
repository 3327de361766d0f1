# SPDX-License-Identifier: MIT
"""From a configuration to a network: the ``method`` key names the module that builds it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from occnets.models.options import nearest_hint

METHODS: dict[str, str] = {
    "conv_onet": "occnets.models.convonet",
    "onet": "occnets.models.onet",
}
"""Family method name to the module whose ``build(config)`` makes the network."""

# The family's voxel files of ConvONet say "onet"; their encoder name tells what they are.
_CONVONET_ENCODERS = frozenset(
    {"pointnet_local_pool", "pointnet_crop_local_pool", "pointnet_plus_plus", "voxel_simple_local"}
)


def method_of(config: Mapping[str, Any]) -> str:
    """Method of a configuration; ConvONet files that call themselves ``onet`` are recognised by their encoder.

    Raises:
        ValueError: no method, or one that no module builds.
    """
    method = config.get("method")
    model = config.get("model") or {}
    if method == "onet" and model.get("encoder") in _CONVONET_ENCODERS:
        return "conv_onet"
    if method not in METHODS:
        raise ValueError(
            f"build_model: config['method'] must be one of {', '.join(METHODS)}, got {method!r}; "
            f"{nearest_hint(str(method), METHODS)}".rstrip("; ")
        )
    return str(method)


def build_model(config: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build the network a configuration describes, freshly initialised.

    Args:
        config: with the keys ``method``, ``model`` and ``data`` of the family's files.
        options: passed to the method's ``build``; ``whole_scene=True`` for crop models.

    Returns:
        A network with ``encode(inputs)``, ``decode(query, features)`` and ``forward(query, inputs)``.

    Raises:
        ValueError: unknown method, module name or option, naming the nearest known one.
    """
    module = importlib.import_module(METHODS[method_of(config)])
    return module.build(config, **options)
