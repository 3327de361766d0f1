# SPDX-License-Identifier: MIT
"""Weights in and out: safetensors of our own, and the family's ``.pt`` files, read without running their pickles.

A model folder holds ``model.safetensors`` and ``config.yaml``. The bundled pre-trained models are such folders in
``occnets/weights``. Everything is written under a temporary name and then renamed.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from occnets.config import config_names, load_config, save_config
from occnets.download import fetch
from occnets.models import build_model
from occnets.released import Progress, find_release, suggest

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
"""Folder of the bundled pre-trained models, one folder each."""
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.yaml"
_LISTED_KEYS = 12
_WRAPPER = "module"  # no network here has a part of this name
_CONFIG_ENDINGS = (".yaml", ".yml")


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file, what is wrong and what to do."""


@dataclass
class Checkpoint:
    """Content of a weights file.

    Attributes:
        state: parameter and buffer name to tensor, on the CPU.
        extra: everything else: scalars of a family file (``epoch_it``, ``it``, ``loss_val_best``) and its ``optimizer``
            state, or the metadata of a safetensors file.
    """

    state: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def pretrained_names() -> list[str]:
    """Names of the bundled pre-trained models, sorted."""
    return sorted(path.parent.name for path in WEIGHTS_FOLDER.glob(f"*/{WEIGHTS_NAME}"))


def save_weights(
    model: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write parameters and buffers as safetensors.

    Args:
        model: a network, or its state dictionary.
        path: file to write.
        metadata: values stored in the header, JSON-encoded unless they are strings.
        half: store floating tensors as float16, half the size; loading gives them back in the network's dtype.

    Raises:
        CheckpointError: with ``half``, a value that float16 cannot hold.
    """
    from safetensors.torch import save

    state = model.state_dict() if isinstance(model, nn.Module) else model
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        tensor = value.detach().cpu()
        if half and tensor.is_floating_point():
            tensor = tensor.to(torch.float16)
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{path}: {name} does not fit float16; save with half=False")
        # Cloned: safetensors refuses tensors that share storage, and channels-last ones.
        stored[name] = tensor.clone(memory_format=torch.contiguous_format)
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    _write_bytes(Path(path), save(stored, metadata={"format": "pt", **header}))


def save_model(
    model: nn.Module,
    folder: str | Path,
    config: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
    half: bool = False,
) -> Path:
    """Write a model folder that :func:`load_pretrained` reads.

    Args:
        model: the network.
        folder: folder to write into; made if absent.
        config: configuration the network was built from.
        metadata: see :func:`save_weights`.
        half: see :func:`save_weights`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS_NAME, metadata=metadata, half=half)
    save_config(config, folder / CONFIG_NAME)
    return folder


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a ``.safetensors`` file, or a ``.pt`` file of the family.

    A family file is ``{"model": state, "optimizer": ..., "epoch_it": ..., "loss_val_best": ...}``; a bare state
    dictionary is accepted too, and so are the names ``module.*`` that parallel training gives. Nothing is unpickled
    beyond tensors, containers, numbers and numpy scalars.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a weights file, or one that holds objects this reader does not run.
    """
    path = Path(path)
    if str(path).startswith(("http:", "https:")):
        raise CheckpointError(f"{path}: a URL is no path; load_pretrained downloads it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: not a weights file that can be read safely ({reason}). Expected tensors, numbers and numpy "
            f"scalars; if you trust the file, open it in the program that wrote it and save its state_dict alone."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary with the key 'model', got {type(content).__name__}")
    if isinstance(content.get("model"), Mapping):
        extra = {key: value for key, value in content.items() if key != "model"}
        return Checkpoint(_without_wrappers(content["model"]), extra)
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return Checkpoint(_without_wrappers(content))
    found = sorted(map(str, content))[:_LISTED_KEYS]
    raise CheckpointError(f"{path}: expected the key 'model' or a state dictionary, found the keys {found}")


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary without the ``module.`` of ``torch.nn.DataParallel``, around the whole network or a part."""
    return {".".join(part for part in key.split(".") if part != _WRAPPER): value for key, value in state.items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "checkpoint") -> None:
    """Copy a state dictionary into a network, strictly; float16 values take the network's dtype.

    Raises:
        CheckpointError: missing keys, unexpected keys or other shapes, all listed. The network is then unchanged.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key}: file {tuple(state[key].shape)}, model {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{title} ({len(keys)}): {_shorten(keys)}"
            for title, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
            if keys
        ]
        raise CheckpointError(
            f"{source}: the weights do not fit this {type(model).__name__}; {'; '.join(parts)}. "
            f"Check that the configuration is the one the weights were trained with."
        )
    model.load_state_dict(dict(state), strict=True)


def load_pretrained(
    name: str | os.PathLike[str],
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network with its weights.

    Args:
        name: a bundled model's name, a model folder, a weights file, a configuration file of the family that names its
            weights (``test.model_file``), a released model's name (see `occnets.released`) or a URL. The last two are
            downloaded once.
        config: configuration of a weights file: a file, a packaged name or a mapping; ``None`` takes ``config.yaml``
            from the folder, or that of the release.
        progress: called with (bytes so far, bytes in all or None) during a download.

    Returns:
        The network in evaluation mode on the CPU, and its configuration.

    Raises:
        FileNotFoundError: no bundled or released model, folder or file of that name, or no configuration with it.
        CheckpointError: the weights do not fit the configuration.
        DownloadError: the weights could not be fetched.
    """
    path, own = _locate(name, progress)
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    config = own if config is None else config
    if config is None:
        config = weights.parent / CONFIG_NAME
        if not Path(config).is_file():
            raise FileNotFoundError(
                f"{weights}: there is no {CONFIG_NAME} beside it; give its configuration, for example "
                f"config='convonet-shapenet-3plane' (packaged: {', '.join(config_names())})"
            )
    loaded = load_config(config)
    model = build_model(loaded)
    load_state(model, read_checkpoint(weights).state, source=str(weights))
    return model.eval(), loaded


def _locate(name: str | os.PathLike[str], progress: Progress | None) -> tuple[Path, str | None]:
    """A model folder or weights file, and the configuration that is known to belong to it."""
    text = os.fspath(name)
    known = pretrained_names()
    if text in known:
        return WEIGHTS_FOLDER / text, None
    if text and Path(text).exists():
        if Path(text).suffix.lower() in _CONFIG_ENDINGS:
            return _weights_of(Path(text), progress), text
        return Path(text), None
    release = find_release(text)
    if release is not None:
        return release.fetch(progress), release.config
    if text.startswith(("http:", "https:")):
        return fetch(text, progress=progress), None
    close = difflib.get_close_matches(text, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else suggest(text)
    raise FileNotFoundError(
        f"{text!r} is no bundled model, released model, folder or weights file.{hint} Bundled models: "
        f"{', '.join(known) or 'none'}."
    )


def _weights_of(path: Path, progress: Progress | None) -> Path:
    """The weights a family configuration names: a URL, or a file in ``training.out_dir``.

    The family's programs start in the folder that paths are relative to, so all folders above the file are tried.
    """
    config = load_config(path)
    file = str((config.get("test") or {}).get("model_file") or "")
    if file.startswith(("http:", "https:")):
        release = find_release(file)
        return fetch(file, progress=progress) if release is None else release.fetch(progress)
    folder = str((config.get("training") or {}).get("out_dir") or "")
    places = [path.resolve().parent, *path.resolve().parents, Path.cwd()]
    candidates = [place / each for place in places for each in (Path(folder, file), Path(file))]
    for candidate in candidates:
        if file and candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{path}: its weights {file!r} (test.model_file) are not in {folder!r} (training.out_dir) under any folder "
        f"above it; give the weights file as the model and this file as its configuration"
    )


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return Checkpoint({key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {}))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy scalar is made of. Files name the module as numpy was organised when they were written."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [getattr(np.dtypes, f"{kind}DType") for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *dtypes]


def _shorten(keys: list[str]) -> str:
    rest = len(keys) - _LISTED_KEYS
    return ", ".join(keys[:_LISTED_KEYS]) + (f", and {rest} more" if rest > 0 else "")


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
