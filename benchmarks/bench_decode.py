# SPDX-License-Identifier: MIT
"""Fused decoders against the original systems' path in PyTorch, on the same inputs, outputs compared first.

python -m pytest benchmarks/bench_decode.py                     tables of pytest-benchmark
python benchmarks/bench_decode.py [--repeats 20] [--threads 2] [--cpu-time]   ratios, both sides taking turns
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import Run, bench_pair, measure

import occkernels as occ
from occkernels import ConditionalWeights, DecoderWeights, FeatureLayout, QueryBricks

QUERIES, CHANNELS, HIDDEN, BLOCKS = 100_000, 32, 32, 5
AXES = {"xz": (0, 2), "xy": (0, 1), "yz": (1, 2)}


class Block(nn.Module):
    """fc_1(relu(fc_0(relu(x)))) + x, of linear layers or, with norms, of 1 x 1 convolutions."""

    def __init__(self, size: int, norms: int = 0) -> None:
        super().__init__()
        layer = (lambda: nn.Conv1d(size, size, 1)) if norms else (lambda: nn.Linear(size, size))
        self.fc_0, self.fc_1 = layer(), layer()
        if norms:
            self.bn_0, self.bn_1 = ConditionalNorm(norms, size), ConditionalNorm(norms, size)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        if c is None:
            return x + self.fc_1(F.relu(self.fc_0(F.relu(x))))
        return x + self.fc_1(F.relu(self.bn_1(self.fc_0(F.relu(self.bn_0(x, c))), c)))


class LocalDecoder(nn.Module):
    """ConvONet's decoder as published: grid_sample of every map, their sum, linear layers."""

    def __init__(self, layout: FeatureLayout) -> None:
        super().__init__()
        self.layout = layout
        self.fc_c = nn.ModuleList(nn.Linear(CHANNELS, HIDDEN) for _ in range(BLOCKS))
        self.fc_p = nn.Linear(3, HIDDEN)
        self.blocks = nn.ModuleList(Block(HIDDEN) for _ in range(BLOCKS))
        self.fc_out = nn.Linear(HIDDEN, 1)

    def forward(self, query: Tensor, maps: dict[str, Tensor]) -> Tensor:
        features = torch.stack([self.sample(query, name, values) for name, values in maps.items()]).sum(0)
        features = features.transpose(1, 2)
        net = self.fc_p(query)
        for linear, block in zip(self.fc_c, self.blocks, strict=True):
            net = block(net + linear(features))
        return self.fc_out(F.relu(net)).squeeze(-1)

    def sample(self, query: Tensor, name: str, values: Tensor) -> Tensor:
        epsilon = 1e-3 if name == "grid" else 1e-5
        t = query if name == "grid" else query[..., AXES[name]]
        t = t / (1 + self.layout.padding + epsilon) + 0.5
        if t.max() >= 1:
            t = torch.where(t >= 1, 1 - epsilon, t)
        if t.min() < 0:
            t = torch.where(t < 0, 0.0, t)
        at = 2.0 * (t[:, :, None, None] if name == "grid" else t[:, :, None]) - 1.0
        return F.grid_sample(values, at, padding_mode="border", align_corners=True, mode="bilinear").flatten(2)


class ConditionalNorm(nn.Module):
    """ONet's conditional batch norm."""

    def __init__(self, condition: int, size: int) -> None:
        super().__init__()
        self.conv_gamma, self.conv_beta = nn.Conv1d(condition, size, 1), nn.Conv1d(condition, size, 1)
        self.bn = nn.BatchNorm1d(size, affine=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c[:, :, None]
        return self.conv_gamma(c) * self.bn(x) + self.conv_beta(c)

    def folded(self, c: Tensor) -> tuple[Tensor, Tensor]:
        gamma, beta = self.conv_gamma(c[:, :, None])[..., 0], self.conv_beta(c[:, :, None])[..., 0]
        return occ.fold_conditional_norm(gamma, beta, self.bn.running_mean, self.bn.running_var, self.bn.eps)


class ConditionalDecoder(nn.Module):
    """ONet's decoder as published."""

    def __init__(self, size: int = 256, condition: int = 256) -> None:
        super().__init__()
        self.fc_p = nn.Conv1d(3, size, 1)
        self.blocks = nn.ModuleList(Block(size, condition) for _ in range(BLOCKS))
        self.bn = ConditionalNorm(condition, size)
        self.fc_out = nn.Conv1d(size, 1, 1)

    def forward(self, query: Tensor, c: Tensor) -> Tensor:
        net = self.fc_p(query.transpose(1, 2))
        for block in self.blocks:
            net = block(net, c)
        return self.fc_out(F.relu(self.bn(net, c))).squeeze(1)

    def weights(self) -> ConditionalWeights:
        layers = [layer for block in self.blocks for layer in (block.fc_0, block.fc_1)]
        stacked = torch.stack([layer.weight[..., 0] for layer in layers]), torch.stack([layer.bias for layer in layers])
        first, last = (self.fc_p.weight[..., 0], self.fc_p.bias), (self.fc_out.weight[0, :, 0], self.fc_out.bias[0])
        return ConditionalWeights(first, stacked, last)

    def norms(self, c: Tensor) -> tuple[Tensor, Tensor]:
        norms = [norm for block in self.blocks for norm in (block.bn_0, block.bn_1)] + [self.bn]
        folded = [norm.folded(c) for norm in norms]
        return torch.stack([scale for scale, _ in folded], 1), torch.stack([shift for _, shift in folded], 1)


def randomize(module: nn.Module) -> nn.Module:
    """Weights of trained size: the originals start their last layers at zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.normal_(parameter, std=0.1)
    return module.eval()


class Inputs:
    """One cloud's maps, the decoder in both forms, and random queries."""

    def __init__(self, layout: FeatureLayout) -> None:
        self.layout = layout
        self.decoder = randomize(LocalDecoder(layout))
        self.weights = DecoderWeights.from_tensors({name: p.detach() for name, p in self.decoder.named_parameters()})
        self.maps: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}
        side, deep = layout.plane_resolution, layout.grid_resolution
        if layout.planes:
            planes = torch.randn(1, len(layout.planes), side, side, CHANNELS).permute(0, 1, 4, 2, 3)
            self.features["planes"] = planes
            self.maps.update(zip(layout.planes, (plane.contiguous() for plane in planes.unbind(1)), strict=True))
        if deep:
            self.features["grid"] = torch.randn(1, deep, deep, deep, CHANNELS).permute(0, 4, 1, 2, 3)
            self.maps["grid"] = self.features["grid"].contiguous()
        self.query = torch.rand(1, QUERIES, 3) - 0.5


def compare(found: Tensor, expected: Tensor, share: float = 0.0) -> None:
    """Equal but for rounding; of gradients a small share may differ, where a ReLU's input is as good as zero."""
    wrong = (found - expected).abs() > 1e-3 * expected.abs().max()
    assert wrong.float().mean() <= share, wrong.float().mean()


def value_pair(layout: FeatureLayout) -> tuple[Run, Run]:
    """(PyTorch, ours), outputs compared."""
    inputs = Inputs(layout)

    @torch.no_grad()
    def theirs() -> Tensor:
        return inputs.decoder(inputs.query, inputs.maps)

    def ours() -> Tensor:
        return occ.decode(inputs.query, inputs.weights, layout, **inputs.features)

    compare(ours(), theirs())
    return theirs, ours


def gradient_pair(layout: FeatureLayout) -> tuple[Run, Run]:
    """Value and spatial gradient, theirs by autograd."""
    inputs = Inputs(layout)
    for parameter in inputs.decoder.parameters():
        parameter.requires_grad_(False)
    query = inputs.query.clone().requires_grad_()

    def theirs() -> tuple[Tensor, Tensor]:
        logits = inputs.decoder(query, inputs.maps)
        return logits.detach(), torch.autograd.grad(logits.sum(), query)[0]

    def ours() -> tuple[Tensor, Tensor]:
        return occ.decode_with_gradient(inputs.query, inputs.weights, layout, **inputs.features)

    for found, expected in zip(ours(), theirs(), strict=True):
        compare(found, expected, share=1e-3)
    return theirs, ours


def brick_pair(layout: FeatureLayout, resolution: int) -> tuple[Run, Run]:
    """Two hundred whole bricks of a lattice, theirs at the same nodes."""
    inputs = Inputs(layout)
    places = torch.randint(resolution // 8, (200, 3), dtype=torch.int32) * 8
    bricks = QueryBricks(torch.zeros(200, dtype=torch.int64), places, torch.full((200, 8), -1), 1.1 / resolution, -0.55)
    nodes = places[:, None] + torch.cartesian_prod(*[torch.arange(8)] * 3)
    query = (-0.55 + 1.1 / resolution * nodes.double()).float().view(1, -1, 3)

    @torch.no_grad()
    def theirs() -> Tensor:
        return inputs.decoder(query, inputs.maps)

    def ours() -> Tensor:
        return occ.decode_bricks(bricks, inputs.weights, layout, **inputs.features)

    compare(ours().view(1, -1), theirs())
    return theirs, ours


def conditional_pair() -> tuple[Run, Run]:
    """ONet's 256-wide decoder. The folding, which is done once a shape, is part of ours."""
    decoder = randomize(ConditionalDecoder())
    query, c = torch.rand(1, QUERIES, 3) - 0.5, torch.randn(1, 256)
    with torch.no_grad():
        weights = decoder.weights()

    @torch.no_grad()
    def theirs() -> Tensor:
        return decoder(query, c)

    @torch.no_grad()
    def ours() -> Tensor:
        return occ.decode_conditional(query, weights, *decoder.norms(c))

    compare(ours(), theirs())
    return theirs, ours


PLANES = FeatureLayout(("xz", "xy", "yz"), 64)
GRID = FeatureLayout(grid_resolution=64)
CASES: dict[str, Callable[[], tuple[Run, Run]]] = {
    "decode, 3 planes 64": lambda: value_pair(PLANES),
    "decode, grid 64": lambda: value_pair(GRID),
    "decode, 3 planes 64 and grid 32": lambda: value_pair(FeatureLayout(("xz", "xy", "yz"), 64, 32)),
    "value and gradient, 3 planes 64": lambda: gradient_pair(PLANES),
    "value and gradient, grid 64": lambda: gradient_pair(GRID),
    "bricks of 128, 3 planes 64": lambda: brick_pair(PLANES, 128),
    "bricks of 128, grid 64": lambda: brick_pair(GRID, 128),
    "conditional batch norm 256": conditional_pair,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["torch", "occkernels"])
def test_decode(benchmark: Any, name: str, side: str) -> None:
    benchmark.group = name
    bench_pair(benchmark, CASES[name](), side, rounds=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a machine that does other work too"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'case':34}{'torch ms':>20}{'ours ms':>18}{'ratio':>16}   median (least)")
    for name, make in CASES.items():
        if options.only in name:
            clock = time.process_time if options.cpu_time else time.perf_counter
            theirs, ours = measure(make(), options.repeats, clock)
            middle = [1e3 * statistics.median(each) for each in (theirs, ours)]
            least = [1e3 * min(each) for each in (theirs, ours)]
            cells = [f"{a:.1f} ({b:.1f})" for a, b in zip(middle, least, strict=True)]
            ratio = f"{middle[0] / middle[1]:.1f} ({least[0] / least[1]:.1f})"
            print(f"{name:34}{cells[0]:>20}{cells[1]:>18}{ratio:>16}", flush=True)


if __name__ == "__main__":
    main()
