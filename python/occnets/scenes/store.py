# SPDX-License-Identifier: MIT
"""The folder of a scene in the making: finished tiles, and what they were made from, so that work can be continued."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_MANIFEST = "scene.json"
_VERSION = 1

Planes = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class TileResult:
    """What is kept of a tile.

    Attributes:
        vertices: (V, 3) float32, in lattice steps from the tile's lower corner.
        keys: (V,) int64, the lattice edge of every vertex, the same in all tiles.
        faces: (F, 3) int32.
        planes: logits on the tile's last layer of nodes across x, y and z, (N, N) each, for the tiles above; empty
            where all are outside.
    """

    vertices: NDArray[np.float32]
    keys: NDArray[np.int64]
    faces: NDArray[np.int32]
    planes: Planes


class TileStore:
    """Finished tiles in a folder, each file written under a temporary name and then renamed.

    Args:
        folder: made if absent.
        origin: what the tiles depend on, name to value ready for JSON.

    Raises:
        ValueError: the folder holds tiles of something else; the message says what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], origin: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps({"version": _VERSION, **origin}))
        manifest = self.folder / _MANIFEST
        if manifest.exists():
            found = json.loads(manifest.read_text(encoding="utf-8"))
            differing = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
            if differing:
                raise ValueError(
                    f"{self.folder} holds the tiles of another reconstruction: {', '.join(sorted(differing))} differ; "
                    "give the same input and options, or another folder"
                )
        else:
            foreign = [path.name for path in self.folder.iterdir()]
            if foreign:
                raise ValueError(
                    f"{self.folder} is not empty and holds no tiles (found {foreign[0]}); give another folder"
                )
            temporary = manifest.with_name(f".{_MANIFEST}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
            os.replace(temporary, manifest)
        # Planes of the tiles below are read once for each of the tiles above.
        self.planes = lru_cache(maxsize=64)(self._planes)

    def _path(self, index: tuple[int, int, int]) -> Path:
        return self.folder / f"tile-{index[0]}-{index[1]}-{index[2]}.npz"

    def has(self, index: tuple[int, int, int]) -> bool:
        """Whether a tile is finished."""
        return self._path(index).exists()

    def save(self, index: tuple[int, int, int], tile: TileResult) -> None:
        """Keep a finished tile."""
        path = self._path(index)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        arrays = {"vertices": tile.vertices, "keys": tile.keys, "faces": tile.faces}
        try:
            with temporary.open("wb") as stream:
                np.savez(stream, **arrays, **dict(zip("xyz", tile.planes, strict=True)))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def mesh(self, index: tuple[int, int, int]) -> TileResult:
        """A finished tile without its planes."""
        with np.load(self._path(index), allow_pickle=False) as archive:
            return TileResult(archive["vertices"], archive["keys"], archive["faces"], ())

    def _planes(self, index: tuple[int, int, int]) -> Planes | None:
        """Last layers of a tile; None if there is no such tile."""
        if not self.has(index):
            return None
        with np.load(self._path(index), allow_pickle=False) as archive:
            return tuple(archive[axis] for axis in "xyz")


def fingerprint(*parts: NDArray | torch.Tensor) -> str:
    """SHA-256 of the bytes, types and shapes of arrays."""
    digest = hashlib.sha256()
    for part in parts:
        array = part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def model_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of a network's names and weights."""
    names = hashlib.sha256("\n".join(model.state_dict()).encode()).hexdigest()
    return names[:16] + fingerprint(*model.state_dict().values())[:48]
