# SPDX-License-Identifier: MIT
"""Starts a training from the weights of another model, also where it has group norms or more levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from occnets.config import ConfigError
from occnets.models.norm import average_norms
from occnets.models.unet3d_light import ResidualBlock3d, UNet3DLight


def warm_start(model: nn.Module, name: str, batches: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Take over every weight of a pre-trained model that has a place in ``model``.

    Levels of a ``UNet3DLight`` that are missing here are left out at the bottom. Its group norms, where ``model`` has
    none, become the fixed scale and shift they have on average over ``batches``, moved into the next convolution.

    Args:
        model: changed in place.
        name: bundled model or model folder.
        batches: inputs of the coming training, ``inputs`` (B, N, 3).

    Returns:
        Names of the parameters that were not found and keep their random values.

    Raises:
        ConfigError: no parameter fits.
    """
    from occnets.checkpoints import load_pretrained

    source, _ = load_pretrained(name)
    source.eval()
    state = dict(source.state_dict())
    here, there = (getattr(getattr(each, "encoder", None), "unet3d", None) for each in (model, source))
    if isinstance(here, UNet3DLight) and isinstance(there, UNet3DLight):
        if here.options.norm == "none" and there.options.norm == "group":
            state |= _folded(source, there, batches)
        state = _without_lowest(state, len(there.up) - len(here.up), "encoder.unet3d.")
    own = dict(model.named_parameters())
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    fitting = {key: value for key, value in fitting.items() if own[key].requires_grad}
    if not fitting:
        raise ConfigError(f"run.initial: '{name}' has no weights of the names and shapes of this model")
    with torch.no_grad():
        for key, value in fitting.items():
            own[key].copy_(value)
    return [key for key, value in own.items() if value.requires_grad and key not in fitting]


def _folded(source: nn.Module, unet: UNet3DLight, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """First convolutions of all blocks with their norm's average scale and shift in them."""

    def run() -> None:
        for batch in batches:
            source.encode(batch["inputs"])

    fixed = average_norms(unet, run)
    state = {}
    for name, block in unet.named_modules():
        if not isinstance(block, ResidualBlock3d):
            continue
        norm, weight = fixed[f"{name}.norm"], block.conv1.weight.detach()
        state[f"encoder.unet3d.{name}.conv1.weight"] = weight * norm.scale[:, None, None, None]
        state[f"encoder.unet3d.{name}.conv1.bias"] = torch.einsum("oixyz,i->o", weight, norm.shift)
    return state


def _without_lowest(state: Mapping[str, Tensor], levels: int, prefix: str) -> dict[str, Tensor]:
    """The lists of the way up begin at the lowest level: drop the first ``levels`` and number the rest anew."""
    if levels <= 0:
        return dict(state)
    found = {}
    for key, value in state.items():
        part, _, rest = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and part in ("up", "reduce"):
            number, _, rest = rest.partition(".")
            if int(number) >= levels:
                found[f"{prefix}{part}.{int(number) - levels}.{rest}"] = value
        else:
            found[key] = value
    return found
