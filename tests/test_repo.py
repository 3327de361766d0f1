# SPDX-License-Identifier: MIT
"""The repository tests itself: import rules, public names, documentation, sizes, hygiene."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"occkernels": ROOT / "occkernels", "occnets": ROOT / "python" / "occnets"}
FOUNDATIONS = {
    "_checks",
    "_native",
    "_registry",
    "layout",
    "bins",
    "mesh",
    "_marching_cubes_table",
    "sparse",
    "extract_options",
    "decode_weights",
}  # what every operator family may use


def python_files() -> list[Path]:
    return sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))


def native_files() -> list[Path]:
    found: list[Path] = []
    for folder in (ROOT / "csrc", ROOT / "tests" / "cuda_host"):
        found += [path for path in folder.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    return sorted(found)


def imports_of(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def starts(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)}


def test_operator_families_do_not_import_each_other_or_the_reference() -> None:
    family = {path.stem for path in PACKAGES["occkernels"].glob("*.py")} - FOUNDATIONS - {"__init__", "info", "testing"}
    family -= {"extract"}  # drives the octree and marching cubes
    for path in PACKAGES["occkernels"].glob("*.py"):
        if path.stem not in family:
            continue
        own = path.stem.lstrip("_").split("_")[0]
        others = {f"occkernels.{name}" for name in family if name.lstrip("_").split("_")[0] != own}
        assert not starts(imports_of(path), *others), path


def test_reference_needs_torch_only() -> None:
    for path in PACKAGES["occkernels"].glob("reference*.py"):
        allowed = ("torch", "occkernels.layout", "occkernels.reference", "__future__", "typing", "itertools", "math")
        allowed += ("collections", "functools", "dataclasses")
        allowed += ("occkernels.mesh", "occkernels._marching_cubes_table", "occkernels.sparse")
        allowed += ("occkernels.reference_mc", "occkernels.reference_mc_sparse")
        allowed += ("occkernels.reference_octree", "occkernels.reference_extract", "occkernels.extract_options")
        allowed += ("occkernels.decode_weights", "occkernels.reference_decode")
        extra = imports_of(path) - starts(imports_of(path), *allowed) - {"occkernels"}
        assert not extra, (path, extra)


def test_occkernels_needs_torch_and_numpy_only() -> None:
    for path in PACKAGES["occkernels"].rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        foreign = roots - set(sys.stdlib_module_names) - {"torch", "numpy", "occkernels"}
        assert not foreign, (path, foreign)


def test_occnets_uses_public_operators_only() -> None:
    public = set(importlib.import_module("occkernels").__all__)
    for path in PACKAGES["occnets"].rglob("*.py"):
        for name in starts(imports_of(path), "occkernels"):
            parts = name.split(".")
            assert len(parts) == 1 or parts[1] in public | {"__version__", "reference", "info"}, (path, name)


def test_models_import_no_application_code() -> None:
    forbidden = (
        "trimesh",
        "yaml",
        "occnets.data",
        "occnets.training",
        "occnets.cli",
        "occnets.io",
        "occnets.reconstruct",
    )
    for path in (PACKAGES["occnets"] / "models").rglob("*.py"):
        assert not starts(imports_of(path), *forbidden), path


def test_nobody_imports_the_command_line() -> None:
    for path in python_files():
        if path.name not in {"cli.py", "__main__.py"}:
            assert not starts(imports_of(path), "occnets.cli"), path


def test_native_code_includes_no_torch_and_families_stay_apart() -> None:
    for path in native_files():
        included = re.findall(r'#include\s+["<]([^">]+)[">]', path.read_text())
        assert not [name for name in included if name.startswith(("torch", "ATen", "c10"))], path
        if path.parent.name in {"cpu", "cuda"} and path.parent.parent.name == "csrc":
            stem = path.name.split(".")[0].split("_")[0]
            for name in included:
                if name.startswith(("cpu/", "cuda/")):
                    assert name.split("/")[1].split(".")[0].split("_")[0] == stem, (path, name)


@pytest.mark.parametrize("package", ["occkernels", "occnets"])
def test_public_names_exist_and_are_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        thing = getattr(module, name)
        if callable(thing):
            assert inspect.getdoc(thing), f"{package}.{name} has no docstring"


def test_every_operator_has_a_twin_of_the_same_signature() -> None:
    occkernels = importlib.import_module("occkernels")
    reference = importlib.import_module("occkernels.reference")
    for name in occkernels.__all__:
        thing = getattr(occkernels, name)
        if inspect.isfunction(thing) and name != "has_cuda":
            twin = getattr(reference, name)
            ours, theirs = inspect.signature(thing), inspect.signature(twin)
            assert list(ours.parameters) == list(theirs.parameters), name
            for key, parameter in ours.parameters.items():
                assert parameter.default == theirs.parameters[key].default, (name, key)
                assert parameter.kind == theirs.parameters[key].kind, (name, key)


def test_files_stay_small_enough_to_read() -> None:
    for path in [*python_files(), *native_files()]:
        if "generated" not in path.read_text()[:400].lower():
            assert len(path.read_text().splitlines()) <= 500, path


def test_functions_stay_small_and_have_few_parameters() -> None:
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_every_source_names_its_licence() -> None:
    for path in [*python_files(), *native_files()]:
        if path.read_text().strip():
            assert "SPDX-License-Identifier: MIT" in path.read_text()[:200], path


def test_importing_is_silent_and_leaves_cuda_alone() -> None:
    code = (
        "import sys, occkernels, occnets, torch; assert not torch.cuda.is_initialized(); "
        "heavy = {'trimesh', 'yaml', 'scipy', 'lightning', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_repository_holds_no_local_paths_and_no_large_files() -> None:
    local = re.compile(
        "|".join(["/" + "work/", "/" + "root/", "/" + "opt/(wheels|pypi)", "download" + r"\.pytorch\.org"])
    )
    weights = 0
    for path in tracked_files():
        if not path.exists():
            continue
        size = path.stat().st_size
        assert size <= 10 * 2**20, path
        weights += size if path.suffix == ".safetensors" else 0
        if path.suffix in {
            ".py",
            ".md",
            ".toml",
            ".txt",
            ".cpp",
            ".h",
            ".cu",
            ".sh",
            ".yaml",
            ".yml",
            ".cmake",
            ".cff",
            "",
        }:
            found = local.search(path.read_text(errors="ignore"))
            assert not found, (path, found)
    assert weights <= 40 * 2**20


def test_readme_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w[\w-]*)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        ast.parse(block)
