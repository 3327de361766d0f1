# SPDX-License-Identifier: MIT
"""Losses on occupancy logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def occupancy_loss(
    logits: Tensor, occupancy: Tensor, *, reduction: str = "mean", positive_weight: float = 1.0
) -> Tensor:
    """Binary cross-entropy of occupancy logits (Mescheder et al. 2019, eq. 3).

    Args:
        logits: (B, M).
        occupancy: (B, M), 0 outside and 1 inside.
        reduction: ``"mean"`` over all queries, or ``"sum"`` over the queries of a shape and mean over shapes, which is
            the ONet family's loss.
        positive_weight: factor on the occupied queries.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ or the reduction is unknown.
    """
    if logits.shape != occupancy.shape:
        raise ValueError(
            f"occupancy_loss: expected `logits` and `occupancy` of one shape (B, M), got {tuple(logits.shape)} and "
            f"{tuple(occupancy.shape)}"
        )
    weight = None if positive_weight == 1.0 else torch.as_tensor(positive_weight, device=logits.device)
    loss = functional.binary_cross_entropy_with_logits(
        logits.float(), occupancy.float(), pos_weight=weight, reduction="none"
    )
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum(-1).mean()
    raise ValueError(f"occupancy_loss: expected `reduction` 'mean' or 'sum', got {reduction!r}")


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float, *, reduction: str = "mean") -> Tensor:
    """Divergence of softened occupancies from a teacher's (Hinton et al., 2015, section 2, for two classes).

    Args:
        logits: (B, M) of the student.
        wanted: (B, M) of the teacher.
        temperature: both logits are divided by it; the result is multiplied by its square, which keeps the gradients'
            size.
        reduction: see :func:`occupancy_loss`.

    Returns:
        A scalar, 0 where both agree.
    """
    soft = torch.sigmoid(wanted.float() / temperature)
    floor = functional.binary_cross_entropy(soft, soft, reduction="none")
    cross = functional.binary_cross_entropy_with_logits(logits.float() / temperature, soft, reduction="none")
    loss = temperature**2 * (cross - floor)
    return loss.mean() if reduction == "mean" else loss.sum(-1).mean()


def overlap(logits: Tensor, occupancy: Tensor, thresholds: Tensor) -> Tensor:
    """Intersection over union at several thresholds on the probability.

    Args:
        logits: (B, M).
        occupancy: (B, M) of 0 and 1.
        thresholds: (T,) probabilities in (0, 1).

    Returns:
        (B, T); 1 where both sets are empty.
    """
    truth = occupancy[:, None] > 0.5
    found = logits.float()[:, None] >= torch.logit(thresholds.to(logits.device).float())[:, None]
    both = (truth & found).sum(-1).float()
    either = (truth | found).sum(-1).float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))
