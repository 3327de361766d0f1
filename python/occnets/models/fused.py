# SPDX-License-Identifier: MIT
"""Inference through the fused decoder: coordinates to logits in one kernel, where the decoder is within its limits."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from occkernels import (
    DecoderWeights,
    FeatureLayout,
    QueryBricks,
    decode,
    decode_bricks,
    decode_with_gradient,
)
from occnets.models.decoders import LocalDecoder
from occnets.models.dynamic_encoders import DynamicLocalDecoder, EncodedLocalDecoder, HybridLocalDecoder
from occnets.models.maps import layout_of, stack_planes

MAX_HIDDEN = 256
"""Widest decoder the fused kernels take."""

_DYNAMIC = (DynamicLocalDecoder, HybridLocalDecoder)
_FUSED = (LocalDecoder, EncodedLocalDecoder, *_DYNAMIC)  # exactly these: a derived class may compute something else
W = TypeVar("W")
_log = logging.getLogger("occnets")
_Fingerprint = tuple[tuple[int, int], ...]
_packed: weakref.WeakKeyDictionary[nn.Module, tuple[_Fingerprint, Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class FusedField:
    """The occupancy field of a batch of encoded inputs. Records no gradients.

    Attributes:
        weights: the decoder.
        layout: the feature maps.
        planes: (B, P, C, R, R) in channels-last memory, or None.
        grid: (B, C, R, R, R) in channels-last memory, or None.
        precision: "float32", or "bf16" or "tf32" to permit rounding; see ``occkernels.decode``.
        bases: (B, L, 3, 3) frames of the layout's dynamic planes, or None.
        basis_scale: (B, L) divisors of the projected coordinates, or None.
    """

    weights: DecoderWeights
    layout: FeatureLayout
    planes: Tensor | None
    grid: Tensor | None
    precision: str = "float32"
    bases: Tensor | None = None
    basis_scale: Tensor | None = None
    brick_fill: ClassVar[float] = 0.5  # as a coarsest lattice has; bricks of finer levels are mostly empty, and slower

    @torch.no_grad()
    def __call__(self, query: Tensor) -> Tensor:
        """Logits (B, M) at queries (B, M, 3)."""
        return decode(query, self.weights, self.layout, **self._maps())

    @torch.no_grad()
    def with_gradient(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, M) and their gradient to the coordinates, (B, M, 3)."""
        return decode_with_gradient(query, self.weights, self.layout, **self._maps())

    def bricks(self, shape: Tensor, corner: Tensor, mask: Tensor, spacing: float, origin: float) -> Tensor:
        """Logits (K, 512) at the wanted nodes of regular bricks, NaN elsewhere; see ``occkernels.QueryBricks``."""
        bricks = QueryBricks(shape, corner, mask, spacing, origin)
        return decode_bricks(bricks, self.weights, self.layout, **self._maps())

    def _maps(self) -> dict[str, Any]:
        names = ("planes", "grid", "bases", "basis_scale", "precision")
        return {name: getattr(self, name) for name in names}


def fuse(decoder: nn.Module, features: Mapping[str, Tensor], *, precision: str = "float32") -> FusedField | None:
    """The field of a decoder and its feature maps, or None where the fused kernels cannot take it.

    The reason for a None is logged at debug level (logger ``occnets``). The packed weights are kept until a parameter
    changes.

    Args:
        decoder: a model's ``decoder``; :class:`occnets.models.decoders.LocalDecoder` and, without positional encoding,
            the decoders of :mod:`occnets.models.dynamic_encoders` are supported.
        features: maps as the encoder returns them.
        precision: see :class:`FusedField`.
    """
    reason = _refusal(decoder, features)
    if reason is not None:
        _log.debug("decoding without the fused kernel: %s", reason)
        return None
    assert isinstance(decoder, LocalDecoder)
    with torch.no_grad():
        bases, scale = None, None
        if isinstance(decoder, DynamicLocalDecoder):
            planes, grid = features["planes"], None
            layout, bases, scale = decoder.projection(features)
            bases, scale = bases.contiguous(), scale.contiguous()
        else:
            planes, grid = stack_planes(features), features.get("grid")
            layout = layout_of(features, decoder.options.padding, decoder.options.registration)
        if planes is not None:
            planes = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        if grid is not None:
            grid = grid.contiguous(memory_format=torch.channels_last_3d)
        return FusedField(_weights(decoder), layout, planes, grid, precision, bases, scale)


def _refusal(decoder: nn.Module, features: Mapping[str, Tensor]) -> str | None:
    """Why the fused kernels cannot take this, or None."""
    if type(decoder) not in _FUSED:
        return f"{type(decoder).__name__} has no fused form"
    assert isinstance(decoder, LocalDecoder)
    options = decoder.options
    if getattr(options, "pos_encoding", False):
        return "positional encoding of the queries"
    if options.sample_mode != "bilinear":
        return f"sample_mode {options.sample_mode!r}"
    reason = layers_refusal(decoder, options.hidden_size, options.dim)
    if reason is not None:
        return reason
    # c_mat is computed with in float32 whatever the maps are stored in, and "normals" do not matter here.
    dtypes = {values.dtype for name, values in features.items() if name not in ("c_mat", "normals")}
    if len(dtypes) != 1 or torch.float64 in dtypes:
        return f"features of {', '.join(sorted(map(str, dtypes)))}"
    return None


def layers_refusal(decoder: nn.Module, hidden: int, dim: int) -> str | None:
    """Why no fused kernel can run the layers of a decoder, or None."""
    if hidden > MAX_HIDDEN:
        return f"hidden_size {hidden} is more than {MAX_HIDDEN}"
    if dim != 3:
        return f"dim {dim}"
    if any(hook for module in decoder.modules() for hook in (module._forward_hooks, module._forward_pre_hooks)):
        return "the decoder has hooks"
    dtypes = {parameter.dtype for parameter in decoder.parameters()}
    return None if dtypes == {torch.float32} else f"weights of {', '.join(sorted(map(str, dtypes)))}"


def _weights(decoder: LocalDecoder) -> DecoderWeights:
    tensors = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    return kept_weights(decoder, lambda: DecoderWeights.from_tensors(tensors, leaky=decoder.options.leaky))


def kept_weights(decoder: nn.Module, make: Callable[[], W]) -> W:
    """What ``make`` returns for a decoder, kept until one of its parameters changes."""
    parameters = list(decoder.parameters())
    tracked = not any(parameter.is_inference() for parameter in parameters)
    # Tensors made in inference mode count no versions, so a change of theirs would go unseen.
    fingerprint = tuple((each.data_ptr(), each._version) for each in parameters) if tracked else ()
    kept = _packed.get(decoder)
    if kept is not None and tracked and kept[0] == fingerprint:
        return kept[1]
    weights = make()
    _packed[decoder] = (fingerprint, weights)
    return weights
