# SPDX-License-Identifier: MIT
"""Shape, dtype and device checks with one message format: function, argument, expected, got."""

from __future__ import annotations

from torch import Tensor

from occkernels._native import DTYPE_CODES


def check_tensor(
    where: str,
    name: str,
    tensor: Tensor,
    pattern: str,
    sizes: dict[str, int] | None = None,
    *,
    like: Tensor | None = None,
    integer: bool = False,
) -> dict[str, int]:
    """Compare a tensor with a pattern such as ``"B N 3"``.

    Args:
        where: public function, for the message.
        name: argument name, for the message.
        tensor: what was given.
        pattern: letters (bound on first use) and numbers, separated by spaces.
        sizes: letters bound by earlier arguments; updated in place.
        like: a tensor whose device must agree.
        integer: expect an integer tensor instead of a floating one.

    Returns:
        ``sizes`` with this tensor's letters added.

    Raises:
        TypeError: not a tensor, or a dtype of the wrong kind.
        ValueError: shape or device disagrees.
    """
    sizes = {} if sizes is None else sizes
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"occkernels.{where}: `{name}` must be a torch.Tensor of shape ({', '.join(pattern.split())}), "
            f"got {type(tensor).__name__}. Convert it with torch.as_tensor."
        )
    letters = pattern.split()
    matches = tensor.dim() == len(letters)
    if matches:
        for letter, size in zip(letters, tensor.shape, strict=True):
            expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            matches = matches and expected == size
    if not matches:
        bound = ", ".join(f"{key}={value}" for key, value in sizes.items())
        raise ValueError(
            f"occkernels.{where}: `{name}` must have shape ({', '.join(letters)})"
            f"{f' with {bound}' if bound else ''}, got {tuple(tensor.shape)}."
        )
    if integer:
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype.itemsize < 4:
            raise TypeError(f"occkernels.{where}: `{name}` must be int32 or int64, got {tensor.dtype}.")
    elif tensor.dtype not in DTYPE_CODES:
        raise TypeError(
            f"occkernels.{where}: `{name}` must be float32, float64, float16 or bfloat16, got {tensor.dtype}. "
            "Convert it first, e.g. with .float()."
        )
    if like is not None and tensor.device != like.device:
        raise ValueError(
            f"occkernels.{where}: `{name}` is on {tensor.device} but must be on {like.device}, where the others are. "
            f"Move it with .to({str(like.device)!r})."
        )
    return sizes
