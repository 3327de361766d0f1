# SPDX-License-Identifier: MIT
"""Dynamic Plane Convolutional Occupancy Networks (Lionar et al., WACV 2021): the model and its construction.

The canonical set-up (``local_pool`` + ``simple_local``) is ConvONet with positional encoding as an option. Traps of the
family's files: both ``shapenet_dynamic_5plane`` files say three planes, so weights trained with them belong to
``dpconvonet-shapenet-dynamic-3plane``; two room files with positional encoding encode in the decoder only; ``z_dim``
other than 0 never worked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from occnets.models import dynamic_encoders as parts
from occnets.models.convonet import ConvolutionalOccupancyNetwork
from occnets.models.dynamic import SIMILARITY_WEIGHT, similarity_loss
from occnets.models.options import known_options, make_options, nearest_hint

Table = Mapping[str, tuple[type, type[nn.Module]]]

ENCODERS: dict[str, tuple[type, type[nn.Module]]] = {
    "local_pool": (parts.CanonicalOptions, parts.EncodedLocalPoolPointnet),
    "dynamic_pointnet_local_pool": (parts.DynamicPoolOptions, parts.DynamicLocalPoolPointnet),
    "hybrid_pointnet_local_pool": (parts.DynamicPoolOptions, parts.HybridLocalPoolPointnet),
}
"""Encoder names of the family: options and module."""

DECODERS: dict[str, tuple[type, type[nn.Module]]] = {
    "simple_local": (parts.EncodedDecoderOptions, parts.EncodedLocalDecoder),
    "dynamic_simple_local": (parts.EncodedDecoderOptions, parts.DynamicLocalDecoder),
    "hybrid_simple_local": (parts.EncodedDecoderOptions, parts.HybridLocalDecoder),
}
"""Decoder names of the family: options and module."""

_PAIRS = {
    "local_pool": "simple_local",
    "dynamic_pointnet_local_pool": "dynamic_simple_local",
    "hybrid_pointnet_local_pool": "hybrid_simple_local",
}


class DynamicPlaneNetwork(ConvolutionalOccupancyNetwork):
    """Encoder to planes chosen per cloud, decoder from planes to occupancy logits.

    ``encode`` gives the dictionary of :mod:`occnets.models.dynamic_encoders` (canonical set-ups: that of ConvONet).
    """

    def auxiliary_losses(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms that training adds to the cross-entropy, which the family sums over a shape's queries.

        Args:
            features: output of ``encode``.

        Returns:
            ``similarity``, where the model has dynamic planes.
        """
        if "normals" not in features:
            return {}
        return {"similarity": SIMILARITY_WEIGHT * similarity_loss(features["normals"])}


def build(config: Mapping[str, Any]) -> DynamicPlaneNetwork:
    """Build a network from the ``model`` and ``data`` sections of a family configuration.

    Args:
        config: with ``model`` (decoder, encoder, c_dim, decoder_kwargs, encoder_kwargs, z_dim, registration) and
            ``data`` (dim, padding).

    Raises:
        ValueError: an unknown module or option, naming the nearest known one; an encoder and decoder that do not go
            together; ``z_dim`` other than 0.
    """
    encoder, decoder = assemble(config, ENCODERS, DECODERS, _PAIRS)
    return DynamicPlaneNetwork(decoder, encoder)


def assemble(
    config: Mapping[str, Any], encoders: Table, decoders: Table, pairs: Mapping[str, str]
) -> tuple[nn.Module, nn.Module]:
    """Make the encoder and the decoder a configuration names.

    Args:
        config: see :func:`build`.
        encoders: encoder names, options and modules.
        decoders: decoder names, options and modules.
        pairs: the decoder that reads each encoder's features.

    Raises:
        ValueError: see :func:`build`.
    """
    model = config.get("model") or {}
    data = config.get("data") or {}
    if model.get("z_dim"):
        raise ValueError(f"model.z_dim: these networks have no latent code; it must be 0, got {model['z_dim']!r}")
    chosen, reader = model.get("encoder"), model.get("decoder")
    for where, name, table in (("model.encoder", chosen, encoders), ("model.decoder", reader, decoders)):
        if name not in table:
            raise ValueError(f"{where}: unknown name {name!r}; {nearest_hint(name, table)}known: {', '.join(table)}.")
    if pairs[chosen] != reader:
        raise ValueError(f"model.decoder: encoder {chosen!r} needs the decoder {pairs[chosen]!r}, got {reader!r}")
    shared = {"c_dim": model.get("c_dim", 512), "dim": data.get("dim", 3), "padding": data.get("padding", 0.1)}
    if model.get("registration") is not None:
        shared["registration"] = model["registration"]
    modules = []
    for (options, module), own, where in (
        (encoders[chosen], model.get("encoder_kwargs"), "model.encoder_kwargs"),
        (decoders[reader], model.get("decoder_kwargs"), "model.decoder_kwargs"),
    ):
        fields = {key: value for key, value in shared.items() if key in known_options(options)} | dict(own or {})
        modules.append(module(make_options(options, fields, where)))
    return modules[0], modules[1]
