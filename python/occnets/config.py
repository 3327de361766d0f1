# SPDX-License-Identifier: MIT
"""Configurations: the occupancy-network family's YAML files, read as they are.

A configuration is a dictionary of sections (``data``, ``model``, ``training``, ``test``, ``generation``) and the key
``method``. Files may inherit (``inherit_from``); what no file sets comes from the packaged ``default.yaml``. An unknown
key that looks like a slip of a known one is refused with the nearest name; any other one gives a warning and is kept
(forks of the family add their own). Options inside ``encoder_kwargs`` and ``decoder_kwargs`` are checked when the
network is built, and there every unknown one is refused.
"""

from __future__ import annotations

import copy
import difflib
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG_FOLDER = Path(__file__).parent / "configs"
"""Folder of the packaged configurations."""

DEFAULT_CONFIG = "default"
"""Packaged configuration that everything starts from."""

_TOP = ("method", "inherit_from", "degrees")
# Keys that the family's files carry beside those of default.yaml, section by section (some of them have no effect there
# either), and this project's own: model.registration, test.ensemble.
_MORE_KEYS: dict[str, str] = {
    "data": "unit_size query_vol_size with_transforms cells_per_spacing",
    "model": "encoder_latent encoder_latent_kwargs z_dim use_camera dmc_weight_prior local_coord pos_encoding "
    "n_channels use_poincloud registration quantization",
    "training": "similarity beta_vae",
    "test": "ensemble",
    "generation": "refine n_x n_z latent_number latent_H latent_W latent_ny latent_nx latent_repeat",
    "preprocessor": "type config model_file",
    "test_optim": "onlyencoder learning_rate decay_rate n_iter n_step batch_size npoints_surf npoints_nonsurf sigma "
    "threshold",
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and what to write instead."""


def load_config(source: str | Path | Mapping[str, Any], *, default: str | None = DEFAULT_CONFIG) -> dict[str, Any]:
    """Read a configuration with everything it inherits.

    Args:
        source: a YAML file, the name of a packaged configuration (``"convonet-shapenet-3plane"``), or a mapping.
        default: configuration to start from when the chain of ``inherit_from`` ends; ``None`` for none.

    Returns:
        A new nested dictionary; dictionaries are merged key by key, everything else is replaced.

    Raises:
        FileNotFoundError: no such file and no packaged configuration of that name.
        ConfigError: not a mapping, a circular inheritance, or a misspelt key.
    """
    known = _known_keys() if default is not None else None
    config = _load(source, default, ())
    if known is not None:
        check_keys(config, known, where=str(source) if isinstance(source, (str, Path)) else "config")
    return config


def config_names() -> list[str]:
    """Names of the packaged configurations that describe a model, sorted."""
    names = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
    return [name for name in names if name != DEFAULT_CONFIG and not name.endswith("-base")]


def save_config(config: Mapping[str, Any], path: str | Path) -> None:
    """Write a configuration as YAML, first under a temporary name."""
    write_text(path, yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file under a temporary name in the same folder, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two configurations into a new one; nested mappings key by key, other values replaced by ``update``."""
    result = copy.deepcopy(dict(base))
    for key, value in update.items():
        if isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def check_keys(config: Mapping[str, Any], known: Mapping[str, Iterable[str]], *, where: str) -> None:
    """Refuse keys that look like a slip of a known one and warn of other unknown ones.

    Args:
        config: the configuration.
        known: section name to known keys; the empty section name holds the top level.
        where: file or name, for messages.

    Raises:
        ConfigError: a misspelt key or section, or a section that is not a mapping.
    """
    _check_names(config, known[""], where)
    for section, keys in known.items():
        value = config.get(section)
        if not section or value is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: section {section!r} must be a mapping, got {type(value).__name__}")
        _check_names(value, keys, f"{where}: {section}")


def _check_names(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key in known:
            continue
        close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.8)
        if close:
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {close[0]!r}?")
        warnings.warn(f"{where}: key {key!r} is not one of the family's and has no effect", UserWarning, stacklevel=4)


def _known_keys() -> dict[str, set[str]]:
    default = _load(DEFAULT_CONFIG, None, ())
    known = {
        section: set(default.get(section, ())) | set(_MORE_KEYS.get(section, "").split())
        for section in {*_MORE_KEYS, *(key for key, value in default.items() if isinstance(value, dict))}
    }
    known[""] = {*_TOP, *known}
    return known


def _load(source: str | Path | Mapping[str, Any], default: str | None, chain: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        own, folder = dict(source), Path.cwd()
    else:
        path = _find(source)
        if str(path) in chain:
            raise ConfigError(f"{path}: inherit_from goes in a circle: {' -> '.join((*chain, str(path)))}")
        chain = (*chain, str(path))
        own, folder = _read_yaml(path), path.parent
    parent = own.get("inherit_from")
    if parent is not None:
        return merge(_load(_find(parent, folder), default, chain), own)
    if default is not None:
        return merge(_load(default, None, chain), own)
    return merge({}, own)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, got {type(content).__name__}")
    return content


def _find(source: str | Path, folder: Path | None = None) -> Path:
    """File for a path or a packaged name. The family writes ``inherit_from`` relative to the folder its programs start
    in, so the folders above the inheriting file are tried as well."""
    path = Path(source)
    places = [] if folder is None else [folder, *folder.resolve().parents]
    candidates = [*(place / path for place in places), path]
    if path.parent == Path(".") and path.suffix in ("", ".yaml"):
        candidates.append(CONFIG_FOLDER / f"{path.stem}.yaml" if path.suffix else CONFIG_FOLDER / f"{path.name}.yaml")
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    close = difflib.get_close_matches(path.stem, config_names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise FileNotFoundError(
        f"configuration {str(source)!r}: no such file and no packaged configuration of that name; {hint}"
        f"packaged: {', '.join(config_names())}."
    )


def _plain(value: Any) -> Any:
    """Turn tuples, mappings and paths into what YAML writes without tags."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
