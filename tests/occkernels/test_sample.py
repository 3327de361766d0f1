# SPDX-License-Identifier: MIT
"""Sampling: same answer as the reference, same gradients, same contract; and what interpolation must do."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import occkernels as occ
from occkernels import FeatureLayout, reference, sample_ops

LAYOUTS = {
    "planes": FeatureLayout(("xz", "xy", "yz"), 7),
    "two planes": FeatureLayout(("xy", "yz"), 6, registration="cells"),
    "grid": FeatureLayout(grid_resolution=5),
    "grid of cells": FeatureLayout(grid_resolution=4, registration="cells", padding=0.0),
    "both": FeatureLayout(("xz", "xy", "yz"), 8, 5),
    "dynamic": FeatureLayout(("xz",), 6, 3, dynamic_planes=2),
    "only dynamic": FeatureLayout((), 5, dynamic_planes=3, registration="cells"),
    "side 1": FeatureLayout(("xz", "xy"), 1, 1),
    "side 2": FeatureLayout(("yz",), 2, 2),
    "side 1 of cells": FeatureLayout(("xz",), 1, 1, registration="cells"),
}
# (relative, absolute): rounding of sums of up to 16 terms in float32; one rounding of the result in half precision.
TOLERANCE = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 8e-3),
}


@dataclass
class Case:
    """Inputs of one call; ``arguments`` are the keyword arguments."""

    layout: FeatureLayout
    query: Tensor
    arguments: dict[str, Any]

    def __call__(self, function: Any, **extra: Any) -> Any:
        return function(self.query, self.layout, **self.arguments, **extra)

    def tensors(self) -> list[Tensor]:
        return [self.query, *self.arguments.values()]

    def with_tensors(self, tensors: list[Tensor]) -> Case:
        return Case(self.layout, tensors[0], dict(zip(self.arguments, tensors[1:], strict=True)))

    def leaves(self) -> Case:
        return self.with_tensors([tensor.detach().clone().requires_grad_() for tensor in self.tensors()])


def make_case(
    layout: FeatureLayout, shape: tuple[int, int, int] = (2, 50, 8), dtype: torch.dtype = torch.float32, **options: Any
) -> Case:
    """Random features and queries; ``shape`` is (B, M, C). Queries reach beyond the cube."""
    batch, count, channels = shape
    random = torch.Generator().manual_seed(options.get("seed", 0))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64)

    query = (torch.rand(batch, count, 3, generator=random, dtype=torch.float64) - 0.5) * options.get("reach", 1.3)
    arguments: dict[str, Any] = {}
    if layout.num_planes:
        side = layout.plane_resolution
        arguments["planes"] = normal(batch, layout.num_planes, channels, side, side).to(dtype)
    if layout.grid_resolution:
        arguments["grid"] = normal(batch, channels, *(layout.grid_resolution,) * 3).to(dtype)
    query_dtype = options.get("query_dtype", dtype)
    if layout.dynamic_planes:
        arguments["bases"] = torch.linalg.qr(normal(batch, layout.dynamic_planes, 3, 3))[0].to(query_dtype)
        scale = torch.rand(batch, layout.dynamic_planes, generator=random, dtype=torch.float64) + 1
        arguments["basis_scale"] = scale.to(query_dtype)
    return Case(layout, query.to(query_dtype), arguments)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None, scale: float = 1.0) -> None:
    relative, absolute = TOLERANCE[dtype or expected.dtype]
    torch.testing.assert_close(found, expected, rtol=relative * scale, atol=absolute * scale)


def gradients(case: Case, function: Any, reduce: str = "sum") -> list[Tensor]:
    case = case.leaves()
    outputs = case(function, reduce=reduce)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    random = torch.Generator().manual_seed(7)
    total = sum(
        (torch.randn(out.shape, generator=random, dtype=torch.float64).to(out.dtype) * out).sum() for out in outputs
    )
    return list(torch.autograd.grad(total, case.tensors()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("reduce", ["sum", "concat"])
def test_values_are_the_references(name: str, dtype: torch.dtype, reduce: str) -> None:
    for shape in ((2, 65, 8), (1, 1, 1), (3, 130, 37), (1, 20, 100)):
        case = make_case(LAYOUTS[name], shape, dtype, query_dtype=dtype if dtype.itemsize > 2 else torch.float32)
        found = case(occ.sample_features, reduce=reduce)
        expected = case(reference.sample_features, reduce=reduce)
        assert found.dtype == dtype
        assert_close(found, expected, scale=3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LAYOUTS)
def test_spatial_gradients_are_the_references(name: str, dtype: torch.dtype) -> None:
    for shape, reduce in (((2, 65, 8), "sum"), ((1, 30, 19), "concat")):
        case = make_case(LAYOUTS[name], shape, dtype, query_dtype=dtype if dtype.itemsize > 2 else torch.float32)
        found = case(occ.sample_features_with_gradient, reduce=reduce)
        expected = case(reference.sample_features_with_gradient, reduce=reduce)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            assert_close(ours, theirs, scale=20)  # a gradient is up to R times larger than the features


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("reduce", ["sum", "concat"])
def test_gradients_are_the_references(name: str, dtype: torch.dtype, reduce: str) -> None:
    for shape in ((2, 65, 8), (1, 300, 21)):
        case = make_case(LAYOUTS[name], shape, dtype, query_dtype=dtype if dtype.itemsize > 2 else torch.float32)
        found = gradients(case, occ.sample_features, reduce)
        expected = gradients(case, reference.sample_features, reduce)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            size = 1 + theirs.abs().max().item()  # sums over many queries
            assert_close(ours, theirs, dtype, scale=3 * size)


@pytest.mark.parametrize("name", ["planes", "both", "dynamic"])
def test_gradients_of_value_and_gradient_are_the_references(name: str) -> None:
    case = make_case(LAYOUTS[name], (2, 40, 8), torch.float64)
    found = gradients(case, occ.sample_features_with_gradient)
    for ours, theirs in zip(found, gradients(case, reference.sample_features_with_gradient), strict=True):
        assert_close(ours, theirs, scale=100)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("tangents", [False, True])
def test_first_and_second_derivatives(name: str, tangents: bool) -> None:
    layout = LAYOUTS[name]  # at most 3 nodes an axis: the numerical derivatives go through every feature
    layout = replace(
        layout, plane_resolution=min(layout.plane_resolution, 3), grid_resolution=min(layout.grid_resolution, 3)
    )
    case = make_case(layout, (1, 3, 1), torch.float64, seed=3).leaves()
    public = occ.sample_features_with_gradient if tangents else occ.sample_features

    def function(*tensors: Tensor) -> Any:
        return case.with_tensors(list(tensors))(public, reduce="concat" if name == "both" else "sum")

    assert torch.autograd.gradcheck(function, case.tensors())
    assert torch.autograd.gradgradcheck(function, case.tensors())


def test_third_derivatives_exist() -> None:
    layout = FeatureLayout(grid_resolution=4)
    case = make_case(layout, (1, 5, 3), torch.float64, reach=0.9).leaves()
    expected = make_case(layout, (1, 5, 3), torch.float64, reach=0.9).leaves()
    for subject, function in ((case, occ.sample_features), (expected, reference.sample_features)):
        total = subject(function).sum()
        for axis in range(3):
            total = torch.autograd.grad(total, subject.query, create_graph=True)[0][..., axis].sum()
        subject.arguments["result"] = total  # d3 f / dx dy dz, summed
    torch.testing.assert_close(case.arguments["result"], expected.arguments["result"])
    assert case.arguments["result"].abs() > 1e-3


@pytest.mark.parametrize("name", ["planes", "both", "dynamic"])
@pytest.mark.parametrize("operator", ["gather", "scatter", "contract"])
@pytest.mark.parametrize("tangents", [False, True])
def test_operator_contract(name: str, operator: str, tangents: bool) -> None:
    layout = LAYOUTS[name]
    columns = 3 + 2 * layout.dynamic_planes
    batch, count, channels = 2, 9, 4
    side, deep, terms = layout.plane_resolution, layout.grid_resolution, 4 if tangents else 1
    planes = torch.randn(batch, layout.num_planes, side, side, channels, requires_grad=True)
    grid = torch.randn(batch, deep, deep, deep, channels, requires_grad=True) if deep else None
    coords = (torch.rand(batch, count, columns) - 0.5).requires_grad_()
    directions = torch.randn(batch, 1, count, columns, requires_grad=True)
    frame = torch.randn(batch, 3, columns, requires_grad=True) if tangents else None
    grad = torch.randn(batch, count, terms, channels, requires_grad=True)
    mask, dynamic, *_, padding = layout.spec()
    spec = ([mask, dynamic, side, deep, 0, 0], padding)
    arguments = {
        "gather": (planes, grid, coords, directions, frame, *spec),
        "scatter": (grad, coords, directions, frame, *spec, [True, deep > 0]),
        "contract": (planes, grid, coords, grad, directions, frame, *spec),
    }
    torch.library.opcheck(getattr(sample_ops, operator), arguments[operator])


@pytest.mark.parametrize("name", ["both", "dynamic"])
def test_compile_and_export(name: str) -> None:
    layout = LAYOUTS[name]
    case = make_case(layout, (2, 33, 8))

    class Model(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            own = case.with_tensors(list(tensors))
            value, gradient = own(occ.sample_features_with_gradient)
            return own(occ.sample_features, reduce="concat"), value, gradient

    model = Model()
    expected = model(*case.tensors())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, tuple(case.tensors())).module()
    for found in (compiled(*case.tensors()), exported(*case.tensors())):
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs)
    leaves, twin = case.leaves(), case.leaves()
    sum(out.sum() for out in compiled(*leaves.tensors())).backward()
    sum(out.sum() for out in model(*twin.tensors())).backward()
    for ours, theirs in zip(leaves.tensors(), twin.tensors(), strict=True):
        assert_close(ours.grad, theirs.grad, scale=100)


@pytest.mark.parametrize("name", ["both", "dynamic"])
def test_vmap(name: str) -> None:
    layout = LAYOUTS[name]
    case = make_case(layout, (2, 30, 8))
    expected = case(occ.sample_features)

    def one(query: Tensor) -> Tensor:  # shared features, one query at a time
        return Case(layout, query[:, None], case.arguments)(occ.sample_features)[:, 0]

    assert_close(torch.vmap(one, in_dims=1, out_dims=1)(case.query), expected)
    many = [torch.stack([tensor, tensor.flip(0)]) for tensor in case.tensors()]
    both = torch.vmap(lambda *tensors: case.with_tensors(list(tensors))(occ.sample_features))(*many)
    assert_close(both, torch.stack([expected, expected.flip(0)]))


@pytest.mark.parametrize("name", ["both", "dynamic"])
def test_vmap_over_cotangents(name: str) -> None:
    case = make_case(LAYOUTS[name], (2, 30, 8)).leaves()
    value, gradient = case(occ.sample_features_with_gradient)
    cotangents = torch.randn(3, *value.shape), torch.randn(3, *gradient.shape)
    together = torch.autograd.grad(
        (value, gradient), case.tensors(), cotangents, is_grads_batched=True, retain_graph=True
    )
    for number in range(3):
        one = (cotangents[0][number], cotangents[1][number])
        alone = torch.autograd.grad((value, gradient), case.tensors(), one, retain_graph=True)
        for found, expected in zip(together, alone, strict=True):
            assert_close(found[number], expected, scale=100)


def test_jacobian_is_the_spatial_gradient() -> None:
    case = make_case(LAYOUTS["both"], (1, 3, 2), torch.float64)

    def function(query: Tensor) -> Tensor:
        return Case(case.layout, query, case.arguments)(occ.sample_features)

    found = torch.autograd.functional.jacobian(function, case.query, vectorize=True)
    _, gradient = case(occ.sample_features_with_gradient)
    for query in range(3):
        assert_close(found[0, query, :, 0, query], gradient[0, query].mT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_nothing(dtype: torch.dtype) -> None:
    for name in ("both", "dynamic"):
        case = make_case(LAYOUTS[name], (2, 40, 8), dtype, query_dtype=torch.float32)
        expected = case(occ.sample_features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = case(occ.sample_features)
            wide = make_case(LAYOUTS[name], (2, 40, 8))(occ.sample_features)
        assert found.dtype == dtype and torch.equal(found, expected)
        assert wide.dtype == torch.float32


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_a_partition_of_unity(name: str) -> None:
    case = make_case(LAYOUTS[name], (2, 200, 9))
    for key in ("planes", "grid"):
        if key in case.arguments:
            case.arguments[key] = torch.ones_like(case.arguments[key])
    value, gradient = case(occ.sample_features_with_gradient)
    torch.testing.assert_close(value, torch.full_like(value, case.layout.num_maps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-4)


@pytest.mark.parametrize("registration", ["corners", "cells"])
def test_linear_functions_are_reproduced(registration: str) -> None:
    layout = FeatureLayout(("xz", "xy", "yz"), 9, 6, registration=registration)
    query = (torch.rand(1, 300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.5) * 0.8

    def nodes(side: int, width: float) -> Tensor:
        steps = torch.arange(side, dtype=torch.float64)
        t = steps / (side - 1) if registration == "corners" else (steps + 0.5) / side
        return (t - 0.5) * width

    first, second = torch.meshgrid(nodes(9, 1.10001), nodes(9, 1.10001), indexing="xy")
    planes = torch.stack([first + 2 * second, -first, second]).view(1, 3, 1, 9, 9)
    z, y, x = torch.meshgrid(*(nodes(6, 1.101),) * 3, indexing="ij")
    grid = (x - 3 * y + 5 * z + 1).view(1, 1, 6, 6, 6)
    value, gradient = occ.sample_features_with_gradient(query, layout, planes=planes, grid=grid)
    qx, qy, qz = query.unbind(-1)
    expected = (qx + 2 * qz) - qx + qz + (qx - 3 * qy + 5 * qz + 1)
    torch.testing.assert_close(value[..., 0], expected)
    torch.testing.assert_close(gradient[0, :, :, 0], torch.tensor([1.0, -3.0, 8.0], dtype=torch.float64).expand(300, 3))


def upstream(planes: Tensor, grid: Tensor, query: Tensor, padding: float = 0.1) -> Tensor:
    """The original systems' sampling, with F.grid_sample."""
    total = None
    for number, axes in enumerate(((0, 2), (0, 1), (1, 2))):
        t = query[..., axes] / (1 + padding + 1e-5) + 0.5
        t = torch.where(t >= 1, 1 - 1e-5, t).clamp(min=0)
        part = F.grid_sample(
            planes[:, number], 2 * t[:, :, None] - 1, padding_mode="border", align_corners=True, mode="bilinear"
        )[..., 0]
        total = part if total is None else total + part
    t = query / (1 + padding + 1e-3) + 0.5
    t = torch.where(t >= 1, 1 - 1e-3, t).clamp(min=0)
    part = F.grid_sample(grid, 2 * t[:, :, None, None] - 1, padding_mode="border", align_corners=True)[..., 0, 0]
    return (total + part).mT


def test_agrees_with_grid_sample() -> None:
    case = make_case(LAYOUTS["both"], (2, 500, 32), torch.float64).leaves()
    found = case(occ.sample_features)
    expected = upstream(case.arguments["planes"], case.arguments["grid"], case.query)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * weights).sum(), case.tensors())
    theirs = torch.autograd.grad((expected * weights).sum(), case.tensors())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("layout", [LAYOUTS["both"], FeatureLayout(("xy",), 33, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_threads(layout: FeatureLayout, dtype: torch.dtype) -> None:
    case = make_case(layout, (2, 3000, 24), dtype, query_dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append([case(occ.sample_features), *gradients(case, occ.sample_features_with_gradient)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (2, 5, 0)])
@pytest.mark.parametrize("name", ["both", "dynamic"])
def test_empty_inputs(name: str, shape: tuple[int, int, int]) -> None:
    case = make_case(LAYOUTS[name], shape).leaves()
    value, gradient = case(occ.sample_features_with_gradient)
    assert value.shape == shape and gradient.shape == (*shape[:2], 3, shape[2])
    (value.sum() + gradient.sum()).backward()
    for tensor in case.tensors():
        assert tensor.grad is not None and not tensor.grad.any()


@pytest.mark.parametrize("queries", [1, 3])
def test_every_cell_of_the_gradient_is_written(queries: int) -> None:
    layout = FeatureLayout(("xz", "yz"), 19, 15)
    for seed in range(5):
        case = make_case(layout, (2, queries, 16), seed=seed)
        for ours, theirs in zip(
            gradients(case, occ.sample_features), gradients(case, reference.sample_features), strict=True
        ):
            assert_close(ours, theirs, scale=10)


def test_all_queries_in_one_cell() -> None:
    case = make_case(LAYOUTS["both"], (2, 400, 13), torch.float64, reach=0.01)
    for function in ("sample_features", "sample_features_with_gradient"):
        found = gradients(case, getattr(occ, function))
        for ours, theirs in zip(found, gradients(case, getattr(reference, function)), strict=True):
            assert_close(ours, theirs, scale=1000)


@pytest.mark.parametrize("registration", ["corners", "cells"])
def test_borders_and_beyond(registration: str) -> None:
    layout = replace(LAYOUTS["both"], registration=registration)
    edge = 0.55 * torch.tensor([-1e9, -2.0, -1.0, 0.0, 1.0, 2.0, 1e9, torch.inf, -torch.inf], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        case = make_case(layout, (1, edge.numel() ** 3, 5), dtype)
        case.query = torch.cartesian_prod(edge, edge, edge)[None].to(dtype)
        assert_close(case(occ.sample_features), case(reference.sample_features), scale=5)
        _, gradient = case(occ.sample_features_with_gradient)
        outside = (case.query.abs() > 0.6)[..., None].expand_as(gradient)
        assert not gradient[outside].any()


def test_not_a_number_counts_as_the_lower_border() -> None:
    case = make_case(LAYOUTS["both"], (2, 60, 8))
    low = Case(case.layout, case.query.clone(), case.arguments)
    case.query[0, ::2, 1] = torch.nan
    case.query[1] = torch.nan
    low.query[case.query.isnan()] = -9.0
    value, gradient = case(occ.sample_features_with_gradient)
    assert torch.equal(value, low(occ.sample_features))
    assert torch.equal(value.isnan(), torch.zeros_like(value, dtype=torch.bool))
    assert not gradient[case.query.isnan()].any()
    for ours, theirs in zip(gradients(case, occ.sample_features), gradients(low, occ.sample_features), strict=True):
        assert torch.equal(ours, theirs)
    assert_close(value, case(reference.sample_features))


def test_any_memory_format_and_dtype_mixture() -> None:
    case = make_case(LAYOUTS["both"], (2, 70, 24))
    expected = case(occ.sample_features)
    spread = Case(case.layout, case.query.repeat(1, 1, 2)[..., ::2], {})
    spread.query = torch.stack([case.query, case.query], -1)[..., 0]
    channels_last = case.arguments["planes"].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    sliced = torch.stack([case.arguments["grid"]] * 2, 1)[:, 1]
    spread.arguments = {"planes": channels_last, "grid": sliced}
    assert torch.equal(spread(occ.sample_features), expected)
    for query_dtype in (torch.float64, torch.float16, torch.bfloat16):
        mixed = make_case(LAYOUTS["dynamic"], (2, 70, 24), torch.float32, query_dtype=query_dtype)
        found = mixed(occ.sample_features)
        assert found.dtype == torch.float32
        assert_close(found, mixed(reference.sample_features), scale=3)
        for ours, theirs in zip(
            gradients(mixed, occ.sample_features), gradients(mixed, reference.sample_features), strict=True
        ):
            assert ours.dtype == theirs.dtype
            assert_close(ours, theirs, scale=10)


def test_planes_and_grid_alone() -> None:
    case = make_case(LAYOUTS["dynamic"], (2, 40, 8))
    bases = {key: case.arguments[key] for key in ("bases", "basis_scale")}
    planes, grid = case.arguments["planes"], case.arguments["grid"]
    flat = occ.sample_planes(planes, case.query, case.layout, **bases)
    deep = occ.sample_grid(grid, case.query, case.layout)
    assert_close(flat + deep, case(occ.sample_features))
    assert_close(flat, reference.sample_planes(planes, case.query, case.layout, **bases))
    beside = occ.sample_planes(planes, case.query, case.layout, **bases, reduce="concat")
    assert_close(torch.cat([beside, deep], dim=-1), case(occ.sample_features, reduce="concat"))


def test_gradient_to_one_of_two_feature_tensors() -> None:
    case = make_case(LAYOUTS["both"], (2, 40, 8))
    for key in ("planes", "grid"):
        alone = {name: value.clone().requires_grad_(name == key) for name, value in case.arguments.items()}
        Case(case.layout, case.query, alone)(occ.sample_features, reduce="concat").square().sum().backward()
        both = case.leaves()
        both(occ.sample_features, reduce="concat").square().sum().backward()
        assert torch.equal(alone[key].grad, both.arguments[key].grad)


def test_errors_say_what_was_expected() -> None:
    case = make_case(LAYOUTS["both"])
    query, planes, grid = case.query, case.arguments["planes"], case.arguments["grid"]
    layout = case.layout
    for match, error, arguments in (
        ("`grid` of shape", ValueError, {"planes": planes}),
        ("`planes` must have shape", ValueError, {"planes": planes[:, :2], "grid": grid}),
        ("`grid` must have shape", ValueError, {"planes": planes, "grid": grid[:, :4]}),
        ("`grid` is torch.float64", TypeError, {"planes": planes, "grid": grid.double()}),
        ("`planes` must be float32", TypeError, {"planes": planes.long(), "grid": grid}),
        ("`reduce` must be", ValueError, {"planes": planes, "grid": grid, "reduce": "mean"}),
        ("no dynamic planes", ValueError, {"planes": planes, "grid": grid, "bases": torch.eye(3).expand(2, 1, 3, 3)}),
    ):
        with pytest.raises(error, match=f"sample_features: .*{match}"):
            occ.sample_features(query, layout, **arguments)
    with pytest.raises(ValueError, match="`query` must have shape"):
        occ.sample_features(query[..., :2], layout, planes=planes, grid=grid)
    with pytest.raises(ValueError, match="layout has no planes"):
        occ.sample_features(query, FeatureLayout(grid_resolution=5), planes=planes, grid=grid)
    with pytest.raises(ValueError, match="`bases` of shape"):
        occ.sample_features(query, LAYOUTS["only dynamic"], planes=planes[..., :5, :5])


@pytest.mark.parametrize("simd", ["base", "avx2"])
def test_every_instruction_set(simd: str) -> None:
    if "OCC_CUDA_HOST" in os.environ or os.environ.get("OCC_SIMD"):
        pytest.skip("the CPU code is not what is being tested")
    name = f"{__file__}::test_values_are_the_references"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name, "-k", "both or dynamic"]
    done = subprocess.run(command, env={**os.environ, "OCC_SIMD": simd}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
