# SPDX-License-Identifier: MIT
"""Decoders fused with the sampling of their features: coordinates in, logits out, nothing in between in memory.

For inference. Where a derivative is asked for, or float64, the same functions run the composition of
``sample_features`` and linear layers, which is differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from occkernels import decode_ops as ops
from occkernels._checks import check_tensor
from occkernels.bins import check_bases
from occkernels.decode_weights import HIDDEN_LIMITS, ConditionalWeights, DecoderWeights, QueryBricks
from occkernels.layout import FeatureLayout


def decode(
    query: Tensor,  # (B, M, 3)
    weights: DecoderWeights,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,  # (B, P, C, R, R)
    grid: Tensor | None = None,  # (B, C, R, R, R)
    bases: Tensor | None = None,  # (B, L, 3, 3)
    basis_scale: Tensor | None = None,  # (B, L)
    precision: str = "float32",
) -> Tensor:
    """Logits of the local decoder at the queries.

    Samples every map as ``sample_features`` does and runs the network of ``DecoderWeights`` in one kernel. Maps are
    summed when the feature layers take one map's channels, and concatenated (planes first) when they take those of all.
    The result of a query depends neither on the other queries of the call nor on the number of threads.

    When gradients are recorded and an input requires one, or when anything is float64, the composition of
    ``sample_features`` and linear layers runs instead: differentiable in everything, but slower and with (B, M, C)
    tensors in memory.

    Args:
        query: (B, M, 3) coordinates in the unit cube.
        weights: the network; 1 to 256 hidden channels (multiples of 16 are fastest), any depth and feature channels.
        layout: the maps.
        planes: (B, P, C, R, R) features of canonical, then dynamic planes; fastest when channels-last in memory. Half
            precision is read as it is and computed with in float32.
        grid: (B, C, R, R, R) features, axes (z, y, x); fastest when channels-last in memory.
        bases: (B, L, 3, 3) frames of the L dynamic planes; rows 0 and 1 span plane l.
        basis_scale: (B, L) divisor of the projected coordinates; ones when absent.
        precision: "float32" is exact. "tf32" and "bf16" permit the kernel to round, to the nearest number of 10 or 7
            mantissa bits, what it multiplies in the feature and block layers: sampled features, activations and
            weights. Sums, biases, the residual stream, the first and the last layer stay float32. It is a permission,
            made use of where that is faster: on CUDA devices of compute capability 8.0, and "bf16" on processors
            with AVX512_BF16; elsewhere float32 is computed. Logits of the bundled network move by up to 2e-3 of their
            range ("tf32": 2e-4), those of random ones by up to 1.5e-2 ("tf32": 2e-3).

    Returns:
        (B, M) float32; float64 when an input is.

    Raises:
        ValueError: a shape or device is wrong, features or bases are missing or not in the layout, the feature layers
            fit neither the sum nor the concatenation, hidden channels are out of range, or ``precision`` is unknown.
        TypeError: a dtype is not floating, or planes and grid differ in dtype.

    Source: Peng et al., Convolutional Occupancy Networks, ECCV 2020, section 3.2.
    """
    call = _Call("decode", query, weights, layout, planes, grid, (bases, basis_scale), precision)
    return _values(call.unfused()) if call.differentiable else call.run(gradient=False)[0]


def decode_with_gradient(
    query: Tensor,  # (B, M, 3)
    weights: DecoderWeights,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,  # (B, P, C, R, R)
    grid: Tensor | None = None,  # (B, C, R, R, R)
    bases: Tensor | None = None,  # (B, L, 3, 3)
    basis_scale: Tensor | None = None,  # (B, L)
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Logits and their gradient to x, y and z, from one call and without autograd: for normals.

    The kernel goes back through each tile of queries while its activations are still in the cache, at the cost of
    about one more forward pass. The logits are those of ``decode``; where a coordinate is clamped its derivative is 0.

    Args:
        query, weights, layout, planes, grid, bases, basis_scale: see ``decode``.
        precision: checked only: logits and gradients are always computed in float32. A rounded activation would switch
            ReLUs, which a gradient shows in full.

    Returns:
        Logits (B, M) and gradients (B, M, 3), per unit of the query's coordinates.

    Raises:
        ValueError, TypeError: see ``decode``.
    """
    call = _Call("decode_with_gradient", query, weights, layout, planes, grid, (bases, basis_scale), precision)
    return call.unfused_with_gradient() if call.differentiable else call.run(gradient=True)


def decode_bricks(
    bricks: QueryBricks,
    weights: DecoderWeights,
    layout: FeatureLayout,
    *,
    planes: Tensor | None = None,  # (B, P, C, R, R)
    grid: Tensor | None = None,  # (B, C, R, R, R)
    bases: Tensor | None = None,  # (B, L, 3, 3)
    basis_scale: Tensor | None = None,  # (B, L)
    precision: str = "float32",
) -> Tensor:
    """Logits at the wanted nodes of regular bricks of 8 x 8 x 8 queries. Inference only: no gradient is recorded.

    Args:
        bricks: where the nodes are, in which shape of the batch, and which are wanted.
        weights, layout, planes, grid, bases, basis_scale: see ``decode``.
        precision: see ``decode``; where features are interpolated after their layer, those of the maps' cells are
            rounded instead of the query's.

    Returns:
        (K, 512) float32, node (i, j, k) at ``64 * i + 8 * j + k``; NaN where a node is not wanted.

    Raises:
        ValueError: see ``decode``; or a brick names a shape that is not in the batch.
        TypeError: see ``decode``; or an input is float64.
    """
    features = planes if grid is None else grid
    batch = 0 if features is None else features.shape[0]
    like = torch.empty((batch, 0, 3), device=bricks.corner.device)
    call = _Call("decode_bricks", like, weights, layout, planes, grid, (bases, basis_scale), precision)
    if call.wide == torch.float64:
        raise TypeError(
            "occkernels.decode_bricks: float64 is not supported; convert features and weights with .float(), or "
            "evaluate the nodes with occkernels.decode."
        )
    if bricks.shape.numel():
        low, high = (int(bound) for bound in bricks.shape.aminmax())
        if low < 0 or high >= batch:
            raise ValueError(
                f"occkernels.decode_bricks: `bricks.shape` must lie in [0, {batch}), the batch of the features, "
                f"got {low} to {high}."
            )
    place = [float(bricks.spacing), float(bricks.origin)]
    with torch.no_grad():
        integers, numbers = call.constants()
        nodes = (bricks.shape, bricks.corner, bricks.mask)
        packed = (weights.packed, call.rounded())
        result: Tensor = ops.decode_bricks(call.maps(), *packed, *nodes, integers, [*numbers, *place])
    return result


def decode_conditional(
    query: Tensor,  # (B, M, 3)
    weights: ConditionalWeights,
    scale: Tensor,  # (B, N + 1, H)
    shift: Tensor,  # (B, N + 1, H)
    offset: Tensor | None = None,  # (B, H)
    *,
    precision: str = "float32",
) -> Tensor:
    """Logits of a decoder conditioned by scales and shifts: ONet's with conditional batch norm, at inference.

    ``fold_conditional_norm`` makes the scales and shifts. When gradients are recorded and an input requires one, or
    when anything is float64, linear layers run instead of the kernel: differentiable, but slower.

    Args:
        query: (B, M, 3) coordinates.
        weights: the network; 1 to 256 hidden channels (multiples of 16 are fastest).
        scale, shift: (B, N + 1, H), of every shape: before each of the N layers, and before the last one.
        offset: (B, H) added to the positional layer's output (ONet's ``fc_z(z)``).
        precision: see ``decode``.

    Returns:
        (B, M) float32; float64 when an input is.

    Raises:
        ValueError: a shape or device is wrong, hidden channels are out of range, or ``precision`` is unknown.
        TypeError: a dtype is not floating.

    Source: Mescheder et al., Occupancy Networks, CVPR 2019, supplementary 1.1; de Vries et al., NeurIPS 2017.
    """
    where = "decode_conditional"
    _check_precision(where, precision)
    _check_hidden(where, weights.hidden)
    sizes = check_tensor(where, "query", query, "B M 3") | {"N": weights.count + 1, "H": weights.hidden}
    check_tensor(where, "scale", scale, "B N H", sizes, like=query)
    check_tensor(where, "shift", shift, "B N H", sizes, like=query)
    given = [query, scale, shift, *weights.tensors()]
    if offset is not None:
        check_tensor(where, "offset", offset, "B H", sizes, like=query)
        given.append(offset)
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in given) else torch.float32
    if wide == torch.float64 or _records(given):
        return _conditional_unfused(query.to(wide), weights, (scale.to(wide), shift.to(wide)), offset)
    affine = F.pad(torch.stack([scale, shift], dim=2).float(), (0, -weights.hidden % 16))
    offset = None if offset is None else F.pad(offset.float(), (0, -weights.hidden % 16))
    packing = ops.packing(precision, query)
    packed = (weights.packed, None if packing is None else weights.rounded(packing))
    numbers = ([weights.hidden, weights.count, ops.PRECISIONS[precision]], list(weights.leaks), weights.residual)
    result: Tensor = ops.decode_conditional(query.float(), *packed, affine, offset, *numbers)
    return result


class _Call:
    """The checked arguments of one call."""

    def __init__(
        self,
        where: str,
        query: Tensor,
        weights: DecoderWeights,
        layout: FeatureLayout,
        planes: Tensor | None,
        grid: Tensor | None,
        bases: tuple[Tensor | None, Tensor | None],
        precision: str,
    ) -> None:
        _check_precision(where, precision)
        self.precision = precision
        _check_hidden(where, weights.hidden)
        self.query, self.weights, self.layout = query, weights, layout
        self.planes, self.grid, self.bases = planes, grid, bases
        channels = _check_features(where, query, layout, planes, grid)
        given = [query, planes, grid, *bases, *weights.tensors()]
        tensors = [tensor for tensor in given if tensor is not None]
        self.wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        self.differentiable = self.wide == torch.float64 or _records(tensors)
        self.concat = _is_concat(where, weights, layout, channels)
        check_tensor(where, "weights.fc_p[0]", weights.fc_p[0], "H 3", like=query)
        check_bases(where, query, layout, *bases)

    def maps(self) -> list[Tensor]:
        """Features as the kernel takes them, channels last, then bases and scales."""
        planes = None if self.planes is None else self.planes.permute(0, 1, 3, 4, 2).contiguous()
        grid = None if self.grid is None else self.grid.permute(0, 2, 3, 4, 1).contiguous()
        frames = check_bases("decode", self.query.float(), self.layout, *self.bases)
        return [tensor for tensor in (planes, grid, *frames) if tensor is not None]

    def constants(self) -> tuple[list[int], list[float]]:
        mask, dynamic, side, deep, cells, padding = self.layout.spec()
        network = [self.weights.hidden, self.weights.depth, ops.PRECISIONS[self.precision], int(self.concat)]
        return [*network, mask, dynamic, side, deep, int(cells)], [self.weights.leak, padding]

    def rounded(self) -> Tensor | None:
        packing = ops.packing(self.precision, self.query)
        return None if packing is None else self.weights.rounded(packing)

    def run(self, gradient: bool) -> tuple[Tensor, Tensor]:
        others = (None, self.weights.reversed) if gradient else (self.rounded(), None)
        weights = (self.weights.packed, *others)
        logits, slopes = ops.decode(self.maps(), self.query.float(), *weights, *self.constants())
        return logits, slopes

    def _sampling(self) -> dict[str, Tensor | str | None]:
        def convert(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(self.wide)

        bases, scale = self.bases
        named = {"planes": self.planes, "grid": self.grid, "bases": bases, "basis_scale": scale}
        reduce = "concat" if self.concat else "sum"
        return {name: convert(tensor) for name, tensor in named.items()} | {"reduce": reduce}

    def unfused(self) -> tuple[Tensor, Tensor | None]:
        from occkernels import sample_features  # the public composition; a family imports no other at load time

        query = self.query.to(self.wide)
        features = sample_features(query, self.layout, **self._sampling())  # type: ignore[arg-type]
        return _network(self.weights, query, features, None)

    def unfused_with_gradient(self) -> tuple[Tensor, Tensor]:
        from occkernels import sample_features_with_gradient

        query = self.query.to(self.wide)
        both = sample_features_with_gradient(query, self.layout, **self._sampling())  # type: ignore[arg-type]
        logits, gradient = _network(self.weights, query, *both)
        assert gradient is not None
        return logits, gradient


def _values(both: tuple[Tensor, Tensor | None]) -> Tensor:
    return both[0]


def _network(
    weights: DecoderWeights, query: Tensor, features: Tensor, tangents: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Logits (B, M) and, with tangents (B, M, 3, C) of the features, the gradient (B, M, 3)."""
    wide = query.dtype
    position, bias = (tensor.to(wide) for tensor in weights.fc_p)
    net = F.linear(query, position, bias)
    moved = None if tangents is None else position.mT.expand(*query.shape[:2], 3, weights.hidden)

    def layer(pair: tuple[Tensor, Tensor], i: int, x: Tensor, dx: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = pair[0][i].to(wide)
        return F.linear(x, weight, pair[1][i].to(wide)), None if dx is None else F.linear(dx, weight)

    def add(x: Tensor, dx: Tensor | None, y: Tensor, dy: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return x + y, None if dx is None or dy is None else dx + dy

    def active(x: Tensor, dx: Tensor | None, leak: float = 0.0) -> tuple[Tensor, Tensor | None]:
        return F.leaky_relu(x, leak) if leak else F.relu(x), None if dx is None else _slope(x, dx, leak)

    for i in range(weights.depth):
        net, moved = add(net, moved, *layer(weights.fc_c, i, features, tangents))
        inner = layer(weights.fc_0, i, *active(net, moved))
        net, moved = add(net, moved, *layer(weights.fc_1, i, *active(*inner)))
    net, moved = active(net, moved, weights.leak)
    out, bias = (tensor.to(wide) for tensor in weights.fc_out)
    return net @ out + bias, None if moved is None else moved @ out


def _slope(x: Tensor, dx: Tensor, leak: float) -> Tensor:
    """Derivative of the (leaky) ReLU at x times dx (..., 3, H)."""
    return torch.where((x > 0)[..., None, :], dx, leak * dx)


def _conditional_unfused(
    query: Tensor, weights: ConditionalWeights, affine: tuple[Tensor, Tensor], offset: Tensor | None
) -> Tensor:
    wide = query.dtype
    scale, shift = affine
    last, others = weights.leaks
    position, bias = (tensor.to(wide) for tensor in weights.fc_p)
    net = F.linear(query, position, bias)
    if offset is not None:
        net = net + offset.to(wide)[:, None]
    entered = net
    for i in range(weights.count):
        x = F.leaky_relu(scale[:, i, None] * net + shift[:, i, None], others)
        x = F.linear(x, weights.layers[0][i].to(wide), weights.layers[1][i].to(wide))
        if weights.residual and i % 2:
            x = entered = entered + x
        net = x
    net = F.leaky_relu(scale[:, -1, None] * net + shift[:, -1, None], last)
    out, bias = (tensor.to(wide) for tensor in weights.fc_out)
    return net @ out + bias


def _records(tensors: Iterable[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check_precision(where: str, precision: str) -> None:
    if precision not in ops.PRECISIONS:
        names = ", ".join(map(repr, ops.PRECISIONS))
        raise ValueError(f"occkernels.{where}: `precision` must be one of {names}, got {precision!r}.")


def _check_hidden(where: str, hidden: int) -> None:
    if not HIDDEN_LIMITS[0] <= hidden <= HIDDEN_LIMITS[1]:
        raise ValueError(
            f"occkernels.{where}: the fused decoder takes {HIDDEN_LIMITS[0]} to {HIDDEN_LIMITS[1]} hidden channels, "
            f"got {hidden}. Use occkernels.sample_features and torch modules."
        )


def _check_features(
    where: str, query: Tensor, layout: FeatureLayout, planes: Tensor | None, grid: Tensor | None
) -> int:
    """Channels of one map."""
    sizes = check_tensor(where, "query", query, "B M 3")
    sizes |= {"P": layout.num_planes, "R": layout.plane_resolution, "G": layout.grid_resolution}
    for name, tensor, pattern, count in (
        ("planes", planes, "B P C R R", layout.num_planes),
        ("grid", grid, "B C G G G", layout.grid_resolution),
    ):
        if (tensor is None) != (count == 0):
            state = f"has {name}, so `{name}` of shape ({pattern}) is needed" if count else f"has no {name}"
            raise ValueError(f"occkernels.{where}: the layout {state}{'' if count else f', but `{name}` was given'}.")
        if tensor is not None:
            check_tensor(where, name, tensor, pattern, sizes, like=query)
    if planes is not None and grid is not None and planes.dtype != grid.dtype:
        raise TypeError(
            f"occkernels.{where}: `planes` is {planes.dtype} and `grid` is {grid.dtype}; convert one to the other."
        )
    return sizes["C"]


def _is_concat(where: str, weights: DecoderWeights, layout: FeatureLayout, channels: int) -> bool:
    if weights.depth == 0 or weights.features == channels:
        return False
    if weights.features == channels * layout.num_maps:
        return True
    raise ValueError(
        f"occkernels.{where}: `weights.fc_c` takes {weights.features} channels, but the layout's {layout.num_maps} "
        f"maps have {channels} each: expected {channels} for their sum or {channels * layout.num_maps} to concatenate."
    )
