# SPDX-License-Identifier: MIT
"""Decoders of Occupancy Networks (Mescheder et al., CVPR 2019): one condition for the whole shape, logits at queries.

Letters: B batch, M queries, C condition, Z latent, H hidden channels, N square layers. Features are a mapping with the
condition ``c`` (B, C) and the latent code ``z`` (B, Z); either may have no channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.blocks import ResnetBlockFC
from occnets.models.conditional import ConditionalBatchNorm, NoNorm, UnconditionalBatchNorm
from occnets.models.options import make_options

_BLOCKS = 5
_LEAK = 0.2


class NormalizedDecoder(nn.Module):
    """What the decoders share: norm, activation, layer, N times, then norm, activation, output.

    The positional layer, the N square layers and the output are linear layers or 1x1 convolutions, both computed as
    matrix products of rows (B, M, H). Subclasses create the layers under the family's names; those whose square layers
    are not in ``block0`` to ``block4``, or have other norms, return them from ``norms``, ``layers`` and ``ends``.

    Attributes:
        options: of the decoder.
        residual: layers form pairs, the second of which adds its output to what entered the first.
        leaks: slopes below zero of the last activation, and of the others.
    """

    options: Any
    residual = True
    leaks: tuple[float, float] = (0.0, 0.0)

    def norms(self) -> Sequence[nn.Module]:
        """The N + 1 norms: one before each square layer, one before the output."""
        return [*_of_blocks(_numbered(self, "block"), "bn"), self.bn]

    def layers(self) -> Sequence[nn.Module]:
        """The N square layers."""
        return _of_blocks(_numbered(self, "block"), "fc")

    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The positional layer and the output layer."""
        return self.fc_p, self.fc_out

    def condition(self, features: Mapping[str, Tensor]) -> Tensor:
        """What the norms are conditioned on, (B, C)."""
        return features["c"]

    def offset(self, features: Mapping[str, Tensor]) -> Tensor | None:
        """(B, H) added to the output of the positional layer: the codes there are layers for; ``None`` if for none."""
        parts = [self.get_submodule(f"fc_{code}")(features[code]) for code in ("z", "c") if hasattr(self, f"fc_{code}")]
        return sum(parts[1:], parts[0]) if parts else None

    def forward(self, query: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """Map queries (B, M, 3) to logits (B, M)."""
        c, norms = self.condition(features), self.norms()
        return self._run(query, self.offset(features), lambda index, net: norms[index](net, c))

    def _run(self, query: Tensor, offset: Tensor | None, norm: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The network with ``norm(index, (B, M, H))`` for its norms."""
        first, last = self.ends()
        layers = self.layers()
        net = _rows(first, query)
        net = entered = net if offset is None else net + offset.unsqueeze(1)
        for index, layer in enumerate(layers):
            net = _rows(layer, _activate(norm(index, net), self.leaks[1]))
            if self.residual and index % 2:
                net = entered = entered + net
        return _rows(last, _activate(norm(len(layers), net), self.leaks[0])).squeeze(-1)

    def folded(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the norms do to these shapes in evaluation mode: one scale and shift a channel.

        Gamma, beta and the running mean and variance fold into ``scale * x + shift``, once a shape instead of once a
        call. :meth:`forward_folded` and a fused kernel decode from them.

        Returns:
            ``(scales, shifts)``, (B, N + 1, H) each, in the order of :meth:`norms`.
        """
        c = self.condition(features)
        pairs = [norm.fold(c) for norm in self.norms()]
        return torch.stack([scale for scale, _ in pairs], dim=1), torch.stack([shift for _, shift in pairs], dim=1)

    def stacked(self) -> dict[str, Any]:
        """The network without its norms, as a kernel takes it.

        Returns:
            Pairs of weight and bias ``fc_p`` (H, 3) and (H,), ``layers`` (N, H, H) and (N, H), ``fc_out`` (H,) and ();
            ``residual``; and ``leaky``: leaky ReLU (0.2) before the output and, without ``residual``, everywhere.
        """
        first, last = self.ends()
        weights = torch.stack([layer.weight.flatten(1) for layer in self.layers()])
        return {
            "fc_p": (first.weight.flatten(1), first.bias),
            "layers": (weights, torch.stack([layer.bias for layer in self.layers()])),
            "fc_out": (last.weight.flatten(), last.bias.squeeze(0)),
            "residual": self.residual,
            "leaky": self.leaks[0] > 0,
        }

    def forward_folded(self, query: Tensor, scales: Tensor, shifts: Tensor, offset: Tensor | None = None) -> Tensor:
        """Logits (B, M) in evaluation mode, from what :meth:`folded` and :meth:`offset` returned."""
        scales, shifts = scales.unsqueeze(2), shifts.unsqueeze(2)
        return self._run(query, offset, lambda index, net: torch.addcmul(shifts[:, index], scales[:, index], net))


@dataclasses.dataclass(frozen=True)
class FCOptions:
    """Options of :class:`FCDecoder`; names and defaults are the family's.

    Attributes:
        dim: coordinates per query.
        z_dim: channels of the latent code, 0 for none.
        c_dim: channels of the condition, 0 for none.
        hidden_size: channels of the residual blocks.
        leaky: leaky ReLU (0.2) instead of ReLU before the last layer.
    """

    dim: int = 3
    z_dim: int = 128
    c_dim: int = 128
    hidden_size: int = 128
    leaky: bool = False


class FCDecoder(NormalizedDecoder):
    """Condition and latent code are added once, then five fully connected residual blocks (``simple``); no norms.

    Args:
        options: see :class:`FCOptions`; or give its fields as keywords.
    """

    def __init__(self, options: FCOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(FCOptions, fields, "FCDecoder") if options is None else options
        self.options = o
        self.leaks = (_LEAK if o.leaky else 0.0, 0.0)
        self.fc_p = nn.Linear(o.dim, o.hidden_size)
        if o.z_dim:
            self.fc_z = nn.Linear(o.z_dim, o.hidden_size)
        if o.c_dim:
            self.fc_c = nn.Linear(o.c_dim, o.hidden_size)
        for index in range(_BLOCKS):
            self.add_module(f"block{index}", ResnetBlockFC(o.hidden_size))
        self.fc_out = nn.Linear(o.hidden_size, 1)

    def norms(self) -> Sequence[nn.Module]:
        """See :meth:`NormalizedDecoder.norms`."""
        return [NoNorm(self.options.hidden_size)] * (2 * _BLOCKS + 1)


@dataclasses.dataclass(frozen=True)
class CBNOptions:
    """Options of :class:`CBNDecoder`; names and defaults are the family's.

    Attributes:
        dim: coordinates per query.
        z_dim: channels of the latent code, 0 for none.
        c_dim: channels of the condition.
        hidden_size: channels of the layers.
        leaky: leaky ReLU (0.2) instead of ReLU before the last layer.
        legacy: parameter names of the first released image model, see
            :class:`occnets.models.conditional.ConditionalBatchNorm`.
    """

    dim: int = 3
    z_dim: int = 128
    c_dim: int = 128
    hidden_size: int = 256
    leaky: bool = False
    legacy: bool = False


class _Block(nn.Module):
    """Parameters of one pre-activation residual block; the decoder runs them."""

    def __init__(self, hidden: int, norm_0: nn.Module, norm_1: nn.Module) -> None:
        super().__init__()
        self.bn_0 = norm_0
        self.bn_1 = norm_1
        self.fc_0 = nn.Conv1d(hidden, hidden, 1)
        self.fc_1 = nn.Conv1d(hidden, hidden, 1)
        nn.init.zeros_(self.fc_1.weight)


class CBNDecoder(NormalizedDecoder):
    """Five residual blocks with conditional batch norm (``cbatchnorm``): the decoder of the paper.

    Args:
        options: see :class:`CBNOptions`; or give its fields as keywords.
    """

    def __init__(self, options: CBNOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(CBNOptions, fields, "CBNDecoder") if options is None else options
        self.options = o
        self.leaks = (_LEAK if o.leaky else 0.0, 0.0)
        if o.z_dim:
            self.fc_z = nn.Linear(o.z_dim, o.hidden_size)
        self.fc_p = nn.Conv1d(o.dim, o.hidden_size, 1)
        for index in range(_BLOCKS):
            norms = (ConditionalBatchNorm(o.c_dim, o.hidden_size, o.legacy) for _ in range(2))
            self.add_module(f"block{index}", _Block(o.hidden_size, *norms))
        self.bn = ConditionalBatchNorm(o.c_dim, o.hidden_size, o.legacy)
        self.fc_out = nn.Conv1d(o.hidden_size, 1, 1)


@dataclasses.dataclass(frozen=True)
class CBN2Options:
    """Options of :class:`CBN2Decoder`; names and defaults are the family's, meanings as in :class:`CBNOptions`.

    Attributes:
        n_blocks: residual blocks.
    """

    dim: int = 3
    z_dim: int = 0
    c_dim: int = 128
    hidden_size: int = 256
    n_blocks: int = 5


class CBN2Decoder(NormalizedDecoder):
    """As :class:`CBNDecoder`, but the latent code is added to the condition (``cbatchnorm2``).

    Args:
        options: see :class:`CBN2Options`; or give its fields as keywords.
    """

    def __init__(self, options: CBN2Options | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(CBN2Options, fields, "CBN2Decoder") if options is None else options
        self.options = o
        if o.z_dim:
            self.fc_z = nn.Linear(o.z_dim, o.c_dim)
        self.conv_p = nn.Conv1d(o.dim, o.hidden_size, 1)
        self.blocks = nn.ModuleList(
            _Block(o.hidden_size, *(ConditionalBatchNorm(o.c_dim, o.hidden_size) for _ in range(2)))
            for _ in range(o.n_blocks)
        )
        self.bn = ConditionalBatchNorm(o.c_dim, o.hidden_size)
        self.conv_out = nn.Conv1d(o.hidden_size, 1, 1)

    def norms(self) -> Sequence[nn.Module]:
        """See :meth:`NormalizedDecoder.norms`."""
        return [*_of_blocks(self.blocks, "bn"), self.bn]

    def layers(self) -> Sequence[nn.Module]:
        """See :meth:`NormalizedDecoder.layers`."""
        return _of_blocks(self.blocks, "fc")

    def ends(self) -> tuple[nn.Module, nn.Module]:
        """See :meth:`NormalizedDecoder.ends`."""
        return self.conv_p, self.conv_out

    def condition(self, features: Mapping[str, Tensor]) -> Tensor:
        """The latent code enters here."""
        return features["c"] + self.fc_z(features["z"]) if self.options.z_dim else features["c"]

    def offset(self, features: Mapping[str, Tensor]) -> Tensor | None:
        """None: the latent code is part of the condition."""
        return None


@dataclasses.dataclass(frozen=True)
class PlainOptions:
    """Options of the two ablations' decoders, the family's; meanings as in :class:`CBNOptions`."""

    dim: int = 3
    z_dim: int = 128
    c_dim: int = 128
    hidden_size: int = 256
    leaky: bool = False


class CBNPlainDecoder(NormalizedDecoder):
    """Conditional batch norm without residual connections (``cbatchnorm_noresnet``); ``leaky`` holds everywhere.

    Args:
        options: see :class:`PlainOptions`; or give its fields as keywords.
    """

    residual = False

    def __init__(self, options: PlainOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PlainOptions, fields, "CBNPlainDecoder") if options is None else options
        self.options = o
        self.leaks = (_LEAK, _LEAK) if o.leaky else (0.0, 0.0)
        if o.z_dim:
            self.fc_z = nn.Linear(o.z_dim, o.hidden_size)
        self.fc_p = nn.Conv1d(o.dim, o.hidden_size, 1)
        for index in range(_BLOCKS):
            self.add_module(f"fc_{index}", nn.Conv1d(o.hidden_size, o.hidden_size, 1))
        for index in range(_BLOCKS + 1):
            self.add_module(f"bn_{index}", ConditionalBatchNorm(o.c_dim, o.hidden_size))
        self.fc_out = nn.Conv1d(o.hidden_size, 1, 1)

    def norms(self) -> Sequence[nn.Module]:
        """See :meth:`NormalizedDecoder.norms`."""
        return _numbered(self, "bn_", _BLOCKS + 1)

    def layers(self) -> Sequence[nn.Module]:
        """See :meth:`NormalizedDecoder.layers`."""
        return _numbered(self, "fc_")


class BNDecoder(NormalizedDecoder):
    """Ordinary batch norm; condition and latent code are added once after the positional layer (``batchnorm``).

    Args:
        options: see :class:`PlainOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PlainOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PlainOptions, fields, "BNDecoder") if options is None else options
        self.options = o
        self.leaks = (_LEAK if o.leaky else 0.0, 0.0)
        if o.z_dim:
            self.fc_z = nn.Linear(o.z_dim, o.hidden_size)
        if o.c_dim:
            self.fc_c = nn.Linear(o.c_dim, o.hidden_size)
        self.fc_p = nn.Conv1d(o.dim, o.hidden_size, 1)
        for index in range(_BLOCKS):
            norms = (UnconditionalBatchNorm(o.hidden_size) for _ in range(2))
            self.add_module(f"block{index}", _Block(o.hidden_size, *norms))
        self.bn = UnconditionalBatchNorm(o.hidden_size)
        self.fc_out = nn.Conv1d(o.hidden_size, 1, 1)


def _numbered(module: nn.Module, prefix: str, count: int = _BLOCKS) -> list[nn.Module]:
    return [module.get_submodule(f"{prefix}{index}") for index in range(count)]


def _of_blocks(blocks: Sequence[nn.Module] | nn.ModuleList, kind: str) -> list[nn.Module]:
    return [block.get_submodule(f"{kind}_{index}") for block in blocks for index in range(2)]


def _activate(x: Tensor, leak: float) -> Tensor:
    return functional.leaky_relu(x, leak) if leak else functional.relu(x)


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer or 1x1 convolution of rows (B, M, K)."""
    return functional.linear(x, layer.weight.flatten(1), layer.bias)
