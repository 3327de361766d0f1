# SPDX-License-Identifier: MIT
"""Pictures as image networks take them, and cameras' poses."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_LONGEST = 20_000  # pixels a side


def read_image(path: str | os.PathLike[str], *, background: str = "black") -> NDArray[np.uint8]:
    """Read a picture as RGB.

    Grey pictures get three equal channels, the orientation a camera noted is applied, and transparent parts show the
    background: black, as in the original's program for folders of pictures. Its training pictures are on white.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF.
        background: colour behind transparent parts, a name or ``"#rrggbb"``.

    Returns:
        (H, W, 3).

    Raises:
        OSError: the file is missing or cannot be opened.
        FormatError: no picture, or one of more than 20,000 pixels a side.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    data = path.read_bytes()
    try:
        picture: Image.Image = Image.open(io.BytesIO(data))
        if max(picture.size) > _LONGEST:
            raise FormatError(f"{path} has {picture.size[0]} x {picture.size[1]} pixels, at most {_LONGEST} are read")
        picture = ImageOps.exif_transpose(picture)
        if "A" in picture.getbands() or "transparency" in picture.info:
            canvas = Image.new("RGBA", picture.size, background)
            picture = Image.alpha_composite(canvas, picture.convert("RGBA"))
        return np.asarray(picture.convert("RGB"))
    except FormatError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path} cannot be read as a picture: {error}") from error


def network_image(picture: NDArray, size: int) -> NDArray[np.float32]:
    """A picture as a network of the family takes it: ``size`` x ``size``, RGB, channels first, in [0, 1].

    The picture is brought to the square by Pillow's bilinear filter, as the original does, whatever its shape.
    ImageNet's mean is subtracted by the network itself.

    Args:
        picture: (H, W, 3) or (H, W), uint8, or floating in [0, 1].
        size: side in pixels (``data.img_size``, 224).

    Returns:
        (3, size, size).

    Raises:
        ValueError: another shape, or values outside [0, 1].
    """
    from PIL import Image

    resized = Image.fromarray(_bytes(np.asarray(picture))).resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))


def _bytes(picture: NDArray) -> NDArray[np.uint8]:
    """(H, W, 3) uint8."""
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"network_image: `picture` must be (H, W, 3) or (H, W), got {picture.shape}")
    if picture.dtype == np.uint8:
        return picture
    if picture.dtype.kind != "f" or not (picture.min() >= 0.0 and picture.max() <= 1.0):
        raise ValueError(
            f"network_image: `picture` must be uint8, or floating with values in [0, 1], got {picture.dtype} with "
            f"{picture.min()} to {picture.max()}"
        )
    return np.round(picture * 255).astype(np.uint8)


def read_pose(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """A camera's pose, the rigid map from world to camera.

    Args:
        path: text of numbers (rows of the matrix, separated by blanks or commas), or .npy.

    Returns:
        (4, 4), or (3, 4) if the last row is left out.

    Raises:
        OSError: the file is missing.
        FormatError: no matrix of that shape, or its rotation is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        pose = _matrix(path)
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path} cannot be read as a matrix: {error}") from error
    if pose.shape not in ((4, 4), (3, 4)):
        raise FormatError(f"{path}: a pose is a matrix of 4 x 4 or 3 x 4 numbers, got {pose.shape}")
    rotation = pose[:3, :3].astype(np.float64)
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise FormatError(f"{path}: the first 3 x 3 numbers of a pose are a rotation, these are none")
    return pose.astype(np.float32)


def _matrix(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        return np.load(path, allow_pickle=False)
    return np.loadtxt(path.read_text(encoding="utf-8").replace(",", " ").splitlines(), ndmin=2)
