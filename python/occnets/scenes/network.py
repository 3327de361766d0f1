# SPDX-License-Identifier: MIT
"""A grid network taken apart for scenes: points to cells, cells to features in windows, features to values in blocks.

The point network pools inside cells only, so its result for a cell does not depend on a window. The U-Net's depends on
the cells in its receptive field, which the halo of a window holds. The decoder sees the features around a query, and
in blocks of fixed size, so that equal features give equal values bit by bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from occkernels import DecoderWeights, FeatureLayout, bins_from_index, decode, sample_features, scatter_grid
from occnets.models.blocks import encode_position
from occnets.models.crop import PatchLocalDecoder, PatchLocalPoolPointnet
from occnets.models.decoders import LocalDecoder, conditioned_mlp
from occnets.models.encoders import LocalPoolPointnet, pooled_features
from occnets.models.norm import average_norms
from occnets.models.unet3d import UNet3D
from occnets.models.unet3d_light import UNet3DLight, pixel_shuffle_3d
from occnets.scenes.receptive import ReceptiveField, receptive_field
from occnets.scenes.tiles import BLOCK

_PADDING = 0.1  # of the unit cube that a block's features stand in; any value would do
_MARGIN = 1  # cells of features around a block that interpolation at its nodes may read
_POINTS = 200_000  # points in one pass of the point network


class WindowNetwork:
    """The parts of a network that scenes need.

    Args:
        model: a ConvONet with one grid, an encoder that sees positions inside cells (``local_coord``) and a decoder
            that sees positions inside cells or none (``position: false``).
        device: where to compute.

    Attributes:
        field: the receptive field of the U-Net.
        channels: of a cell.
        has_norms: group norms see the whole window, so that a cell's features depend on all others in it;
            :meth:`fix_norms` must be called before windows agree.

    Raises:
        ValueError: the model cannot be used, with the reason.
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        reason = why_not_windows(model)
        if reason is not None:
            raise ValueError(
                f"scenes need a network that says the same of the same surroundings wherever they are: {reason}; "
                "use convonet-crop, or a crop-trained model of the family"
            )
        self.device = torch.device(device)
        self.encoder, self.decoder = model.encoder, model.decoder
        self.unet: nn.Module | None = model.encoder.unet3d
        self.field: ReceptiveField = receptive_field(self.unet)
        self.channels: int = model.encoder.options.c_dim
        self.upscale: int = self.unet.options.upscale if isinstance(self.unet, UNet3DLight) else 1
        self.has_norms = any(isinstance(part, nn.GroupNorm) for part in model.encoder.modules())
        side = self.upscale * (BLOCK + 2 * _MARGIN)
        self._layout = FeatureLayout(grid_resolution=side, padding=_PADDING, registration="cells")
        self._weights: DecoderWeights | None = None
        if isinstance(self.decoder, LocalDecoder):
            named = {name: value.detach() for name, value in self.decoder.named_parameters()}
            self._weights = DecoderWeights.from_tensors(named, leaky=self.decoder.options.leaky)

    def fix_norms(self, windows: Sequence[Tensor]) -> None:
        """Replace the group norms of the U-Net by the scale and shift they have on average over some windows.

        Args:
            windows: (B, C, X, Y, Z) as :meth:`features` takes them.
        """
        assert self.unet is not None
        unet = copy.deepcopy(self.unet).eval()

        def run() -> None:
            for window in windows:
                unet(window.permute(0, 1, 4, 3, 2))

        for name, norm in average_norms(unet, run).items():
            parent, _, own = name.rpartition(".")
            setattr(unet.get_submodule(parent), own, norm)
        self.unet, self.has_norms = unet, False

    @torch.no_grad()
    def cell_features(
        self, points: NDArray[np.float64], owner: NDArray[np.int64], progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Mean feature of the points of every cell.

        Args:
            points: (N, 3) in cells, sorted so that those of a cell follow each other.
            owner: (N,) which cell, ascending from 0 without gaps.
            progress: called with the points done and their number.

        Returns:
            (K, C) float32.
        """
        starts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        bounds, found, begin = np.append(starts, len(points)), [], 0
        while begin < len(points):
            last = int(np.searchsorted(bounds, begin + _POINTS, side="right")) - 1
            stop = int(bounds[max(last, int(owner[begin]) + 1)])
            found.append(self._cells(points[begin:stop], owner[begin:stop] - owner[begin]))
            begin = stop
            if progress is not None:
                progress(begin, len(points))
        return torch.cat(found)

    def _cells(self, points: NDArray[np.float64], owner: NDArray[np.int64]) -> Tensor:
        count = int(owner[-1]) + 1
        side = int(np.ceil(count ** (1 / 3)))
        side += side**3 < count
        layout = FeatureLayout(grid_resolution=side)
        bins = bins_from_index(torch.from_numpy(owner).to(self.device).view(1, 1, -1), layout)
        options = self.encoder.options
        place = torch.from_numpy((points - np.floor(points)).astype(np.float32)).to(self.device)[None]
        if isinstance(self.encoder, PatchLocalPoolPointnet):
            seen = encode_position(place, options.pos_encoding)
        else:
            seen = 2.0 * place - 1.0
        net = pooled_features(
            self.encoder.fc_pos(seen), self.encoder.blocks, self.encoder.fc_c, bins, options.scatter_type
        )
        grid = scatter_grid(net, bins, reduce="mean")
        return grid.permute(0, 2, 3, 4, 1).reshape(side**3, -1)[:count].contiguous()

    @torch.no_grad()
    def features(self, window: Tensor) -> Tensor:
        """Features before the sub-voxel step of the U-Net; exact ``field.halo`` cells away from the border.

        Args:
            window: (B, C, X, Y, Z) cells, zero where there are no points; sizes are multiples of ``field.stride``.

        Returns:
            (B, C', X, Y, Z).
        """
        if self.unet is None:
            return window
        x = window.permute(0, 1, 4, 3, 2)  # networks have axes (z, y, x)
        found = self.unet.trunk(x) if isinstance(self.unet, UNet3DLight) else self.unet(x)
        return found.permute(0, 1, 4, 3, 2)

    @torch.no_grad()
    def block_values(self, features: Tensor, steps: int) -> Tensor:
        """Logits at the lattice nodes of blocks.

        Args:
            features: (B, C', S, S, S) as :meth:`features` returns them, of a block and one cell around it.
            steps: lattice steps in a cell.

        Returns:
            (B, N, N, N) with N = ``steps * BLOCK``: the nodes 1 to N of the block; node 0 belongs to the block before.
        """
        grid = features.permute(0, 1, 4, 3, 2)
        if isinstance(self.unet, UNet3DLight):
            grid = pixel_shuffle_3d(
                self.unet.final_conv(grid.contiguous(memory_format=torch.channels_last_3d)), self.upscale
            )
        grid = grid.contiguous(memory_format=torch.channels_last_3d)
        count = steps * BLOCK
        along = torch.arange(1, count + 1, device=grid.device, dtype=torch.float64) / steps
        nodes = torch.cartesian_prod(along, along, along)
        query = ((nodes + _MARGIN) / (BLOCK + 2 * _MARGIN) - 0.5) * (1.0 + _PADDING + 1e-3)
        query = query.float().expand(len(grid), -1, 3)
        if self._weights is not None:
            values = decode(query, self._weights, self._layout, grid=grid.float())
        else:
            values = self._decode_patches(query, torch.remainder(nodes, 1.0).float(), grid)
        return values.view(len(grid), count, count, count)

    def _decode_patches(self, query: Tensor, place: Tensor, grid: Tensor) -> Tensor:
        decoder, options = self.decoder, self.decoder.options
        found = []
        for part in range(0, query.shape[1], 65_536):
            rows = slice(part, part + 65_536)
            sampled = sample_features(query[:, rows], self._layout, grid=grid)
            net = decoder.fc_p(encode_position(place[rows], options.pos_encoding)).expand(len(grid), -1, -1)
            found.append(conditioned_mlp(net, sampled, decoder, options.leaky))
        return torch.cat(found, dim=1)

    def window_bytes(self) -> int:
        """Bytes that one cell of a window takes while its features are computed.

        Measured on a CPU: 445 with 32 channels and a light network 16 wide; 1,510 with a network of the family 32 wide,
        to which fixed norms add two copies of the widest layer.
        """
        if isinstance(self.unet, UNet3DLight):
            return 4 * (self.channels + 6 * self.unet.stem.conv1.out_channels)
        if isinstance(self.unet, UNet3D):
            return 4 * (self.channels + 18 * self.unet.final_conv.in_channels)
        return 4 * 2 * self.channels


def why_not_windows(model: Any) -> str | None:
    """Why a model cannot be used for scenes, or None."""
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    if not isinstance(encoder, (LocalPoolPointnet, PatchLocalPoolPointnet)):
        return f"its encoder is {type(encoder).__name__}, not one that pools points in cells"
    if encoder.layout.maps != ("grid",):
        return f"its features lie on {', '.join(encoder.layout.maps)}; planes mix everything along their normal"
    if not encoder.options.local_coord:
        return "its encoder sees absolute positions (local_coord is off)"
    if isinstance(decoder, LocalDecoder):
        if decoder.options.position or decoder.options.sample_mode != "bilinear":
            return "its decoder sees absolute positions (decoder_kwargs.position is on) or does not interpolate"
        return None
    if not isinstance(decoder, PatchLocalDecoder) or not decoder.options.local_coord:
        return f"its decoder {type(decoder).__name__} sees absolute positions"
    return None
