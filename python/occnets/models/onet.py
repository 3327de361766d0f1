# SPDX-License-Identifier: MIT
"""Occupancy Networks (Mescheder et al., CVPR 2019): the model and its construction from a configuration.

One vector ``c`` describes the input and one latent code ``z`` what the input leaves open; the decoder maps both and a
query to a logit. Letters: B batch, M queries, C condition, Z latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models import image_encoders, onet_decoders, onet_encoders
from occnets.models.fused_conditional import fuse_conditional
from occnets.models.latent import (
    LatentEncoder,
    LatentOptions,
    interpolate_latents,
    kl_to_prior,
    sample_normal,
    sample_prior,
)
from occnets.models.options import known_options, make_options, nearest_hint

Maker = Callable[[Any], nn.Module]


def _coordinate_voxels(options: onet_encoders.VoxelGridOptions) -> nn.Module:
    return onet_encoders.VoxelEncoder(c_dim=options.c_dim, dim=options.dim, coordinates=True)


ENCODERS: dict[str, tuple[type, Maker]] = {
    "pointnet_simple": (onet_encoders.PointNetOptions, onet_encoders.SimplePointNet),
    "pointnet_resnet": (onet_encoders.PointNetOptions, onet_encoders.ResnetPointNet),
    "voxel_simple": (onet_encoders.VoxelGridOptions, onet_encoders.VoxelEncoder),
    "voxel_coord": (onet_encoders.VoxelGridOptions, _coordinate_voxels),
    "idx": (onet_encoders.IndexOptions, onet_encoders.IndexEncoder),
    "image_pose": (image_encoders.PosedImageOptions, image_encoders.PosedImageEncoder),
    **image_encoders.IMAGE_ENCODERS,
}
"""Encoder names of the family, and own ones: options and maker."""

DECODERS: dict[str, tuple[type, Maker]] = {
    "simple": (onet_decoders.FCOptions, onet_decoders.FCDecoder),
    "cbatchnorm": (onet_decoders.CBNOptions, onet_decoders.CBNDecoder),
    "cbatchnorm2": (onet_decoders.CBN2Options, onet_decoders.CBN2Decoder),
    "cbatchnorm_noresnet": (onet_decoders.PlainOptions, onet_decoders.CBNPlainDecoder),
    "batchnorm": (onet_decoders.PlainOptions, onet_decoders.BNDecoder),
}
"""Decoder names of the family: options and maker."""

LATENT_ENCODERS: dict[str, tuple[type, Maker]] = {"simple": (LatentOptions, LatentEncoder)}
"""Latent encoder names of the family: options and maker."""


class OccupancyNetwork(nn.Module):
    """Encoder to one vector, decoder from that vector to occupancy logits, and perhaps a latent code.

    Sub-modules are registered in the family's order, on which the state of a resumed optimiser depends.

    Args:
        decoder: maps (queries, features) to logits.
        encoder: maps an input to the condition; ``None`` for unconditional models.
        encoder_latent: posterior of the latent code; ``None`` for models without one.
    """

    def __init__(
        self, decoder: nn.Module, encoder: nn.Module | None = None, encoder_latent: LatentEncoder | None = None
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder_latent = encoder_latent
        self.encoder = encoder
        self.z_dim = 0 if encoder_latent is None else encoder_latent.options.z_dim

    def encode(
        self, inputs: Any = None, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Features of a batch of inputs.

        Args:
            inputs: what the encoder takes: points (B, N, 3), voxels (B, 32, 32, 32), images (B, 3, H, W), indices (B,),
                or a mapping with ``image`` and ``pose``. Without an encoder only its length counts; ``None`` is one.
            sample: draw the latent code from the prior instead of taking the prior's mean, zero.
            generator: of random numbers for ``sample``.

        Returns:
            ``c`` (B, C) and ``z`` (B, Z).
        """
        if self.encoder is None:
            c = self._like().new_zeros((1 if inputs is None else len(inputs), 0))
        else:
            c = self.encoder(inputs)
        if sample:
            return {"c": c, "z": sample_prior(len(c), self.z_dim, generator=generator, like=c)}
        return {"c": c, "z": c.new_zeros((len(c), self.z_dim))}

    def decode(self, query: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """Occupancy logits (B, M) at queries (B, M, 3).

        In inference (evaluation mode, gradients off) the fused kernel is used where it can take the decoder; see
        :func:`occnets.models.fused_conditional.fuse_conditional`.
        """
        if not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            field = fuse_conditional(self.decoder, features)
            if field is not None:
                return field(query)
        return self.decoder(query, features)

    def forward(
        self, query: Tensor, inputs: Any = None, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode the inputs and decode the queries."""
        if self.encoder is None and inputs is None:
            inputs = query
        return self.decode(query, self.encode(inputs, sample=sample, generator=generator))

    def infer_latent(self, query: Tensor, occupancy: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posterior of the latent code given occupancies.

        Args:
            query: (B, M, 3).
            occupancy: (B, M) in [0, 1].
            c: (B, C) condition of :meth:`encode`, for models with an encoder.

        Returns:
            Mean and logarithm of the standard deviation, (B, Z) each; (B, 0) for a model without latent code.
        """
        if self.encoder_latent is None:
            empty = query.new_zeros((len(query), 0))
            return empty, empty
        return self.encoder_latent(query, occupancy, c)

    def negative_elbo(
        self, query: Tensor, occupancy: Tensor, inputs: Any = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two terms whose sum is the training loss (Mescheder et al., CVPR 2019, equations 3 and 5).

        Args:
            query: (B, M, 3).
            occupancy: (B, M), 0 or 1.
            inputs: see :meth:`encode`.
            generator: of random numbers for the latent code.

        Returns:
            Cross-entropy, summed over the queries, and the divergence of the latent code's posterior from the prior;
            both are means over the batch, in nats.
        """
        logits, terms = self.training_outputs(query, inputs, occupancy, generator=generator)
        entropy = functional.binary_cross_entropy_with_logits(logits, occupancy, reduction="none")
        return entropy.sum(dim=1).mean(), terms.get("kl", logits.new_zeros(()))

    def training_outputs(
        self, query: Tensor, inputs: Any, occupancy: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a training step needs of the model: logits of a latent code drawn from its posterior.

        Args:
            query: (B, M, 3).
            inputs: see :meth:`encode`; unconditional models look at nothing but its length, or at none.
            occupancy: (B, M), 0 or 1.
            generator: of random numbers for the latent code.

        Returns:
            Logits (B, M), and with a latent code ``kl``, the mean over the batch of the divergence of its posterior
            from the prior, in nats, which is added to the cross-entropy summed over a shape's queries.
        """
        c = self.encode(query if inputs is None else inputs)["c"]
        mean, logstd = self.infer_latent(query, occupancy, c)
        logits = self.decode(query, {"c": c, "z": sample_normal(mean, logstd, generator)})
        return logits, {"kl": kl_to_prior(mean, logstd).mean()} if self.z_dim else {}

    def generate(self, count: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Features of ``count`` shapes drawn from the prior of an unconditional model.

        Raises:
            ValueError: the model has an encoder, or no latent code.
        """
        self._need_unconditional("generate")
        return self.from_latent(sample_prior(count, self.z_dim, generator=generator, like=self._like()))

    def interpolate(self, start: Tensor, end: Tensor, steps: int, mode: str = "spherical") -> dict[str, Tensor]:
        """Features of the shapes between two latent codes (Z,); see :func:`occnets.models.latent.interpolate_latents`.

        Raises:
            ValueError: the model has an encoder, or no latent code; or the codes do not fit.
        """
        self._need_unconditional("interpolate")
        return self.from_latent(interpolate_latents(start, end, steps, mode))

    def from_latent(self, z: Tensor) -> dict[str, Tensor]:
        """Features of the shapes of latent codes (B, Z).

        Raises:
            ValueError: the model has an encoder, or no latent code; or the codes do not fit.
        """
        self._need_unconditional("from_latent")
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"OccupancyNetwork.from_latent: `z` must be (B, {self.z_dim}), got {tuple(z.shape)}")
        return {"c": z.new_zeros((len(z), 0)), "z": z}

    def _need_unconditional(self, what: str) -> None:
        if self.encoder is not None or not self.z_dim:
            kind = "has an encoder" if self.encoder is not None else "has no latent code"
            raise ValueError(
                f"OccupancyNetwork.{what}: needs an unconditional model with a latent code, but this one {kind}; "
                f"use encode(inputs, sample=True)"
            )

    def _like(self) -> Tensor:
        return next(self.decoder.parameters())


def build(config: Mapping[str, Any]) -> OccupancyNetwork:
    """Build a network from the ``model`` and ``data`` sections of a family configuration.

    Args:
        config: with ``model`` (decoder, encoder, encoder_latent, c_dim, z_dim and the three ``*_kwargs``) and ``data``
            (dim). Without an encoder the condition has no channels, whatever ``c_dim`` says. ``z_dim`` defaults to 0
            without a latent encoder and to the family's 64 with one.

    Raises:
        ValueError: an unknown module or option, naming the nearest known one; a latent code without latent encoder;
            ``use_camera``.
        ImportError: an image encoder needs ``timm``, which is not installed.
    """
    model = config.get("model") or {}
    dim = (config.get("data") or {}).get("dim", 3)
    if model.get("use_camera"):
        raise ValueError("model.use_camera belongs to Pixel2Mesh; for a camera's pose take the encoder image_pose")
    latent_name = model.get("encoder_latent")
    z_dim = model.get("z_dim")
    z_dim = (64 if latent_name else 0) if z_dim is None else z_dim
    if bool(z_dim) != bool(latent_name):
        raise ValueError(
            f"model.z_dim is {z_dim} but model.encoder_latent is {latent_name!r}; set z_dim: 0 and encoder_latent: "
            f"null, or a positive z_dim and one of {', '.join(LATENT_ENCODERS)}"
        )
    encoder = None
    if model.get("encoder") is not None:
        shared = {"c_dim": model.get("c_dim", 512), "dim": dim}
        encoder = _make(ENCODERS, model, "encoder", shared)
    shared = {"dim": dim, "z_dim": z_dim, "c_dim": 0 if encoder is None else encoder.c_dim}
    decoder = _make(DECODERS, model, "decoder", shared)
    latent = _make(LATENT_ENCODERS, model, "encoder_latent", shared) if latent_name else None
    return OccupancyNetwork(decoder, encoder, latent)


def _make(table: Mapping[str, tuple[type, Maker]], model: Mapping[str, Any], part: str, shared: dict[str, Any]) -> Any:
    """One module: shared values that it has options for, then its own ``*_kwargs``, which are all checked."""
    name = model.get(part)
    if name not in table:
        raise ValueError(f"model.{part}: unknown name {name!r}; {nearest_hint(name, table)}known: {', '.join(table)}.")
    options, maker = table[name]
    fields = {key: value for key, value in shared.items() if key in known_options(options)}
    return maker(make_options(options, fields | dict(model.get(f"{part}_kwargs") or {}), f"model.{part}_kwargs"))
