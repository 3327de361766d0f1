# SPDX-License-Identifier: MIT
"""Half-precision inference: the encoder rounds, everything that is decoded from its features does not.

How far logits move, as their mean difference over their standard deviation at random queries, and how many change
sides of the threshold: the bundled model 0.15 % and none (bf16), 0.02 % and none (fp16); every other family with random
weights, where more of the space lies near the threshold, at most 10 % and 2.5 % (bf16), 2 % and 1 % (fp16). It is for
GPUs: on a CPU with AVX2 only, encoding takes 4 to 10 times as long as in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of precisions and what the encoder's matrix products and convolutions run in; None leaves them as they are."""


def check_precision(precision: str) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: with the known ones.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def encode(model: Any, inputs: Any, precision: str = "fp32") -> Any:
    """Features of a batch of inputs, in float32 whatever the encoder ran in.

    With ``"bf16"`` or ``"fp16"`` the encoder runs under autocast: products and convolutions in half precision, sums
    over many values, norms and the choice of planes in float32. Decoders then run in float32 as always: a logit
    decides where the surface is, and half precision resolves it too coarsely.

    Args:
        model: offers ``encode``.
        inputs: a tensor, or a mapping of tensors.
        precision: one of `PRECISIONS`.

    Raises:
        ValueError: unknown precision; or the features overflowed, as float16 does beyond 65504.
    """
    check_precision(precision)
    dtype = PRECISIONS[precision]
    if dtype is None:
        return model.encode(inputs)
    device = next(_tensors(inputs)).device
    with torch.autocast(device.type, dtype=dtype):
        features = model.encode(inputs)
    features = {name: value.float() if value.is_floating_point() else value for name, value in features.items()}
    broken = [name for name, value in features.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(
            f"the features {', '.join(broken)} are not finite in {precision}; take bf16, which has the range of fp32, "
            f"or fp32"
        )
    return features


def _tensors(inputs: Any) -> Any:
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return (value for value in values if isinstance(value, Tensor))
