# SPDX-License-Identifier: MIT
"""The field of encoded shapes for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from occkernels import DecoderWeights, QueryBricks, decode, decode_bricks, decode_with_gradient
from occnets.models.decoders import LocalDecoder
from occnets.models.maps import layout_of, stack_planes


class FusedField:
    def __init__(self, model: Any, features: Mapping[str, Tensor]) -> None:
        o = model.decoder.options
        self.weights = DecoderWeights.from_tensors(
            {k: v.detach() for k, v in model.decoder.state_dict().items()}, leaky=o.leaky
        )
        self.layout = layout_of(features, o.padding, o.registration)
        self.maps = {"planes": stack_planes(features), "grid": features.get("grid")}
        self.bytes_per_query = 16

    def __call__(self, query: Tensor) -> Tensor:
        return decode(query, self.weights, self.layout, **self.maps)

    def with_gradient(self, query: Tensor) -> tuple[Tensor, Tensor]:
        return decode_with_gradient(query, self.weights, self.layout, **self.maps)

    def bricks(self, shape: Tensor, corner: Tensor, mask: Tensor, spacing: float, origin: float) -> Tensor:
        return decode_bricks(
            QueryBricks(shape, corner, mask, spacing, origin), self.weights, self.layout, **self.maps
        )


def fused_field(model: Any, features: Mapping[str, Tensor]) -> Any:
    if isinstance(getattr(model, "decoder", None), LocalDecoder) and model.decoder.options.sample_mode == "bilinear":
        with torch.no_grad():
            return FusedField(model, features)
    return lambda query: model.decode(query, features)
