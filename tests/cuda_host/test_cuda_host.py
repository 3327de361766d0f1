# SPDX-License-Identifier: MIT
"""Runs the operator tests on the CUDA sources, compiled for the host under sanitizers. No GPU is needed.

Every sanitized run is a process of its own: the sanitizers' libraries must be the first ones in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import host_build
import pytest

ROOT = host_build.ROOT
TESTS = ROOT / "tests" / "occkernels"
# Tracing operators, properties of tables and numbers of threads say nothing about kernels and take long under
# sanitizers.
SELECTION = (
    "not compile and not opcheck and not gradgrad and not every_case and not closed_manifolds"
    " and not number_of_threads and not every_instruction_set"
)

PRELUDE = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from conftest import load_cuda_host
module = load_cuda_host({module!r})
"""


@pytest.fixture(scope="session")
def host_module() -> Path:
    try:
        return host_build.build()
    except host_build.Unavailable as error:
        pytest.skip(str(error))


def run_python(module: Path, code: str) -> subprocess.CompletedProcess[str]:
    text = PRELUDE.format(tests=str(ROOT / "tests"), module=str(module)) + code
    environment = os.environ | host_build.environment()
    return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=300)


def operator_tests() -> list[Path]:
    """The test files of every operator family that has CUDA code."""
    found: set[Path] = set()
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        family = source.stem.split("_")[0]
        tests = list(TESTS.glob(f"test_{family}*.py"))
        assert tests, f"csrc/cuda/{source.name} has no tests/occkernels/test_{family}*.py"
        found.update(tests)
    return sorted(found)


def test_operators_agree_and_stay_in_bounds(host_module: Path) -> None:
    environment = os.environ | host_build.environment() | {"OCC_CUDA_HOST": str(host_module), "OMP_NUM_THREADS": "1"}

    def run(tests: list[Path]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", *map(str, tests), "-q", "-x", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "-k", SELECTION], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
        )

    tests = operator_tests()
    with ThreadPoolExecutor(2) as pool:  # the emulated kernels run on one thread
        halves = list(pool.map(run, (tests[0::2], tests[1::2])))
    for done in halves:
        report = done.stdout[-6000:] + done.stderr[-6000:]
        assert done.returncode == 0, report
        launches = re.search(r"cuda_host: (\d+) kernel launches", done.stdout)
        assert launches is not None and int(launches[1]) > 0, report


@pytest.mark.parametrize(
    ("which", "kernel", "words"),
    [(0, "write_past_end", "WRITE of size 4"), (1, "read_past_shared", "READ of size 4")],
)
def test_out_of_bounds_accesses_are_reported(host_module: Path, which: int, kernel: str, words: str) -> None:
    code = f"x = np.zeros(1024, np.int32); module.faulty({which}, x.ctypes.data, 1024, 0); print('survived')"
    done = run_python(host_module, code)
    assert done.returncode != 0 and "survived" not in done.stdout
    assert "heap-buffer-overflow" in done.stderr and words in done.stderr
    assert re.search(rf"#0 .*{kernel}", done.stderr)


def test_divergent_barriers_are_errors_and_do_not_hang(host_module: Path) -> None:
    code = """
x = np.zeros(64, np.int32)
for which in (2, 3, 2):
    try:
        module.faulty(which, x.ctypes.data, 64, 0)
    except RuntimeError as error:
        print(error)
# The machine must still work after fibers were given up.
results = np.zeros((96, 7), np.int64)
module.warp_functions(x.ctypes.data, results.ctypes.data, 0)
print("alive", int(results[:, 1].sum()))
"""
    done = run_python(host_module, code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[3] == "alive 0"
    assert all("divergent barrier" in line and "block (0, 0, 0)" in line for line in lines[:3])
    assert "barrier_against_shuffle" in lines[0] and "two_barriers" in lines[1]


def test_warp_functions_do_what_the_device_does(host_module: Path) -> None:
    code = """
values = np.random.default_rng(1).integers(0, 9, 64).astype(np.int32)
results = np.full((96, 7), -7, np.int64)
module.warp_functions(values.ctypes.data, results.ctypes.data, 0)
assert (results[64:] == -7).all()
wide = values.astype(np.int64).reshape(2, 32)
lane = np.arange(32)
bits = 1 << lane
expected = np.empty((2, 32, 7), np.int64)
expected[..., 0] = wide[:, np.where(lane >= 3, lane - 3, lane)]
expected[..., 1] = wide.cumsum(1)
expected[..., 2] = ((wide % 2 == 0) * bits).sum(1, keepdims=True)
expected[..., 3] = ((wide[:, :, None] == wide[:, None]) * bits).sum(2)
expected[..., 4] = values[::-1].reshape(2, 32)
expected[..., 5] = np.where(lane % 2 == 1, wide[:, lane ^ 2], -1)
expected[..., 6] = wide.sum()
assert (results[:64].reshape(2, 32, 7) == expected).all()
"""
    done = run_python(host_module, code)
    assert done.returncode == 0, done.stderr
