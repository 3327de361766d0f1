# SPDX-License-Identifier: MIT
"""What this installation is and can do: ``python -m occkernels.info``. Paste its output into a bug report."""

from __future__ import annotations

import inspect
import platform
import re
import sys
from types import ModuleType
from typing import Any

import torch

import occkernels
from occkernels import _native, reference


def environment() -> dict[str, str]:
    """Versions, build and machine, as text by label."""
    facts = {
        "occkernels": occkernels.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
    }
    try:
        build: dict[str, Any] = _native.load().build_info()
    except ImportError as error:
        return facts | {"native module": f"not loaded: {error}"}
    return facts | {
        "native module": f"version {build['version']}, built by {build['compiler']}",
        "SIMD in use": f"{build['simd']} (OCC_SIMD=base or avx2 lowers it)",
        "bf16 on the CPU": f"{build['bf16']} (OCC_BF16=none leaves it out)",
        "threads": f"{torch.get_num_threads()} (OpenMP {'yes' if build['openmp'] else 'no'})",
        "CUDA build": _cuda_build(build),
        "CUDA device": _cuda_device(),
    }


def _cuda_build(build: dict[str, Any]) -> str:
    if build["cuda_version"] is None:
        return "no; rebuild with nvcc present: OCC_CUDA=ON pip install --force-reinstall --no-deps occkernels"
    return f"{build['cuda_version']}, architectures {build['cuda_architectures'].replace(';', ' ')}"


def _cuda_device() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        names.append(f"{device.name} (sm_{device.major}{device.minor}, {device.total_memory / 2**30:.0f} GiB)")
    return ", ".join(names)


def _entry_points(module: ModuleType) -> set[str]:
    """Native functions that a family of operators calls, read from its sources."""
    own = module.__name__
    family = [other for name, other in sys.modules.items() if name == own or name.startswith(f"{own}_")]
    return {name for part in family for name in re.findall(r'\bcall\(\s*"(\w+)"', inspect.getsource(part))}


def _where(entries: set[str], device: str) -> str:
    try:
        native = _native.load()
    except ImportError:
        return "no"
    there = [hasattr(native, f"{name}_{device}") for name in entries]
    return "yes" if all(there) else ("partly" if any(there) else "no")


def operators() -> list[tuple[str, str, str, str]]:
    """(operator, reference, cpu, cuda) for every public operator.

    ``yes``: it runs there; ``python``: it runs there as torch code; ``no``: this build has no such code.
    """
    rows = []
    for name in occkernels.__all__:
        function = getattr(occkernels, name)
        if not inspect.isfunction(function) or function is occkernels.has_cuda:
            continue
        module = sys.modules[function.__module__]
        twin = "yes" if hasattr(reference, name) else "no"
        entries = _entry_points(module)
        if module.__name__.startswith("occkernels.reference") or not entries:
            rows.append((name, twin, "python", "python"))
        else:
            rows.append((name, twin, _where(entries, "cpu"), _where(entries, "cuda")))
    return rows


def report() -> str:
    """Everything above as one text."""
    facts = environment()
    label = max(map(len, facts))
    lines = [f"{key + ':':{label + 2}}{value}" for key, value in facts.items()]
    table = [("operator", "reference", "cpu", "cuda"), *operators()]
    name = max(len(row[0]) for row in table)
    lines.append("")
    lines += [f"{row[0]:{name + 2}}{row[1]:11}{row[2]:8}{row[3]}" for row in table]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
