# SPDX-License-Identifier: MIT
"""Weights of the fused decoders as their kernels read them, and the query bricks they take: data, no operators.

A matrix that maps K inputs to N outputs is packed as panels of 16 outputs, (ceil(N / 16), K, 16), zeros beyond N; the
order of the parts is that of csrc/math/decode.h. Copies with rounded weights are packed as the
instructions that multiply them want: bf16 pairs of inputs on the CPU, fragments of tensor cores on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_PANEL = 16
HIDDEN_LIMITS = (1, 256)
"""Channels of the hidden layers the fused kernels take."""


@dataclass(frozen=True)
class DecoderWeights:
    """The decoder of Convolutional Occupancy Networks (Peng et al., ECCV 2020, section 3.2).

    With c the features at a query p: ``net = fc_p(p)``; L times ``net = net + fc_c[i](c)``, then
    ``net = net + fc_1[i](relu(fc_0[i](relu(net))))``; the logit is ``fc_out(act(net))``.

    The kernels read a packed copy, made when it is first needed: do not change the tensors in place afterwards.

    Attributes:
        fc_p: (H, 3) weight and (H,) bias of the positional layer.
        fc_c: (L, H, C) and (L, H), the blocks' feature layers. C is the channels of one map, or of all maps
            together when the decoder concatenates them.
        fc_0, fc_1: (L, H, H) and (L, H), the blocks' own layers.
        fc_out: (H,) and (), the last layer.
        leaky: leaky ReLU (0.2) instead of ReLU before the last layer.

    Raises:
        ValueError, TypeError: shapes that do not fit each other, or different or non-floating dtypes.
    """

    fc_p: tuple[Tensor, Tensor]
    fc_c: tuple[Tensor, Tensor]
    fc_0: tuple[Tensor, Tensor]
    fc_1: tuple[Tensor, Tensor]
    fc_out: tuple[Tensor, Tensor]
    leaky: bool = False

    def __post_init__(self) -> None:
        hidden, depth, features = self.hidden, self.depth, self.features
        _check_pair("DecoderWeights", "fc_p", self.fc_p, (hidden, 3), self.fc_p[0])
        _check_pair("DecoderWeights", "fc_c", self.fc_c, (depth, hidden, features), self.fc_p[0])
        _check_pair("DecoderWeights", "fc_0", self.fc_0, (depth, hidden, hidden), self.fc_p[0])
        _check_pair("DecoderWeights", "fc_1", self.fc_1, (depth, hidden, hidden), self.fc_p[0])
        _check_pair("DecoderWeights", "fc_out", self.fc_out, (hidden,), self.fc_p[0])

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, leaky: bool = False) -> DecoderWeights:
        """From a decoder's state dict, whose keys are ``fc_p``, ``fc_c.i``, ``blocks.i.fc_0``, ``blocks.i.fc_1`` and
        ``fc_out``, each with ``.weight`` and ``.bias``.

        Raises:
            ValueError: a key is missing, or a block has a shortcut layer, which this decoder has not.
        """
        depth = sum(name.startswith("fc_c.") and name.endswith(".weight") for name in tensors)
        if any("shortcut" in name for name in tensors):
            raise ValueError("DecoderWeights: blocks with a shortcut layer are not supported; use the torch modules.")

        def pair(name: str) -> tuple[Tensor, Tensor]:
            missing = [key for key in (f"{name}.weight", f"{name}.bias") if key not in tensors]
            if missing:
                raise ValueError(f"DecoderWeights.from_tensors: {missing[0]!r} is missing; got {sorted(tensors)}.")
            return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

        hidden, position = pair("fc_p")[0].shape[0], pair("fc_p")[0]

        def stack(pattern: str, columns: int) -> tuple[Tensor, Tensor]:
            pairs = [pair(pattern.format(i)) for i in range(depth)]
            if not pairs:
                return position.new_empty(0, hidden, columns), position.new_empty(0, hidden)
            return torch.stack([weight for weight, _ in pairs]), torch.stack([bias for _, bias in pairs])

        weight, bias = pair("fc_out")
        blocks = (stack("blocks.{}.fc_0", hidden), stack("blocks.{}.fc_1", hidden))
        return cls(pair("fc_p"), stack("fc_c.{}", 0), *blocks, (weight.reshape(-1), bias.reshape(())), leaky)

    @property
    def hidden(self) -> int:
        """H, channels of the hidden layers."""
        return self.fc_p[0].shape[0]

    @property
    def depth(self) -> int:
        """L, residual blocks."""
        return self.fc_c[0].shape[0]

    @property
    def features(self) -> int:
        """C, channels the feature layers take."""
        return self.fc_c[0].shape[2]

    @property
    def leak(self) -> float:
        """Slope of the last activation below zero."""
        return 0.2 if self.leaky else 0.0

    def tensors(self) -> list[Tensor]:
        """All weights and biases."""
        return [tensor for pair in (self.fc_p, self.fc_c, self.fc_0, self.fc_1, self.fc_out) for tensor in pair]

    @property
    def packed(self) -> Tensor:
        """One float32 vector in the kernels' order."""
        return _kept(self, "_packed", self._pack)

    def rounded(self, packing: str) -> Tensor:
        """The feature and square matrices with rounded weights, as int32 words.

        Args:
            packing: "pairs" (bf16, CPU), or "tf32" or "bf16": fragments for CUDA.
        """
        return _kept(self, f"_rounded_{packing}", lambda: _rounded((self.fc_c, self.fc_0, self.fc_1), packing))

    @property
    def reversed(self) -> Tensor:
        """The transposed matrices, for the gradient."""
        return _kept(self, "_reversed", self._reverse)

    def _pack(self) -> Tensor:
        with torch.no_grad():
            matrices = [_panels(part[0]) for part in (self.fc_p, self.fc_c, self.fc_0, self.fc_1)]
            bias = self.fc_1[1].new_zeros(self.depth + 1, self.hidden)
            bias[0] = self.fc_p[1]
            bias[1:] += self.fc_1[1]
            bias[:-1] += self.fc_c[1]
            vectors = [_padded(part) for part in (self.fc_0[1], bias, self.fc_out[0], self.fc_out[1].reshape(1))]
            return torch.cat(matrices + vectors)

    def _reverse(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([_panels(part[0].mT) for part in (self.fc_p, self.fc_c, self.fc_0, self.fc_1)])


@dataclass(frozen=True)
class ConditionalWeights:
    """A decoder whose layers are conditioned by scales and shifts (Mescheder et al., CVPR 2019, with folded norms).

    ``net = fc_p(p)``; before each of the N square layers and before the last one stands
    ``act(scale[i] * net + shift[i])``. With ``residual`` the layers form pairs, and the second of each adds its output
    to what entered the first; else each output is the next input.

    Attributes:
        fc_p: (H, 3) weight and (H,) bias.
        layers: (N, H, H) and (N, H).
        fc_out: (H,) and ().
        residual: N is even and layers form residual pairs.
        leaky: leaky ReLU (0.2) before the last layer, and without ``residual`` everywhere.

    Raises:
        ValueError, TypeError: shapes that do not fit each other, or different or non-floating dtypes.
    """

    fc_p: tuple[Tensor, Tensor]
    layers: tuple[Tensor, Tensor]
    fc_out: tuple[Tensor, Tensor]
    residual: bool = True
    leaky: bool = False

    def __post_init__(self) -> None:
        _check_pair("ConditionalWeights", "fc_p", self.fc_p, (self.hidden, 3), self.fc_p[0])
        _check_pair("ConditionalWeights", "layers", self.layers, (self.count, self.hidden, self.hidden), self.fc_p[0])
        _check_pair("ConditionalWeights", "fc_out", self.fc_out, (self.hidden,), self.fc_p[0])
        if self.residual and self.count % 2:
            raise ValueError(
                f"ConditionalWeights: residual layers form pairs, so their number is even, not {self.count}."
            )

    @property
    def hidden(self) -> int:
        """H, channels of the hidden layers."""
        return self.fc_p[0].shape[0]

    @property
    def count(self) -> int:
        """N, square layers."""
        return self.layers[0].shape[0]

    @property
    def leaks(self) -> tuple[float, float]:
        """Slopes below zero of the last activation, and of the others."""
        return (0.2 if self.leaky else 0.0), (0.2 if self.leaky and not self.residual else 0.0)

    def tensors(self) -> list[Tensor]:
        """All weights and biases."""
        return [tensor for pair in (self.fc_p, self.layers, self.fc_out) for tensor in pair]

    @property
    def packed(self) -> Tensor:
        """One float32 vector in the kernels' order."""
        return _kept(self, "_packed", self._pack)

    def rounded(self, packing: str) -> Tensor:
        """The square matrices with rounded weights; see ``DecoderWeights.rounded``."""
        return _kept(self, f"_rounded_{packing}", lambda: _rounded((self.layers,), packing))

    def _pack(self) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    _panels(self.fc_p[0]),
                    _padded(self.fc_p[1]),
                    _panels(self.layers[0]),
                    _padded(self.layers[1]),
                    _padded(self.fc_out[0]),
                    _padded(self.fc_out[1].reshape(1)),
                ]
            )


@dataclass(frozen=True)
class QueryBricks:
    """Regular blocks of 8 x 8 x 8 queries, as a multiresolution extraction asks for them.

    Node (i, j, k) of brick r lies at ``origin + spacing * (corner[r] + (i, j, k))``, computed in float64 and rounded to
    float32. It is wanted if bit ``8 * j + k`` of ``mask[r, i]``, read as 64 unsigned bits, is set.

    Attributes:
        shape: (K,) int64, which shape of the batch.
        corner: (K, 3) int32, first node.
        mask: (K, 8) int64.
        spacing, origin: units of the query coordinates.
    """

    shape: Tensor
    corner: Tensor
    mask: Tensor
    spacing: float
    origin: float

    def __post_init__(self) -> None:
        count = self.shape.shape[0] if self.shape.dim() else 0
        for name, tensor, size, dtype in (
            ("shape", self.shape, (count,), torch.int64),
            ("corner", self.corner, (count, 3), torch.int32),
            ("mask", self.mask, (count, 8), torch.int64),
        ):
            if tensor.shape != size or tensor.dtype != dtype or tensor.device != self.shape.device:
                raise ValueError(
                    f"QueryBricks: `{name}` must be {size} {dtype} on {self.shape.device}, "
                    f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}."
                )


def fold_conditional_norm(
    gamma: Tensor,  # (..., H)
    beta: Tensor,  # (..., H)
    mean: Tensor,  # (H,)
    variance: Tensor,  # (H,)
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Scale and shift that do what conditional batch norm does at inference.

    Args:
        gamma, beta: (..., H) the condition's scale and shift after normalisation.
        mean, variance: (H,) running statistics.
        eps: added to the variance.

    Returns:
        ``(scale, shift)``, (..., H) each: ``scale * x + shift = gamma * (x - mean) / sqrt(variance + eps) + beta``.
    """
    scale = gamma * torch.rsqrt(variance + eps)
    return scale, beta - mean * scale


def _kept(owner: object, name: str, make: Callable[[], Tensor]) -> Tensor:
    """The attribute ``name``, made on first use. Not functools.cached_property, which torch.compile cannot trace."""
    value: Tensor | None = getattr(owner, name, None)
    if value is None:
        value = make()
        object.__setattr__(owner, name, value)
    return value


def _check_pair(where: str, name: str, pair: tuple[Tensor, Tensor], size: Sequence[int], like: Tensor) -> None:
    for kind, tensor, expected in (("weight", pair[0], tuple(size)), ("bias", pair[1], tuple(size)[:-1])):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{where}: the {kind} of `{name}` must be {expected}, got {tuple(tensor.shape)}.")
        if tensor.dtype != like.dtype or tensor.device != like.device or not tensor.is_floating_point():
            raise TypeError(
                f"{where}: the {kind} of `{name}` must be floating point and, like `fc_p`, {like.dtype} on "
                f"{like.device}, got {tensor.dtype} on {tensor.device}."
            )


def _panels(matrix: Tensor) -> Tensor:
    """(..., N, K) weights as a vector of panels of 16 outputs, (..., ceil(N / 16), K, 16)."""
    padded = F.pad(matrix.float(), (0, 0, 0, -matrix.shape[-2] % _PANEL))
    panels = (*padded.shape[:-2], padded.shape[-2] // _PANEL, _PANEL, padded.shape[-1])
    return padded.reshape(panels).mT.flatten()


def _padded(vectors: Tensor) -> Tensor:
    """(..., N) vectors, each padded to whole panels, as one."""
    return F.pad(vectors.float(), (0, -vectors.shape[-1] % _PANEL)).flatten()


def _rounded(parts: Sequence[tuple[Tensor, Tensor]], packing: str) -> Tensor:
    pack = {"pairs": _pairs, "tf32": _fragments_tf32, "bf16": _fragments_bf16}[packing]
    with torch.no_grad():
        return torch.cat([pack(weight.float()) for weight, _ in parts])


def _whole(matrix: Tensor, inputs: int) -> Tensor:
    """(D, N, K) with zeros to whole panels of outputs and to a multiple of ``inputs``."""
    return F.pad(matrix, (0, -matrix.shape[2] % inputs, 0, -matrix.shape[1] % _PANEL))


def _pairs(matrix: Tensor) -> Tensor:
    """(D, N, K) weights as (D, ceil(N / 16), ceil(K / 2), 16, 2) bf16, two to a word."""
    whole = _whole(matrix, 2)
    depth, outputs, inputs = whole.shape
    pairs = whole.reshape(depth, outputs // _PANEL, _PANEL, inputs // 2, 2).transpose(2, 3)
    return pairs.bfloat16().contiguous().view(torch.int32).flatten()


def _fragments(matrix: Tensor, together: int) -> Tensor:
    """(D, N, K) weights in the order (D, panel, step, lane, register, number within the register).

    Lane 4 g + t holds outputs g and g + 8 and, in each half of a step, the t-th group of ``together`` inputs.
    """
    inputs = 8 * together
    whole = _whole(matrix, inputs)
    depth, panels, steps = whole.shape[0], whole.shape[1] // _PANEL, whole.shape[2] // inputs
    return whole.reshape(depth, panels, 2, 8, steps, 2, 4, together).permute(0, 1, 4, 3, 6, 5, 2, 7).contiguous()


def _fragments_bf16(matrix: Tensor) -> Tensor:
    return _fragments(matrix.bfloat16(), 2).view(torch.int32).flatten()


def _fragments_tf32(matrix: Tensor) -> Tensor:
    bits = _fragments(matrix, 1).view(torch.int32).flatten()
    nearest = bits + 0xFFF + (bits >> 13 & 1) & ~0x1FFF  # of 10 mantissa bits, ties to even
    return torch.where(bits.view(torch.float32).isnan(), bits, nearest)
