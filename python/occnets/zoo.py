# SPDX-License-Identifier: MIT
"""Networks by name: the packaged configurations and the bundled pre-trained models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from occnets.checkpoints import CONFIG_NAME, WEIGHTS_FOLDER, load_pretrained, pretrained_names
from occnets.config import config_names, load_config
from occnets.models import build_model
from occnets.models.registry import method_of
from occnets.released import Release, find_release

# Counted with timm 1.0, for installations without it.
_TIMM_PARAMETERS = {
    "onet-img-convnext-tiny": 30_123_617,
    "onet-img-efficientnet-b0": 6_442_109,
    "onet-img-efficientnet-b1": 8_947_745,
    "onet-img-efficientnet-b5": 30_971_953,
    "onet-img-efficientnet-b7": 66_549_201,
    "onet-img-pyramid": 86_223_393,
    "onet-img-pyramid-pose": 86_404_161,
}


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a named model without loading it.

    Attributes:
        name: as given to :func:`create_model`.
        pretrained: comes with weights.
        family: method of its configuration: ``onet``, ``conv_onet``, ``dynamic_planes_conv_onet`` or ``transonet``.
        release: the original authors' weights for it, or ``None``.
        parameters: number of parameters; ``None`` if a library it is made of is not installed and nobody counted them.
        input_type: what it reads: ``pointcloud``, ``voxels``, ``img``, ...; ``none`` for unconditional models.
        config: its full configuration.
        missing: what to install before it can be made; empty if nothing is missing.
    """

    name: str
    pretrained: bool
    parameters: int | None
    input_type: str
    config: dict[str, Any]
    missing: str = ""
    family: str = ""
    release: Release | None = None

    @property
    def weights(self) -> str:
        """``"bundled"``, ``"released"`` (downloaded when asked for), ``"by hand"`` (released, but programs cannot fetch
        it) or ``"none"``: only the architecture is known."""
        if self.pretrained:
            return "bundled"
        if self.release is None:
            return "none"
        return "released" if self.release.url else "by hand"


def create_model(source: str | Path | Mapping[str, Any], **options: Any) -> nn.Module:
    """Make a network.

    Args:
        source: name of a bundled pre-trained model (loaded with its weights, in evaluation mode), name of a packaged
            configuration, a YAML file of the family, or a mapping (all freshly initialised).
        options: passed to the method's ``build``, e.g. ``whole_scene=True`` for crop models.

    Returns:
        A network with ``encode(inputs)``, ``decode(query, features)`` and ``forward(query, inputs)``.

    Raises:
        FileNotFoundError: unknown name; the message lists the known ones.
        ValueError: a key or option that does not exist, with the nearest known name.

    Example:
        >>> model = create_model("convonet-shapenet-3plane")
        >>> sum(p.numel() for p in model.parameters())
        1978209
    """
    if isinstance(source, str) and source in pretrained_names():
        return load_pretrained(source)[0]
    return build_model(load_config(source), **options)


def list_models() -> list[str]:
    """Names that :func:`create_model` takes: bundled pre-trained models first, then packaged configurations."""
    bundled = pretrained_names()
    return [*bundled, *(name for name in config_names() if name not in bundled)]


def model_info(name: str) -> ModelInfo:
    """Describe a named model; its parameters are counted without allocating them."""
    pretrained = name in pretrained_names()
    config = load_config(WEIGHTS_FOLDER / name / CONFIG_NAME if pretrained else name)
    count, missing = None, ""
    try:
        with torch.device("meta"):
            model = build_model(config)
        count = sum(parameter.numel() for parameter in model.parameters())
    except ImportError as error:
        count, missing = _TIMM_PARAMETERS.get(name), str(error)
    reads = str(config["data"]["input_type"] or "none")
    release = None if pretrained else find_release(name)
    return ModelInfo(name, pretrained, count, reads, config, missing, method_of(config), release)
