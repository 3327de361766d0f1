# SPDX-License-Identifier: MIT
"""Compiles csrc/cuda as C++ under the shim, with AddressSanitizer and UndefinedBehaviorSanitizer.

Objects are kept in build/cuda_host by the hash of what they are made of.

python tests/cuda_host/host_build.py     builds and prints the module's path
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DOCC_CUDA_HOST=1"),
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
LIBRARIES = ("libasan.so", "libubsan.so")


class Unavailable(RuntimeError):
    """This machine cannot build or run the sanitized module; the message says why."""


def compiler() -> str:
    """Path of g++.

    Raises:
        Unavailable: not Linux, no g++, or no sanitizer libraries.
    """
    path = os.environ.get("OCC_HOST_CXX") or shutil.which("g++")
    if not sys.platform.startswith("linux") or path is None:
        raise Unavailable("the host build of the CUDA sources needs g++ on Linux")
    for library in LIBRARIES:
        if not Path(_library(path, library)).is_absolute():
            raise Unavailable(f"g++ has no {library}; install its sanitizer libraries")
    return path


def _library(path: str, name: str) -> str:
    done = subprocess.run([path, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def environment() -> dict[str, str]:
    """What a Python process needs to load the module: the sanitizers' libraries come first in the process."""
    path = compiler()
    return {
        "LD_PRELOAD": " ".join(_library(path, name) for name in LIBRARIES),
        # Python and torch keep memory until they exit, and torch's libraries share some symbols.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }


def _sources() -> list[Path]:
    own = [*HERE.glob("*.cpp"), *HERE.glob("*.cu"), *(HERE / "shim").glob("*.cpp")]
    return sorted([*own, *(ROOT / "csrc" / "cuda").glob("*.cu")])


def _compile(command: list[str], source: Path, headers: bytes, folder: Path) -> Path:
    if source.name != "module.cpp":  # the bindings touch no data
        command = [*command, *SANITIZERS]
    key = hashlib.sha256(repr(command).encode() + headers + source.read_bytes()).hexdigest()[:20]
    target = folder / f"{source.stem}-{key}.o"
    if not target.exists():
        for stale in folder.glob(f"{source.stem}-*.o"):
            stale.unlink(missing_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [*command, "-xc++", "-c", str(source), "-o", str(partial)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{source} does not compile for the host:\n{done.stderr}")
        partial.rename(target)
    return target


def build(folder: Path = ROOT / "build" / "cuda_host", jobs: int = 2) -> Path:
    """Build what changed; returns the module's path.

    Raises:
        Unavailable: see ``compiler``; or pybind11 is missing.
        RuntimeError: a source does not compile.
    """
    path = compiler()
    try:
        import pybind11
    except ImportError:
        raise Unavailable("the host build of the CUDA sources needs pybind11: pip install pybind11") from None
    folder.mkdir(parents=True, exist_ok=True)
    include = [ROOT / "csrc", HERE, HERE / "shim", pybind11.get_include(), sysconfig.get_path("include")]
    command = [path, *FLAGS, *(f"-I{item}" for item in include)]
    found = sorted([*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh"), *HERE.rglob("*.h")])
    headers = b"".join(header.read_bytes() for header in found)
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda source: _compile(command, source, headers, folder), _sources()))
    key = hashlib.sha256(" ".join(item.name for item in objects).encode()).hexdigest()[:20]
    module = folder / f"_cuda_host-{key}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        partial = module.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, *SANITIZERS, "-shared", *map(str, objects), "-o", str(partial)], check=True)
        partial.rename(module)
    return module


if __name__ == "__main__":
    print(build())
