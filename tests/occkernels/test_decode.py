# SPDX-License-Identifier: MIT
"""Fused decoders: same answer as the reference, same gradients, same contract; bricks, chunks and threads agree."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import occkernels as occ
from occkernels import ConditionalWeights, DecoderWeights, FeatureLayout, QueryBricks, decode_ops, reference

LAYOUTS = {
    "planes": FeatureLayout(("xz", "xy", "yz"), 7),
    "cells": FeatureLayout(("xy", "yz"), 6, registration="cells"),
    "grid": FeatureLayout(grid_resolution=5),
    "both": FeatureLayout(("xz", "xy", "yz"), 8, 5, padding=0.0),
    "dynamic": FeatureLayout(("xz",), 6, 3, dynamic_planes=2),
    "side 1": FeatureLayout(("xz", "xy"), 1, 1),
}
# (hidden, channels, depth)
NETWORKS = [(32, 32, 5), (16, 8, 2), (24, 20, 1), (8, 3, 2), (100, 33, 1), (256, 16, 2), (1, 1, 1), (32, 32, 0)]


@dataclass
class Case:
    """Inputs of one call; ``arguments`` are the keyword arguments."""

    query: Tensor
    weights: DecoderWeights
    layout: FeatureLayout
    arguments: dict[str, Any]

    def __call__(self, function: Any, query: Any = None, **extra: Any) -> Any:
        first = self.query if query is None else query
        return function(first, self.weights, self.layout, **self.arguments, **extra)


def normal(random: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=random, dtype=torch.float64)


def make_weights(hidden: int, features: int, depth: int, **options: Any) -> DecoderWeights:
    """Random weights that keep activations of about unit size."""
    random = torch.Generator().manual_seed(options.get("seed", 1))
    dtype, device = options.get("dtype", torch.float32), options.get("device", "cpu")

    def pair(*size: int) -> tuple[Tensor, Tensor]:
        weight = normal(random, *size) / (size[-1] ** 0.5 * (1.5 if len(size) == 3 else 1))
        return weight.to(device, dtype), normal(random, *size[:-1]).to(device, dtype) / 2

    square = (depth, hidden, hidden)
    blocks = (pair(depth, hidden, features), pair(*square), pair(*square))
    return DecoderWeights(pair(hidden, 3), *blocks, pair(hidden), options.get("leaky", False))


def make_case(
    layout: FeatureLayout,
    network: tuple[int, int, int] = (32, 32, 5),
    shape: tuple[int, int] = (2, 131),
    **options: Any,
) -> Case:
    """Random features and queries; queries reach beyond the cube."""
    (batch, count), (hidden, channels, depth) = shape, network
    random = torch.Generator().manual_seed(options.get("seed", 0))
    device, dtype = options.get("device", "cpu"), options.get("dtype", torch.float32)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    query = (torch.rand(batch, count, 3, generator=random, dtype=torch.float64) - 0.5) * 1.3
    arguments: dict[str, Any] = {}
    if layout.num_planes:
        side = layout.plane_resolution
        arguments["planes"] = normal(random, batch, layout.num_planes, channels, side, side).to(device, dtype)
    if layout.grid_resolution:
        arguments["grid"] = normal(random, batch, channels, *(layout.grid_resolution,) * 3).to(device, dtype)
    if layout.dynamic_planes:
        frames = torch.linalg.qr(normal(random, batch, layout.dynamic_planes, 3, 3))[0]
        arguments["bases"] = frames.to(device, wide)
        scale = torch.rand(batch, layout.dynamic_planes, generator=random, dtype=torch.float64) + 1
        arguments["basis_scale"] = scale.to(device, wide)
    features = channels * (layout.num_maps if options.get("concat") else 1)
    weights = make_weights(hidden, features, depth, dtype=wide, device=device, leaky=options.get("leaky", False))
    return Case(query.to(device, wide), weights, layout, arguments)


def assert_close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Rounding of sums of up to some hundred float32 terms through up to fifteen layers, relative to the magnitude."""
    size = expected.detach()[~expected.isnan()].abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale * size, equal_nan=True)


def assert_gradients_close(found: Tensor, expected: Tensor) -> None:
    """As above, save for few queries at which rounding decides on which side of a ReLU's or a cell's edge they lie."""
    size = expected.abs().max().item() if expected.numel() else 1.0
    wrong = ((found - expected).abs() > 1e-4 * size).any(dim=-1)
    assert found.shape == expected.shape and wrong.sum() <= 0.02 * wrong.numel(), (found - expected).abs().max()


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("concat", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_and_gradients_are_the_references(device: str, name: str, concat: bool, leaky: bool) -> None:
    for network in NETWORKS:
        case = make_case(LAYOUTS[name], network, (2, 61), concat=concat, leaky=leaky, device=device)
        expected, slope = case(reference.decode_with_gradient)
        logits, gradient = case(occ.decode_with_gradient)
        assert_close(logits, expected)
        assert_gradients_close(gradient, slope)
        torch.testing.assert_close(case(occ.decode), logits, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_computed_with_in_float32(device: str, dtype: torch.dtype) -> None:
    for name in ("both", "dynamic"):
        case = make_case(LAYOUTS[name], (16, 12, 2), dtype=dtype, device=device)
        wide = replace(case, arguments={key: value.float() for key, value in case.arguments.items()})
        for function in (occ.decode, occ.decode_with_gradient):
            for found, expected in zip(case(function), wide(function), strict=True):
                assert found.dtype == torch.float32
                assert_close(found, expected)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1), (3, 7), (1, 500)])
def test_sizes_of_the_batch(device: str, shape: tuple[int, int]) -> None:
    case = make_case(LAYOUTS["both"], (16, 8, 2), shape, device=device)
    assert_close(case(occ.decode), case(reference.decode))
    logits, gradient = case(occ.decode_with_gradient)
    assert logits.shape == shape and gradient.shape == (*shape, 3)


def test_non_contiguous_inputs_and_other_query_dtypes(device: str) -> None:
    case = make_case(LAYOUTS["planes"], (16, 8, 2), device=device)
    strided = case.query.repeat_interleave(2, dim=1)[:, ::2]
    last = case.arguments["planes"].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    other = replace(case, query=strided, arguments={"planes": last})
    torch.testing.assert_close(other(occ.decode), case(occ.decode), rtol=0, atol=0)
    half = replace(case, query=case.query.half())
    torch.testing.assert_close(half(occ.decode), case(occ.decode, case.query.half().float()), rtol=0, atol=0)


def test_results_depend_on_the_query_alone(device: str) -> None:
    for name, network in (("planes", (32, 32, 3)), ("grid", (80, 16, 2))):
        case = make_case(LAYOUTS[name], network, (1, 700), device=device)
        whole = case(occ.decode_with_gradient)
        for start, size in ((0, 1), (3, 50), (96, 97), (300, 400), (699, 1)):
            part = case(occ.decode_with_gradient, case.query[:, start : start + size])
            for one, other in zip(part, whole, strict=True):
                assert torch.equal(one, other[:, start : start + size])


def test_threads_do_not_matter() -> None:
    case = make_case(LAYOUTS["both"], (32, 16, 2), (2, 3000))
    bricks = make_bricks(2, 20)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((*case(occ.decode_with_gradient), decode_all(case, bricks)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5))


def make_bricks(batch: int, count: int, spacing: float = 0.01, device: str = "cpu", share: float = 0.6) -> QueryBricks:
    random = torch.Generator().manual_seed(3)
    shape = torch.randint(batch, (count,), generator=random)
    corner = torch.randint(-20, 100, (count, 3), generator=random, dtype=torch.int32)
    bits = torch.rand(count, 8, 64, generator=random) < share
    bits[:1], bits[1:2] = True, False
    mask = (bits.long() << torch.arange(64)).sum(-1)  # the sum wraps around into the sign bit, as it should
    return QueryBricks(shape.to(device), corner.to(device), mask.to(device), spacing, -0.55)


def decode_all(case: Case, bricks: QueryBricks, function: Any = occ.decode_bricks) -> Tensor:
    return function(bricks, case.weights, case.layout, **case.arguments)


@pytest.mark.parametrize("spacing", [0.004, 0.03])
@pytest.mark.parametrize("name", LAYOUTS)
def test_bricks_are_the_queries_at_their_nodes(device: str, name: str, spacing: float) -> None:
    for network in ((32, 32, 5), (16, 8, 0), (24, 5, 2)):
        for concat in (False, True):
            case = make_case(LAYOUTS[name], network, (2, 1), device=device, concat=concat, leaky=True)
            bricks = make_bricks(2, 9, spacing, device)
            found = decode_all(case, bricks)
            expected = decode_all(case, bricks, reference.decode_bricks)
            assert torch.equal(found.isnan(), expected.isnan()) and found[1].isnan().all()
            assert_close(found, expected)


def test_bricks_do_not_depend_on_each_other(device: str) -> None:
    case = make_case(LAYOUTS["both"], (32, 16, 2), device=device)
    bricks = make_bricks(2, 12, device=device)
    whole = decode_all(case, bricks)
    for start, end in ((0, 1), (5, 12)):
        rows = (bricks.shape[start:end], bricks.corner[start:end], bricks.mask[start:end])
        part = decode_all(case, QueryBricks(*rows, bricks.spacing, bricks.origin))
        assert torch.equal(part.nan_to_num(7.5), whole[start:end].nan_to_num(7.5))
    empty = QueryBricks(bricks.shape[:0], bricks.corner[:0], bricks.mask[:0], 0.1, 0.0)
    assert decode_all(case, empty).shape == (0, 512)


def make_conditional(hidden: int, count: int, batch: int = 2, **options: Any) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(5)
    device, dtype = options.get("device", "cpu"), options.get("dtype", torch.float32)

    def draw(*size: int, by: float = 1.0) -> Tensor:
        return (normal(random, *size) * by).to(device, dtype)

    weights = ConditionalWeights(
        (draw(hidden, 3), draw(hidden)),
        (draw(count, hidden, hidden, by=hidden**-0.5), draw(count, hidden)),
        (draw(hidden, by=hidden**-0.5), draw()),
        options.get("residual", True),
        options.get("leaky", False),
    )
    query = draw(batch, options.get("queries", 101), 3, by=0.3)
    norms = (draw(batch, count + 1, hidden), draw(batch, count + 1, hidden))
    return query, weights, *norms, draw(batch, hidden) if options.get("offset") else None


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_conditional_decoder_is_the_references(device: str, residual: bool, leaky: bool, offset: bool) -> None:
    options = {"residual": residual, "leaky": leaky, "offset": offset, "device": device}
    for hidden, count in ((32, 4), (16, 2), (40, 2), (9, 0), (256, 2), *(() if residual else ((24, 3),))):
        inputs = make_conditional(hidden, count, **options)
        assert_close(occ.decode_conditional(*inputs), reference.decode_conditional(*inputs))
    for batch, queries in ((0, 3), (2, 0), (1, 1)):
        inputs = make_conditional(16, 2, batch, queries=queries, **options)
        assert_close(occ.decode_conditional(*inputs), reference.decode_conditional(*inputs))


def test_conditional_decoder_depends_on_the_query_alone(device: str) -> None:
    query, *rest = make_conditional(64, 4, 1, queries=900, device=device)
    whole = occ.decode_conditional(query, *rest)
    for start, size in ((0, 1), (95, 300), (899, 1)):
        assert torch.equal(
            occ.decode_conditional(query[:, start : start + size], *rest), whole[:, start : start + size]
        )


def test_folded_norm_is_batch_norm() -> None:
    random = torch.Generator().manual_seed(0)
    norm = torch.nn.BatchNorm1d(6, affine=False).double().eval()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(normal(random, 6))
    norm.running_var.copy_(normal(random, 6).abs())
    gamma, beta, x = normal(random, 3, 6), normal(random, 3, 6), normal(random, 3, 6)
    scale, shift = occ.fold_conditional_norm(gamma, beta, norm.running_mean, norm.running_var, norm.eps)
    torch.testing.assert_close(scale * x + shift, gamma * norm(x) + beta)


def test_float64_and_training_run_the_differentiable_composition() -> None:
    for name in ("both", "dynamic"):
        case = make_case(LAYOUTS[name], (4, 3, 2), (1, 5), dtype=torch.float64)
        expected, slope = case(reference.decode_with_gradient)
        logits, gradient = case(occ.decode_with_gradient)
        torch.testing.assert_close(case(occ.decode), expected)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(gradient, slope)


def leaves(case: Case) -> tuple[Case, list[Tensor]]:
    """The case with every tensor requiring a gradient."""
    arguments = {key: value.clone().requires_grad_() for key, value in case.arguments.items()}
    parts = {}
    for name in ("fc_p", "fc_c", "fc_0", "fc_1", "fc_out"):
        weight, bias = getattr(case.weights, name)
        parts[name] = (weight.clone().requires_grad_(), bias.clone().requires_grad_())
    copy = Case(case.query.clone().requires_grad_(), replace(case.weights, **parts), case.layout, arguments)
    return copy, [copy.query, *arguments.values(), *copy.weights.tensors()]


def test_gradcheck() -> None:
    case, tensors = leaves(make_case(LAYOUTS["dynamic"], (3, 2, 1), (1, 3), dtype=torch.float64, leaky=True))

    def rebuilt(*given: Tensor) -> Case:
        query, *others = given
        count = len(case.arguments)
        arguments = dict(zip(case.arguments, others[:count], strict=True))
        flat = others[count:]
        pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
        return Case(query, DecoderWeights(*pairs, case.weights.leaky), case.layout, arguments)

    assert torch.autograd.gradcheck(lambda *given: rebuilt(*given)(occ.decode), tensors)
    assert torch.autograd.gradcheck(lambda *given: rebuilt(*given)(occ.decode_with_gradient), tensors)


def test_gradgradcheck() -> None:
    case = make_case(LAYOUTS["planes"], (3, 2, 1), (1, 3), dtype=torch.float64)
    query, planes = case.query.requires_grad_(), case.arguments["planes"].requires_grad_()

    def value(at: Tensor, features: Tensor) -> Tensor:
        return occ.decode(at, case.weights, case.layout, planes=features)

    assert torch.autograd.gradgradcheck(value, (query, planes))
    query, weights, scale, shift, _ = make_conditional(4, 2, 1, queries=3, dtype=torch.float64)
    inputs = (query.requires_grad_(), scale.requires_grad_(), shift.requires_grad_())

    def conditional(at: Tensor, by: Tensor, plus: Tensor) -> Tensor:
        return occ.decode_conditional(at, weights, by, plus)

    assert torch.autograd.gradgradcheck(conditional, inputs)


def test_training_gradients_are_the_references() -> None:
    results = []
    for module in (occ, reference):
        case, tensors = leaves(make_case(LAYOUTS["both"], (16, 8, 2)))
        results.append(torch.autograd.grad(case(module.decode).square().sum(), tensors))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, scale=10)


def test_no_gradient_means_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = leaves(make_case(LAYOUTS["planes"], (16, 8, 2)))
    calls = []
    real = decode_ops.decode
    monkeypatch.setattr(decode_ops, "decode", lambda *given: calls.append(1) or real(*given))
    assert case(occ.decode).requires_grad and not calls
    with torch.no_grad():
        assert not case(occ.decode).requires_grad and calls == [1]


def test_opcheck() -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    case = make_case(LAYOUTS["dynamic"], (16, 8, 2), (2, 20))
    planes, grid = case.arguments["planes"], case.arguments["grid"]
    maps = [planes.permute(0, 1, 3, 4, 2).contiguous(), grid.permute(0, 2, 3, 4, 1).contiguous()]
    maps += [case.arguments["bases"], case.arguments["basis_scale"]]
    mask, dynamic, side, deep, cells, padding = case.layout.spec()
    integers, numbers = [16, 2, 0, 0, mask, dynamic, side, deep, int(cells)], [0.2, padding]
    for backward in (None, case.weights.reversed):
        inputs = (maps, case.query, case.weights.packed, None, backward, integers, numbers)
        torch.library.opcheck(decode_ops.decode, inputs, test_utils=tests)
    bricks = make_bricks(2, 3)
    every = torch.full_like(bricks.mask, -1)  # opcheck does not take NaN for equal to NaN
    nodes = (bricks.shape, bricks.corner, every)
    place = [bricks.spacing, bricks.origin]
    inputs = (maps, case.weights.packed, None, *nodes, integers, [*numbers, *place])
    torch.library.opcheck(decode_ops.decode_bricks, inputs, test_utils=tests)
    query, weights, scale, shift, _ = make_conditional(16, 2)
    affine = torch.stack([scale, shift], dim=2)
    inputs = (query, weights.packed, None, affine, None, [16, 2, 0], [0.0, 0.0], True)
    torch.library.opcheck(decode_ops.decode_conditional, inputs, test_utils=tests)


def test_compile() -> None:
    case = make_case(LAYOUTS["both"], (16, 8, 2))
    weights, layout = case.weights, case.layout

    def run(query: Tensor, planes: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = occ.decode(query, weights, layout, planes=planes, grid=grid)
        return values, *occ.decode_with_gradient(query, weights, layout, planes=planes, grid=grid)

    inputs = (case.query, case.arguments["planes"], case.arguments["grid"])
    for found, expected in zip(torch.compile(run, fullgraph=True)(*inputs), run(*inputs), strict=True):
        assert_close(found, expected)


def test_nan_features_reach_the_logits(device: str) -> None:
    case = make_case(FeatureLayout(("xy",), 4), (16, 8, 2), device=device)
    case.arguments["planes"][0, 0, 3] = float("nan")
    assert case(occ.decode)[0].isnan().all() and not case(occ.decode)[1].isnan().any()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"planes": None}, ValueError, "the layout has planes"),
        ({"grid": torch.zeros(2, 8, 4, 4, 4)}, ValueError, "the layout has no grid"),
        ({"planes": torch.zeros(2, 3, 9, 7, 7)}, ValueError, "8 channels.*9 each.*9 for their sum or 27"),
        ({"planes": torch.zeros(2, 3, 8, 6, 6)}, ValueError, "planes"),
        ({"planes": torch.zeros(2, 3, 8, 7, 7, dtype=torch.int32)}, TypeError, "floating|float32"),
        ({"bases": torch.zeros(2, 1, 3, 3)}, ValueError, "no dynamic planes"),
        ({"precision": "fp8"}, ValueError, "precision"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    case = make_case(LAYOUTS["planes"], (16, 8, 2))
    with pytest.raises(error, match=words):
        occ.decode(case.query, case.weights, case.layout, **(case.arguments | change))


def test_wrong_weights_and_bricks_are_named() -> None:
    case = make_case(LAYOUTS["planes"], (16, 8, 2))
    with pytest.raises(ValueError, match="1 to 256 hidden channels, got 272"):
        replace(case, weights=make_weights(272, 8, 1))(occ.decode)
    with pytest.raises(ValueError, match="fc_0"):
        replace(case.weights, fc_0=(torch.zeros(2, 16, 8), torch.zeros(2, 16)))
    with pytest.raises(TypeError, match="float64"):
        replace(case.weights, fc_out=(torch.zeros(16).double(), torch.zeros(()).double()))
    with pytest.raises(ValueError, match="shortcut"):
        DecoderWeights.from_tensors({"blocks.0.shortcut.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="fc_p.weight"):
        DecoderWeights.from_tensors({})
    bricks = make_bricks(5, 9)
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        decode_all(case, bricks)
    with pytest.raises(ValueError, match="corner"):
        replace(bricks, corner=bricks.corner.long())
    with pytest.raises(TypeError, match="float64"):
        decode_all(make_case(LAYOUTS["planes"], (16, 8, 2), dtype=torch.float64), make_bricks(2, 9))


@pytest.mark.parametrize("isa", ["base", "avx2"])
def test_every_instruction_set_gives_the_same_answer(isa: str) -> None:
    if os.environ.get("OCC_SIMD") or os.environ.get("OCC_CUDA_HOST"):
        pytest.skip("runs once, from a process with the processor's own instruction set")
    selection = "references or nodes or alone or half"
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:cacheprovider", "-k", selection]
    done = subprocess.run(command, env=os.environ | {"OCC_SIMD": isa}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
