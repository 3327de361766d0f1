# SPDX-License-Identifier: MIT
"""Convolutional Occupancy Networks (Peng et al., ECCV 2020): the model and its construction from a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from occnets.models import crop, decoders, encoders, pointnet2
from occnets.models.fused import fuse
from occnets.models.maps import map_names
from occnets.models.options import known_options, make_options, nearest_hint

ENCODERS: dict[str, tuple[type, type[nn.Module]]] = {
    "pointnet_local_pool": (encoders.LocalPoolOptions, encoders.LocalPoolPointnet),
    "pointnet_crop_local_pool": (crop.PatchLocalPoolOptions, crop.PatchLocalPoolPointnet),
    "pointnet_plus_plus": (pointnet2.PointNetPlusPlusOptions, pointnet2.PointNetPlusPlus),
    "voxel_simple_local": (encoders.VoxelOptions, encoders.LocalVoxelEncoder),
}
"""Encoder names of the family: options and module."""

DECODERS: dict[str, tuple[type, type[nn.Module]]] = {
    "simple_local": (decoders.DecoderOptions, decoders.LocalDecoder),
    "simple_local_crop": (crop.PatchDecoderOptions, crop.PatchLocalDecoder),
    "simple_local_point": (decoders.PointDecoderOptions, decoders.LocalPointDecoder),
}
"""Decoder names of the family: options and module."""

# Values that live outside *_kwargs in a family file and belong to every module that has an option of that name.
_MODEL_LEVEL = ("local_coord", "pos_encoding", "registration")
_DATA_LEVEL = ("unit_size",)


class ConvolutionalOccupancyNetwork(nn.Module):
    """Encoder to feature maps, decoder from feature maps to occupancy logits.

    Args:
        decoder: maps (queries, features) to logits.
        encoder: maps an input to features.
        crop: sizes of the sliding window of a crop model, otherwise ``None``.
    """

    def __init__(self, decoder: nn.Module, encoder: nn.Module, crop: crop.CropSettings | None = None) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = encoder
        self.crop = crop

    def encode(self, inputs: Any) -> dict[str, Tensor]:
        """Features of a batch of inputs.

        Args:
            inputs: points (B, N, 3), voxels (B, X, Y, Z), or for crop models the dictionary of
                :func:`occnets.models.crop.crop_inputs`.

        Returns:
            Maps keyed ``grid``, ``xz``, ``xy``, ``yz`` (those the model has, in that order); PointNet++ models give
            ``points`` (B, N, 3) and ``features`` (B, N, C).
        """
        return self.encoder(inputs)

    def decode(self, query: Any, features: Mapping[str, Tensor]) -> Tensor:
        """Occupancy logits (B, M) at queries (B, M, 3); crop models take :func:`occnets.models.crop.crop_query`.

        In inference (evaluation mode, gradients off) the fused kernel is used where it can take the decoder; see
        :func:`occnets.models.fused.fuse`.
        """
        if not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            field = fuse(self.decoder, features)
            if field is not None:
                return field(query)
        return self.decoder(query, features)

    def forward(self, query: Any, inputs: Any) -> Tensor:
        """Encode the inputs and decode the queries."""
        return self.decode(query, self.encode(inputs))

    def auxiliary_losses(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms that training adds to the cross-entropy, which the family sums over a shape's queries.

        Args:
            features: output of ``encode``.

        Returns:
            Scalars by name; ConvONet has none.
        """
        return {}

    def training_outputs(self, query: Any, inputs: Any, occupancy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a training step needs of the model.

        Args:
            query: (B, M, 3).
            inputs: see :meth:`encode`.
            occupancy: (B, M); only models with a latent code look at it.

        Returns:
            Logits (B, M), and the terms of :meth:`auxiliary_losses`.
        """
        features = self.encode(inputs)
        return self.decode(query, features), self.auxiliary_losses(features)


def build(config: Mapping[str, Any], *, whole_scene: bool = False) -> ConvolutionalOccupancyNetwork:
    """Build a network from the ``model`` and ``data`` sections of a family configuration.

    Args:
        config: with ``model`` (decoder, encoder, c_dim, decoder_kwargs, encoder_kwargs, local_coord, pos_encoding,
            registration) and ``data`` (dim, padding, unit_size, query_vol_size, input_type).
        whole_scene: crop models only: take the resolution of the whole padded cube instead of one sliding window.

    Raises:
        ValueError: an unknown module or option, naming the nearest known one.
    """
    model = config.get("model") or {}
    data = config.get("data") or {}
    shared = {"c_dim": model.get("c_dim", 512), "dim": data.get("dim", 3), "padding": data.get("padding", 0.1)}
    optional = {key: model[key] for key in _MODEL_LEVEL if model.get(key) is not None}
    optional |= {key: data[key] for key in _DATA_LEVEL if data.get(key) is not None}
    encoder_options, encoder_class = _lookup(ENCODERS, model.get("encoder"), "model.encoder")
    decoder_options, decoder_class = _lookup(DECODERS, model.get("decoder"), "model.decoder")
    encoder_fields = _fields(encoder_options, shared, optional, model.get("encoder_kwargs"))
    decoder_fields = _fields(decoder_options, shared, optional, model.get("decoder_kwargs"))
    _refuse_unused(optional, encoder_options, decoder_options)

    window = None
    if model.get("encoder") == "pointnet_crop_local_pool":
        window = crop.crop_settings(data, encoder_fields, whole_scene=whole_scene)
        names = map_names(encoder_fields.get("plane_type", "xz"), "model.encoder_kwargs")
        encoder_fields |= {
            f"{kind}_resolution": window.resolution
            for kind in ("plane", "grid")
            if (kind == "grid" and "grid" in names) or (kind == "plane" and set(names) - {"grid"})
        }
    decoder_fields = _fit_decoder(decoder_options, decoder_fields, encoder_fields, model)
    encoder = encoder_class(make_options(encoder_options, encoder_fields, "model.encoder_kwargs"))
    decoder = decoder_class(make_options(decoder_options, decoder_fields, "model.decoder_kwargs"))
    return ConvolutionalOccupancyNetwork(decoder, encoder, window)


def _lookup(table: Mapping[str, tuple[type, type[nn.Module]]], name: Any, where: str) -> tuple[type, type[nn.Module]]:
    if name not in table:
        raise ValueError(f"{where}: unknown name {name!r}; {nearest_hint(name, table)}known: {', '.join(table)}.")
    return table[name]


def _fields(
    options: type, shared: Mapping[str, Any], optional: Mapping[str, Any], own: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Options of one module: shared values first, then the module's own keys, which are all kept so that unknown ones
    are refused later."""
    known = known_options(options)
    return {key: value for key, value in {**shared, **optional}.items() if key in known} | dict(own or {})


def _refuse_unused(optional: Mapping[str, Any], *options: type) -> None:
    known = {key for cls in options for key in known_options(cls)}
    for key in optional:
        if key not in known:
            section = "data" if key in _DATA_LEVEL else "model"
            raise ValueError(
                f"{section}.{key}: neither {options[0].__name__} nor {options[1].__name__} has this option; "
                f"remove it or choose another encoder and decoder."
            )


def _fit_decoder(
    options: type, decoder: Mapping[str, Any], encoder: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the decoder's channel counts follow the encoder's maps, where the configuration leaves them open."""
    fields = dict(decoder)
    own = model.get("decoder_kwargs") or {}
    kwargs = encoder.get("unet3d_kwargs") or {}
    if "grid" in (encoder.get("plane_type") or ()) and encoder.get("unet3d") and "c_dim" not in own:
        fields["c_dim"] = kwargs.get("out_channels", fields["c_dim"])
    if fields.get("concat_feat") and "num_maps" in known_options(options) and "num_maps" not in own:
        fields["num_maps"] = len(map_names(encoder.get("plane_type", "xz"), "model.encoder_kwargs"))
    return fields


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, buffers not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def settings_of(model: ConvolutionalOccupancyNetwork) -> dict[str, Any]:
    """Options of both halves of a model as plain dictionaries, for reports and saved files."""
    return {
        "encoder": dataclasses.asdict(model.encoder.options),
        "decoder": dataclasses.asdict(model.decoder.options),
    }
