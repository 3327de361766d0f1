# SPDX-License-Identifier: MIT
"""Weights the original authors published, by name: where they are and which packaged configuration they belong to.

Only addresses are listed here; nothing is fetched before somebody asks for a model by its name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from occnets.download import DownloadError, cached_path, fetch

_BUCKET = "https://s3.eu-central-1.amazonaws.com/avg-projects/"
_ONET = _BUCKET + "occupancy_networks/models/"
_CONVONET = _BUCKET + "convolutional_occupancy_networks/models/"
_DPCONVONET_PAGE = "https://polybox.ethz.ch/index.php/s/ehK175BH7oVYnxy"
# torch's naming convention: the digits before the ending are the first of the file's SHA-256.
_SUFFIX = re.compile(r"-([0-9a-f]{8,64})$")

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Release:
    """Published weights.

    Attributes:
        config: packaged configuration the weights were trained with; also the name they go by here.
        file: the file's name in the original's list, with folders.
        url: where it is; empty if it can be had by hand only.
        page: where a person finds it.
        borrowed: the file is listed for another configuration, which the file's names mean.
    """

    config: str
    file: str
    url: str = ""
    page: str = ""
    borrowed: bool = False

    @property
    def sha256(self) -> str:
        """First digits of the file's SHA-256 in hexadecimal; empty if the original gives none."""
        found = _SUFFIX.search(self.file.removesuffix(".pt"))
        return found[1] if found else ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything the weights may be called."""
        if self.borrowed:
            return (self.config,)
        stem = self.file.removesuffix(".pt")
        return tuple(dict.fromkeys((self.config, self.file, stem, _SUFFIX.sub("", stem), *filter(None, [self.url]))))

    @property
    def cached(self) -> Path | None:
        """The downloaded file, if it is there."""
        path = cached_path(self.url) if self.url else None
        return path if path is not None and path.is_file() else None

    def fetch(self, progress: Progress | None = None) -> Path:
        """The file on this machine, downloaded if it is not there.

        Raises:
            DownloadError: see `occnets.download.fetch`; or the weights can be had by hand only.
        """
        if not self.url:
            raise DownloadError(
                f"{self.config}: {self.file} is published on the page {self.page} only, which programs cannot read; "
                f"download it there and give the file with --config {self.config} (in Python: config='{self.config}')"
            )
        return fetch(self.url, sha256=self.sha256, progress=progress)


def _hosted(base: str, files: dict[str, str]) -> list[Release]:
    return [Release(config, file, base + file, base) for config, file in files.items()]


RELEASES: tuple[Release, ...] = (
    *_hosted(
        _ONET,
        {
            "onet-img": "onet_img2mesh_3-f786b04a.pt",
            "onet-img-legacy": "onet_img2mesh-0c7780d1.pt",
            "onet-pointcloud": "onet_pcl2mesh-5c0be168.pt",
            "onet-voxel": "onet_voxel2mesh-52ee34d4.pt",
            "onet-unconditional-cars": "onet_uncond_cars-59320701.pt",
            "onet-unconditional-airplanes": "onet_uncond_airplanes-26c9d089.pt",
            "onet-unconditional-sofas": "onet_uncond_sofas-bf6c039d.pt",
            "onet-unconditional-chairs": "onet_uncond_chairs-800ea1f3.pt",
        },
    ),
    *_hosted(
        _CONVONET,
        {
            "convonet-shapenet-1plane": "pointcloud/shapenet_1plane.pt",
            "convonet-shapenet-3plane": "pointcloud/shapenet_3plane.pt",
            "convonet-shapenet-3plane-partial": "pointcloud/shapenet_3plane_partial.pt",
            "convonet-shapenet-grid32": "pointcloud/shapenet_grid32.pt",
            "convonet-shapenet-pointconv": "pointcloud/shapenet_pointconv.pt",
            "convonet-room-1plane": "pointcloud/room_1plane.pt",
            "convonet-room-3plane": "pointcloud/room_3plane.pt",
            "convonet-room-grid32": "pointcloud/room_grid32.pt",
            "convonet-room-grid64": "pointcloud/room_grid64.pt",
            "convonet-room-combine": "pointcloud/room_combine.pt",
            "convonet-room-pointconv": "pointcloud/room_pointconv.pt",
            "convonet-room-crop-grid64": "pointcloud_crop/room_grid64.pt",
            "convonet-voxel-1plane": "voxel/voxel_shapenet_1plane.pt",
            "convonet-voxel-3plane": "voxel/voxel_shapenet_3plane.pt",
            "convonet-voxel-grid32": "voxel/voxel_shapenet_grid32.pt",
        },
    ),
    *(
        Release(f"saconvonet-{config}", file, _CONVONET + file, _CONVONET, borrowed=True)
        for config, file in {
            "object": "pointcloud/shapenet_3plane.pt",
            "scene": "pointcloud/room_grid64.pt",
            "large-scene": "pointcloud_crop/room_grid64.pt",
        }.items()
    ),
    *(
        Release(f"dpconvonet-room-{config}", f"room_{file}_best.pt", page=_DPCONVONET_PAGE)
        for config, file in {
            "dynamic-3plane": "3plane_dynamic",
            "dynamic-5plane": "5plane_dynamic",
            "dynamic-7plane": "7plane_dynamic",
            "hybrid-5plane": "5plane_hybrid",
            "hybrid-7plane": "7plane_hybrid",
            "canonical-3plane": "3plane_canonical",
        }.items()
    ),
)
"""Every published file. SA-ConvONet starts from ConvONet's; TransONet has published none."""


def find_release(name: str) -> Release | None:
    """The release of a name: a configuration's, the file's in the original's list (with or without digits), its URL."""
    return next((release for release in RELEASES if name in release.names), None)


def fetch_named(name: str, progress: Progress | None = None) -> Path:
    """Download the weights of a name.

    Args:
        name: see `find_release`.
        progress: see `occnets.download.fetch`.

    Returns:
        The file on this machine.

    Raises:
        FileNotFoundError: no weights were released under that name; the nearest names are suggested.
        DownloadError: see `Release.fetch`.
    """
    release = find_release(name)
    if release is None:
        raise FileNotFoundError(f"{name!r} is no released model.{suggest(name)} 'occnets models' lists all of them")
    return release.fetch(progress)


def suggest(name: str) -> str:
    """A sentence with the released models of similar names, or nothing."""
    own = [release for release in RELEASES if Path(release.file).name == Path(name).name]
    close = difflib.get_close_matches(name, [each for release in RELEASES for each in release.names], n=3)
    found = dict.fromkeys([release.config for release in own] + [r.config for n in close if (r := find_release(n))])
    return f" Released by the authors: {', '.join(found)}." if found else ""
