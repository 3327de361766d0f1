# SPDX-License-Identifier: MIT
"""Devices, slow tests, and the CUDA sources compiled for the host (``tests/cuda_host``)."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import random
from pathlib import Path
from types import ModuleType

import pytest

HOST_CASES = 6  # of every test function, when the CUDA sources run on the host
_HOST = pytest.StashKey[ModuleType]()


def load_cuda_host(path: str | Path) -> ModuleType:
    """The module built by ``tests/cuda_host/host_build.py``. Needs the sanitizers' libraries preloaded."""
    loader = importlib.machinery.ExtensionFileLoader("_cuda_host", str(path))
    spec = importlib.util.spec_from_loader("_cuda_host", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("OCC_CUDA_HOST")
    if path:
        import torch

        from occkernels import _native

        torch.set_num_threads(1)
        config.stash[_HOST] = load_cuda_host(path)
        _native.use_cuda_host(config.stash[_HOST])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    module = config.stash.get(_HOST, None)
    if module is not None:
        terminalreporter.write_line(f"cuda_host: {module.launch_count()} kernel launches")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _HOST in config.stash:
        _thin_out(config, items)
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --run-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def _thin_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sanitized fibers are slow: a few cases of every test function, always the same ones."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    keep = set()
    for name, group in cases.items():
        keep.update(random.Random(name).sample(group, min(HOST_CASES, len(group))))
    config.hook.pytest_deselected(items=[item for item in items if item not in keep])
    items[:] = [item for item in items if item in keep]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that asks for ``device`` on the CPU and, where there is one, on the CUDA device."""
    if "device" in metafunc.fixturenames:
        import occkernels

        cuda = pytest.param("cuda", marks=pytest.mark.cuda)
        metafunc.parametrize("device", ["cpu", cuda] if occkernels.has_cuda() else ["cpu"])
