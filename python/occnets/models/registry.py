# SPDX-License-Identifier: MIT
"""From a configuration to a network: the ``method`` key names the module that builds it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from occnets.models.int8 import quantise_encoder
from occnets.models.options import nearest_hint

METHODS: dict[str, str] = {
    "conv_onet": "occnets.models.convonet",
    "onet": "occnets.models.onet",
    "dynamic_planes_conv_onet": "occnets.models.dpconvonet",
    "transonet": "occnets.models.transonet",
}
"""Family method name to the module whose ``build(config)`` makes the network."""

# The family's voxel files of ConvONet say "onet"; their encoder name tells what they are.
_CONVONET_ENCODERS = frozenset(
    {"pointnet_local_pool", "pointnet_crop_local_pool", "pointnet_plus_plus", "voxel_simple_local"}
)


def method_of(config: Mapping[str, Any]) -> str:
    """Method of a configuration.

    ConvONet files that call themselves ``onet`` are recognised by their encoder. TransONet's files call themselves
    DPConvONet; they are recognised by having no U-Net on one plane of 32², the only size the published code runs with.

    Raises:
        ValueError: no method, or one that no module builds.
    """
    method = config.get("method")
    model = config.get("model") or {}
    if method == "onet" and model.get("encoder") in _CONVONET_ENCODERS:
        return "conv_onet"
    if method == "dynamic_planes_conv_onet" and _is_transonet(model):
        return "transonet"
    if method not in METHODS:
        raise ValueError(
            f"build_model: config['method'] must be one of {', '.join(METHODS)}, got {method!r}; "
            f"{nearest_hint(str(method), METHODS)}".rstrip("; ")
        )
    return str(method)


def _is_transonet(model: Mapping[str, Any]) -> bool:
    kwargs = model.get("encoder_kwargs") or {}
    dynamic = model.get("encoder") == "dynamic_pointnet_local_pool"
    return dynamic and kwargs.get("unet") is False and kwargs.get("plane_resolution") == model.get("c_dim") == 32


def build_model(config: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build the network a configuration describes, freshly initialised.

    Args:
        config: with the keys ``method``, ``model`` and ``data`` of the family's files. ``model.quantization: int8``, an
            extension, keeps the encoder's weights in eight bits.
        options: passed to the method's ``build``; ``whole_scene=True`` for crop models.

    Returns:
        A network with ``encode(inputs)``, ``decode(query, features)`` and ``forward(query, inputs)``.

    Raises:
        ValueError: unknown method, module name or option, naming the nearest known one.
    """
    quantization = (config.get("model") or {}).get("quantization")
    if quantization not in (None, "int8"):
        raise ValueError(f"build_model: model.quantization must be 'int8' or absent, got {quantization!r}")
    module = importlib.import_module(METHODS[method_of(config)])
    model: nn.Module = module.build(config, **options)
    if quantization is not None:
        quantise_encoder(model)
    return model
