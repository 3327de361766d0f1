# SPDX-License-Identifier: MIT
"""Smaller networks: pruning of small weights, and weights in eight bits (see also ``distill`` in the training file)."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import ParametrizationList

from occnets.checkpoints import CONFIG_NAME, WEIGHTS_NAME, load_pretrained, save_weights
from occnets.config import merge, save_config, write_text
from occnets.models.int8 import quantise_encoder

CARD_NAME = "README.md"


@dataclass(frozen=True)
class Compressed:
    """What `compress` wrote.

    Attributes:
        folder: the model folder.
        parameters: weights and biases of the network.
        zeros: how many of them are zero.
        before, after: bytes of the weights' tensors in float32, and of the file written.
    """

    folder: Path
    parameters: int
    zeros: int
    before: int
    after: int


def _weights(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Layers with a matrix or kernel called ``weight``."""
    found = []
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None and weight.ndim > 1 and weight.requires_grad:
            found.append((layer, "weight"))
    return found


def prune_small(model: nn.Module, share: float) -> nn.Module:
    """Set the smallest weights of all layers together to zero, in place and for good; biases and norms stay.

    Args:
        model: the network.
        share: part of the weights to drop, in [0, 1).

    Returns:
        The model.

    Raises:
        ValueError: ``share`` is out of range.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"prune_small: `share` must be in [0, 1), got {share}")
    layers = _weights(model)
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=share)
    for layer, name in layers:
        prune.remove(layer, name)
    return model


def sparsity(model: nn.Module) -> float:
    """Part of the weights (matrices and kernels) that is zero."""
    weights = [layer.weight for layer, _ in _weights(model)]
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))


def compress(
    source: str | os.PathLike[str],
    folder: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    share: float = 0.0,
    int8: bool = True,
) -> Compressed:
    """Write a smaller copy of a model as a folder that loads like any other.

    Args:
        source: bundled model, model folder or weights file.
        folder: to write into.
        config: configuration of a weights file.
        share: see `prune_small`; 0 does not prune.
        int8: weights of the encoder in eight bits, the rest in float16; otherwise everything in float16.

    Raises:
        FileNotFoundError, ValueError: the model cannot be read, or ``share`` is out of range.
    """
    model, settings = load_pretrained(source, config=config)
    settings = copy.deepcopy(settings)
    before = sum(p.numel() for p in model.parameters())
    if share:
        prune_small(model, share)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    if int8:
        quantise_encoder(model)
        settings = merge(settings, {"model": {"quantization": "int8"}})
    made = Path(folder)
    made.mkdir(parents=True, exist_ok=True)
    save_weights(_stored(model), made / WEIGHTS_NAME, metadata={"name": made.name})
    save_config(settings, made / CONFIG_NAME)
    result = Compressed(made, before, zeros, 4 * before, (made / WEIGHTS_NAME).stat().st_size)
    write_text(made / CARD_NAME, _card(os.path.basename(os.fspath(source).rstrip("/\\")), result, int8))
    return result


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """The state with floats in half precision, except the scales of int8 weights, which it would flush to zero."""
    scales = {f"{name}.original1" for name, part in model.named_modules() if isinstance(part, ParametrizationList)}
    return {
        name: value.half() if value.is_floating_point() and name not in scales else value
        for name, value in model.state_dict().items()
    }


def _card(source: str, result: Compressed, int8: bool) -> str:
    kind = "int8 weights of the encoder, one scale a channel; the rest float16" if int8 else "float16"
    rows = [
        ("Made from", f"`{source}` by `occnets compress`"),
        ("Parameters", f"{result.parameters:,}, of which {result.zeros / result.parameters:.1%} are zero"),
        ("Stored as", kind),
        ("Size", f"{result.after / 2**20:.2f} MiB; {result.before / 2**20:.2f} MiB in float32"),
    ]
    lines = [f"# {result.folder.name}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    return "\n".join(lines)
