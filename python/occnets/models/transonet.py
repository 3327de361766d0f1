# SPDX-License-Identifier: MIT
"""TransONet (Tonti and Amerini, Lightweight Transformer Occupancy Networks, GRAPP 2025): the networks' construction.

Three networks: that of the published code (:mod:`occnets.models.transonet_published`), the paper's idea with token
pruning that works (:mod:`occnets.models.transonet_pruning`), and a convolutional one for small devices
(:mod:`occnets.models.transonet_light`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from occnets.models import dynamic_encoders, transonet_light, transonet_pruning, transonet_published
from occnets.models.dpconvonet import DynamicPlaneNetwork, assemble

ENCODERS: dict[str, tuple[type, type[nn.Module]]] = {
    "dynamic_pointnet_local_pool": (dynamic_encoders.DynamicPoolOptions, transonet_published.PublishedEncoder),
    "pruning_transformer": (transonet_pruning.PruningOptions, transonet_pruning.PruningEncoder),
    "orthogonal_pool": (transonet_light.OrthogonalPoolOptions, transonet_light.OrthogonalPoolPointnet),
}
"""Encoder names: options and module."""

DECODERS: dict[str, tuple[type, type[nn.Module]]] = {
    "dynamic_simple_local": (dynamic_encoders.EncodedDecoderOptions, transonet_published.PublishedDecoder),
    "dynamic_local": (dynamic_encoders.EncodedDecoderOptions, dynamic_encoders.DynamicLocalDecoder),
}
"""Decoder names: options and module."""

_PAIRS = {
    "dynamic_pointnet_local_pool": "dynamic_simple_local",
    "pruning_transformer": "dynamic_local",
    "orthogonal_pool": "dynamic_local",
}


class TransONet(DynamicPlaneNetwork):
    """Encoder to planes chosen per cloud, decoder from planes to occupancy logits."""


def build(config: Mapping[str, Any]) -> TransONet:
    """Build a network from the ``model`` and ``data`` sections of a configuration.

    Args:
        config: see :func:`occnets.models.dpconvonet.build`.

    Raises:
        ValueError: an unknown module or option, naming the nearest known one; an encoder and decoder that do not go
            together; a setting the published network does not run with.
    """
    encoder, decoder = assemble(config, ENCODERS, DECODERS, _PAIRS)
    return TransONet(decoder, encoder)
