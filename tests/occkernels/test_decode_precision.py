# SPDX-License-Identifier: MIT
"""Decoders permitted to round their operands: the reference's rounding where they do, float32 where they do not.

Sums in another order differ in the last bit of float32, and now and then that bit decides how an operand is rounded. So
kernel and reference differ by few roundings, while the reference and float32 differ by all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_decode import LAYOUTS, NETWORKS, Case, assert_close, make_bricks, make_case, make_conditional
from torch import Tensor

import occkernels as occ
from occkernels import QueryBricks, decode_ops, reference

ROUNDED = ["tf32", "bf16"]
BOUND = {"tf32": 2e-3, "bf16": 1.5e-2}
"""Of the difference from float32 in random networks, relative to the largest logit."""


def rounds(precision: str, like: Tensor) -> bool:
    """Whether the operators on this device make use of the permission."""
    return decode_ops.packing(precision, like) is not None


def bricks_of(module: Any, case: Case, bricks: QueryBricks, precision: str = "float32") -> Tensor:
    return module.decode_bricks(bricks, case.weights, case.layout, **case.arguments, precision=precision)


def assert_near(found: Tensor, exact: Tensor, precision: str) -> None:
    """Within the bound of what rounding may do."""
    assert torch.equal(found.isnan(), exact.isnan())
    size = exact.nan_to_num(0).abs().amax()
    assert (found - exact).nan_to_num(0).abs().amax() <= BOUND[precision] * size


def assert_rounded(found: Tensor, expected: Tensor, exact: Tensor, precision: str) -> None:
    """``found`` shows the roundings of ``expected``."""
    assert_near(found, exact, precision)
    assert_near(expected, exact, precision)
    roundings = (expected - exact).nan_to_num(0).abs().mean()
    if roundings <= 1e-6 * exact.nan_to_num(0).abs().amax():
        assert_close(found, expected)
    else:
        assert (found - expected).nan_to_num(0).abs().mean() <= 0.05 * roundings


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("concat", [False, True])
@pytest.mark.parametrize("name", ["planes", "both", "dynamic"])
def test_rounded_logits_are_the_references(device: str, name: str, concat: bool, precision: str) -> None:
    for network in NETWORKS:
        case = make_case(LAYOUTS[name], network, (2, 61), concat=concat, leaky=concat, device=device)
        found, exact = case(occ.decode, precision=precision), case(reference.decode)
        if rounds(precision, case.query):
            assert_rounded(found, case(reference.decode, precision=precision), exact, precision)
        else:
            assert torch.equal(found, case(occ.decode))


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("concat", [False, True])
@pytest.mark.parametrize("name", ["planes", "both", "dynamic"])
def test_rounded_bricks_are_the_references(device: str, name: str, concat: bool, precision: str) -> None:
    for network in ((32, 32, 5), (16, 8, 0), (24, 5, 2)):
        case = make_case(LAYOUTS[name], network, (2, 1), device=device, concat=concat)
        for share in (0.02, 0.6):
            bricks = make_bricks(2, 5, 0.01, device, share)
            found = bricks_of(occ, case, bricks, precision)
            exact = bricks_of(reference, case, bricks)
            if not rounds(precision, case.query):
                assert torch.equal(found.nan_to_num(7.5), bricks_of(occ, case, bricks).nan_to_num(7.5))
            else:
                assert_near(found, exact, precision)


@pytest.mark.parametrize("precision", ROUNDED)
def test_rounded_bricks_of_one_node_are_the_references(device: str, precision: str) -> None:
    for name in ("both", "dynamic"):
        case = make_case(LAYOUTS[name], (32, 32, 2), (2, 1), device=device)
        bricks = make_bricks(2, 40, 0.05, device)
        nodes = torch.arange(40, device=device) * 13 % 512
        words = torch.arange(8, device=device) == (nodes // 64)[:, None]
        bricks = replace(bricks, mask=words * (torch.ones_like(nodes) << nodes % 64)[:, None])
        found = bricks_of(occ, case, bricks, precision)
        expected = bricks_of(reference, case, bricks, precision)
        assert ((~found.isnan()).sum(dim=1) == 1).all()
        if rounds(precision, case.query):
            assert_rounded(found, expected, bricks_of(reference, case, bricks), precision)


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_rounded_conditional_decoder_is_the_references(
    device: str, residual: bool, leaky: bool, precision: str
) -> None:
    options = {"residual": residual, "leaky": leaky, "offset": leaky, "device": device}
    for hidden, count in ((32, 4), (40, 2), (9, 0), (256, 2), *(() if residual else ((24, 3),))):
        inputs = make_conditional(hidden, count, **options)
        found, exact = occ.decode_conditional(*inputs, precision=precision), reference.decode_conditional(*inputs)
        if rounds(precision, inputs[0]):
            expected = reference.decode_conditional(*inputs, precision=precision)
            assert_rounded(found, expected, exact, precision)
        else:
            assert torch.equal(found, occ.decode_conditional(*inputs))


@pytest.mark.parametrize("precision", ROUNDED)
def test_rounded_results_depend_on_the_query_alone(device: str, precision: str) -> None:
    case = make_case(LAYOUTS["both"], (40, 12, 2), (1, 300), device=device)
    whole = case(occ.decode, precision=precision)
    for start, size in ((0, 1), (3, 50), (96, 97), (299, 1)):
        part = case(occ.decode, case.query[:, start : start + size], precision=precision)
        assert torch.equal(part, whole[:, start : start + size])


@pytest.mark.parametrize("precision", ROUNDED)
def test_nan_survives_rounding(device: str, precision: str) -> None:
    case = make_case(LAYOUTS["planes"], (16, 5, 2), device=device)
    case.arguments["planes"][0, 0, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    found = case(occ.decode, precision=precision)
    assert found[0].isnan().all() and not found[1].isnan().any()


@pytest.mark.parametrize("precision", ROUNDED)
def test_gradients_and_float64_are_not_rounded(device: str, precision: str) -> None:
    case = make_case(LAYOUTS["both"], (16, 8, 2), device=device)
    for module in (occ, reference):
        for found, exact in zip(
            case(module.decode_with_gradient, precision=precision), case(module.decode_with_gradient), strict=True
        ):
            assert torch.equal(found, exact)
        recorded = case.query.clone().requires_grad_()
        values = [case(module.decode, recorded, **extra) for extra in ({"precision": precision}, {})]
        assert values[0].requires_grad and torch.equal(*values)
    wide = make_case(LAYOUTS["planes"], (16, 8, 2), (1, 9), dtype=torch.float64, device=device)
    assert torch.equal(wide(occ.decode, precision=precision), wide(occ.decode))
    assert torch.equal(wide(reference.decode, precision=precision), wide(reference.decode))


def test_reference_rounds_to_nearest_even() -> None:
    from occkernels import reference_decode

    step = 2.0**-10
    given = [1.0, 1 + step / 2, 1 + step * 3 / 2, 1 + step * 0.51, -1 - step * 0.51, 3e38, float("inf"), -0.0]
    expected = [1.0, 1.0, 1 + 2 * step, 1 + step, -1 - step]
    found = reference_decode._round_tf32(torch.tensor(given))
    assert torch.equal(found[:5], torch.tensor(expected)) and found[6] == float("inf") and found[7].signbit()
    assert reference_decode._round_tf32(torch.tensor(float("nan"))).isnan()
    assert torch.equal(
        reference_decode._round_bf16(torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8])), torch.tensor([1, 1 + 2.0**-6])
    )


def test_rounded_weights_are_those_of_the_reference() -> None:
    from occkernels import reference_decode

    weights = make_case(LAYOUTS["planes"], (24, 13, 2)).weights
    every = torch.cat([part[0].flatten() for part in (weights.fc_c, weights.fc_0, weights.fc_1)])

    def sorted_numbers(numbers: Tensor) -> Tensor:
        return numbers.float()[numbers != 0].sort().values

    for packing, dtype in (("pairs", torch.bfloat16), ("bf16", torch.bfloat16), ("tf32", torch.float32)):
        rounded = reference_decode._round_tf32(every) if packing == "tf32" else reference_decode._round_bf16(every)
        words = weights.rounded(packing)
        assert words.dtype == torch.int32 and words.is_contiguous()
        assert torch.equal(sorted_numbers(words.view(dtype)), sorted_numbers(rounded))


def test_rounding_compiles() -> None:
    case = make_case(LAYOUTS["planes"], (16, 8, 2))
    weights, layout = case.weights, case.layout

    def run(query: Tensor, planes: Tensor) -> Any:
        return occ.decode(query, weights, layout, planes=planes, precision="bf16")

    inputs = (case.query, case.arguments["planes"])
    assert_close(torch.compile(run, fullgraph=True)(*inputs), run(*inputs))


def test_bf16_pairs_with_ordinary_instructions() -> None:
    if {"OCC_SIMD", "OCC_BF16", "OCC_CUDA_HOST"} & set(os.environ):
        pytest.skip("runs once, from a process with the processor's own instruction set")
    selection = "rounded or nan or gradients"
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:cacheprovider", "-k", selection]
    environment = os.environ | {"OCC_BF16": "portable"}
    check = "from occkernels import _native; assert _native.load().build_info()['bf16'] == 'portable'"
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]
