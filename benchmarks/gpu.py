# SPDX-License-Identifier: MIT
"""Times the operators on a CUDA device against the pure-PyTorch path, on the same inputs, outputs compared first.

    python benchmarks/gpu.py [--json FILE] [-k WORD]

Every path is timed twice: ``call``, back-to-back calls from Python between two events (includes what Python costs when
it is slower than the device); ``device``, replays of the same call captured as a CUDA graph (only the device's work).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import occkernels
from occkernels import FeatureLayout, reference

Path_ = Callable[[], Any]
PLANES = FeatureLayout(("xz", "xy", "yz"), 64)
GRID = FeatureLayout(grid_resolution=32)
BOTH = FeatureLayout(("xz", "xy", "yz"), 64, 32)
CHANNELS = 32


@dataclass
class Group:
    """One job done by several paths; the first is ours."""

    name: str
    paths: dict[str, Path_]
    tolerance: float = 1e-4  # relative and absolute, of float32 sums in another order
    different: float = 0.0  # share of the elements that may differ, see `bins`
    rows: list[dict[str, Any]] = field(default_factory=list)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def surface(batch: int, count: int) -> Tensor:
    """Points on a sphere of radius 0.45: like scans, they leave most cells empty."""
    return 0.45 * F.normalize(random(batch, count, 3), dim=-1)


def with_backward(function: Callable[..., Tensor], *leaves: Tensor | None) -> Path_:
    gradient = torch.ones_like(function(*leaves))
    wanted = [leaf for leaf in leaves if leaf is not None]
    return lambda: torch.autograd.grad(function(*leaves), wanted, gradient)


def index_of(function: Callable[..., occkernels.Bins], points: Tensor, layout: FeatureLayout) -> Tensor:
    return function(points, layout).index


def bins() -> Iterator[Group]:
    for batch, count, layout, name in (
        (32, 3000, PLANES, "3 planes of 64²"),
        (1, 100_000, PLANES, "3 planes of 64²"),
        (1, 100_000, FeatureLayout(grid_resolution=64), "grid of 64³"),
        (1, 1_000_000, FeatureLayout(("xz", "xy", "yz"), 128), "3 planes of 128²"),
    ):
        points = surface(batch, count)
        # torch divides by a scalar through its reciprocal on CUDA: a point on a cell's border may round to the other
        # side.
        yield Group(
            f"bin_points, {batch} x {count} points, {name}",
            {
                "occkernels": partial(index_of, occkernels.bin_points, points, layout),
                "reference": partial(index_of, reference.bin_points, points, layout),
            },
            different=1e-3,
        )
        index = occkernels.bin_points(points, layout).index
        yield Group(
            f"sort, {batch} x {count} points, {name}",
            {
                "occkernels": partial(occkernels.bins.sort_bins, index, layout.cells),
                "reference": partial(reference.sort_bins, index, layout.cells),
            },
        )


def second_first(function: Callable[..., Tensor], second: Any, first: Any) -> Tensor:
    return function(first, second)


def pooling() -> Iterator[Group]:
    for batch, count, layout, name in (
        (32, 3000, PLANES, "3 planes of 64²"),
        (32, 3000, GRID, "grid of 32³"),
        (1, 100_000, PLANES, "3 planes of 64²"),
    ):
        binned = occkernels.bin_points(surface(batch, count), layout)
        features = random(batch, count, CHANNELS, seed=1).requires_grad_()
        for operator in ("local_pool", "scatter_grid" if layout is GRID else "scatter_planes"):
            paths: dict[str, Path_] = {}
            both: dict[str, Path_] = {}
            for label, module in (("occkernels", occkernels), ("reference", reference)):
                function = getattr(module, operator)
                paths[label] = partial(function, features.detach(), binned)
                both[label] = with_backward(partial(second_first, function, binned), features)
            case = f"{operator}, {batch} x {count} points, {CHANNELS} channels, {name}"
            yield Group(f"{case}, forward", paths)
            yield Group(f"{case}, forward and backward", both)


def grid_sample(query: Tensor, planes: Tensor | None, grid: Tensor | None) -> Tensor:
    """What the original systems call: one F.grid_sample a map, then a sum."""
    total: Tensor | None = None
    for number, axes in enumerate(([0, 2], [0, 1], [1, 2])):
        if planes is None:
            break
        at = (query[..., axes] / (1 + 0.1 + 1e-5) + 0.5).clamp(0, 1 - 1e-5) * 2 - 1
        term = F.grid_sample(planes[:, number], at[:, :, None], padding_mode="border", align_corners=True)[..., 0]
        total = term if total is None else total + term
    if grid is not None:
        at = (query / (1 + 0.1 + 1e-3) + 0.5).clamp(0, 1 - 1e-3) * 2 - 1
        term = F.grid_sample(grid, at[:, :, None, None], padding_mode="border", align_corners=True)[..., 0, 0]
        total = term if total is None else total + term
    return total.mT


def sample_with(
    function: Callable[..., Tensor], query: Tensor, layout: FeatureLayout, planes: Tensor | None, grid: Tensor | None
) -> Tensor:
    return function(query, layout, planes=planes, grid=grid)


def sampling() -> Iterator[Group]:
    for batch, count, layout, name in (
        (32, 2048, PLANES, "3 planes of 64²"),
        (32, 2048, GRID, "grid of 32³"),
        (1, 1_000_000, BOTH, "3 planes of 64² and grid of 32³"),
    ):
        query = (torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(2)) - 0.5).cuda()
        planes = grid = None
        if layout.planes:
            planes = random(batch * 3, CHANNELS, 64, 64).to(memory_format=torch.channels_last)
            planes = planes.unflatten(0, (batch, 3)).requires_grad_()
        if layout.grid_resolution:
            grid = random(batch, CHANNELS, 32, 32, 32).to(memory_format=torch.channels_last_3d).requires_grad_()

        functions = {
            "occkernels": partial(sample_with, occkernels.sample_features, query, layout),
            "F.grid_sample": partial(grid_sample, query),
            "reference": partial(sample_with, reference.sample_features, query, layout),
        }
        case = f"sample_features, {batch} x {count} queries, {CHANNELS} channels, {name}"
        frozen = [None if leaf is None else leaf.detach() for leaf in (planes, grid)]
        yield Group(f"{case}, forward", {label: partial(f, *frozen) for label, f in functions.items()})
        if batch > 1:  # training
            both = {label: with_backward(f, planes, grid) for label, f in functions.items()}
            yield Group(f"{case}, forward and backward", both)


def compare(group: Group) -> None:
    """Raises AssertionError when a path does not do the first one's job."""
    results = {label: _tensors(path()) for label, path in group.paths.items()}
    expected = next(iter(results.values()))
    for label, found in results.items():
        for ours, theirs in zip(expected, found, strict=True):
            assert ours.shape == theirs.shape, (group.name, label, ours.shape, theirs.shape)
            if group.different:
                share = (ours != theirs).float().mean().item()
                assert share <= group.different, f"{group.name}: {label} differs in {share:.2%} of the elements"
            else:
                torch.testing.assert_close(ours, theirs, rtol=group.tolerance, atol=group.tolerance)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def microseconds(function: Path_, samples: int = 15) -> dict[str, float]:
    """Median and quartile distance of the time of one call."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(calls: int) -> float:
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end) / calls

    calls = max(1, min(200, int(3000 / max(sample(3), 1))))  # about 3 ms a sample
    times = [sample(calls) for _ in range(samples)]
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "iqr": high - low}


def captured(function: Path_) -> Path_ | None:
    """The call as a graph; None when something in it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def measure(group: Group) -> None:
    compare(group)
    for label, path in group.paths.items():
        row: dict[str, Any] = {"group": group.name, "path": label, "call": microseconds(path)}
        replay = captured(path)
        row["device"] = None if replay is None else microseconds(replay)
        group.rows.append(row)


def show(group: Group) -> None:
    print(group.name)
    ours = group.rows[0]
    for row in group.rows:
        cells = []
        for kind in ("call", "device"):
            if row[kind] is None or ours[kind] is None:
                cells.append(f"{'-':>10}{'':22}")
                continue
            ratio = row[kind]["median"] / ours[kind]["median"]
            cells.append(f"{row[kind]['median']:10.1f} ± {row[kind]['iqr']:6.1f} us {ratio:7.1f} x")
        print(f"    {row['path']:16s} call {cells[0]}   device {cells[1]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("-k", default="", metavar="WORD", help="only groups whose name contains this")
    args = parser.parse_args()
    if not occkernels.has_cuda():
        print("benchmarks/gpu.py: no CUDA device, or occkernels was built without CUDA; see python -m occkernels.info")
        return 2
    rows: list[dict[str, Any]] = []
    failures = 0
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, occkernels {occkernels.__version__}; x: time / time of occkernels\n")
    for family in (bins, pooling, sampling):
        try:
            for group in family():
                if args.k in group.name:
                    measure(group)
                    show(group)
                    rows += group.rows
        except Exception:  # the other families are still measured; the exit status tells
            traceback.print_exc()
            failures += 1
    if args.json is not None:
        partial = args.json.with_name(f"{args.json.name}.{os.getpid()}")
        partial.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=1))
        partial.replace(args.json)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
