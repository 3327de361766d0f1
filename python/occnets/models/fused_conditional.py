# SPDX-License-Identifier: MIT
"""Inference of Occupancy Networks through the fused kernel: norms folded once a shape, coordinates to logits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from occkernels import ConditionalWeights, decode_conditional
from occnets.models.fused import kept_weights, layers_refusal
from occnets.models.onet_decoders import NormalizedDecoder

_log = logging.getLogger("occnets")


@dataclass(frozen=True)
class ConditionalField:
    """The occupancy field of a batch of encoded inputs. Records no gradients.

    Attributes:
        weights: the decoder without its norms.
        scale, shift: (B, N + 1, H), what the norms do to these shapes.
        offset: (B, H) added to the embedded queries, or None.
        precision: "float32", or "bf16" or "tf32" to permit rounding; see ``occkernels.decode_conditional``.
    """

    weights: ConditionalWeights
    scale: Tensor
    shift: Tensor
    offset: Tensor | None
    precision: str = "float32"

    @torch.no_grad()
    def __call__(self, query: Tensor) -> Tensor:
        """Logits (B, M) at queries (B, M, 3)."""
        return decode_conditional(query, self.weights, self.scale, self.shift, self.offset, precision=self.precision)


def fuse_conditional(
    decoder: nn.Module, features: Mapping[str, Tensor], *, precision: str = "float32"
) -> ConditionalField | None:
    """The field of a decoder in evaluation mode and its condition, or None where the fused kernel cannot take it.

    The reason for a None is logged at debug level (logger ``occnets``). The packed weights are kept until a parameter
    changes.

    Args:
        decoder: a model's ``decoder``; those with batch norms are supported.
        features: ``c`` (B, C) and ``z`` (B, Z) as the model's ``encode`` returns them.
        precision: see :class:`ConditionalField`.
    """
    reason = _refusal(decoder, features)
    if reason is not None:
        _log.debug("decoding without the fused kernel: %s", reason)
        return None
    assert isinstance(decoder, NormalizedDecoder)
    with torch.no_grad():
        weights = kept_weights(decoder, lambda: ConditionalWeights(**decoder.stacked()))
        return ConditionalField(weights, *decoder.folded(features), decoder.offset(features), precision)


def _refusal(decoder: nn.Module, features: Mapping[str, Tensor]) -> str | None:
    """Why the fused kernel cannot take this, or None."""
    if not isinstance(decoder, NormalizedDecoder):
        return f"{type(decoder).__name__} has no fused form"
    reason = layers_refusal(decoder, decoder.options.hidden_size, decoder.options.dim)
    if reason is not None:
        return reason
    if decoder.training:
        return "training mode: the norms depend on the queries"
    dtypes = {values.dtype for values in features.values()}
    return None if dtypes == {torch.float32} else f"features of {', '.join(sorted(map(str, dtypes)))}"
