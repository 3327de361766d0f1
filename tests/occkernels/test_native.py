# SPDX-License-Identifier: MIT
"""Loading the native module, routing by device, and the words of the errors."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import occkernels
from occkernels import _native, info

POINTS = torch.zeros(1, 4, 3)
LAYOUT = occkernels.FeatureLayout(("xz",), 4)


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def on(device: str) -> torch.Tensor:
    """Something whose device is ``device``, present or not."""
    return SimpleNamespace(device=torch.device(device))  # type: ignore[return-value]


def test_the_native_module_is_loaded_and_complete() -> None:
    module = _native.load()
    assert module.build_info()["version"]
    assert {name[: -len("_cuda")] for name in dir(module) if name.endswith("_cuda")} <= {
        name[: -len("_cpu")] for name in dir(module) if name.endswith("_cpu")
    }


def test_versions_agree() -> None:
    assert _native.load().build_info()["version"].startswith(occkernels.__version__)


def test_import_survives_a_missing_native_module_and_calls_say_what_to_do() -> None:
    done = python("""
import sys
sys.modules["occkernels._C"] = None
import torch, occkernels
assert not occkernels.has_cuda()
try:
    occkernels.bin_points(torch.zeros(1, 4, 3), occkernels.FeatureLayout(("xz",), 4))
except ImportError as error:
    print(error)
from occkernels import info
print(info.report())
""")
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("occkernels: the native module occkernels._C could not be loaded (")
    assert first.endswith("Reinstall with: pip install --force-reinstall --no-deps occkernels")
    assert "not loaded" in done.stdout


def test_import_does_not_initialise_cuda() -> None:
    done = python("import occkernels, torch; occkernels.has_cuda(); print(torch.cuda.is_initialized())")
    assert done.stdout.strip() == "False", done.stderr


def test_has_cuda_needs_code_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "_module", SimpleNamespace(bin_index_cuda=None))
    assert occkernels.has_cuda()
    monkeypatch.setattr(_native, "_module", SimpleNamespace(bin_index_cpu=None))
    assert not occkernels.has_cuda()
    monkeypatch.setattr(_native, "_module", None)
    assert not occkernels.has_cuda()


def test_cuda_tensors_in_a_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_module", SimpleNamespace(bin_index_cpu=None))
    with pytest.raises(
        RuntimeError, match=r"occkernels.bin_index: the tensors are on cuda:0 but .* no CUDA code.*OCC_CUDA=ON"
    ):
        _native.call("bin_index", on("cuda:0"))


def test_other_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"occkernels.bin_index: device mps:0 is not supported"):
        _native.call("bin_index", on("mps:0"))


def test_dtype_codes() -> None:
    assert [_native.dtype_code(torch.empty(0, dtype=dtype), "x") for dtype in _native.DTYPE_CODES] == [0, 1, 2, 3]
    with pytest.raises(TypeError, match=r"occkernels.local_pool: expected float32, .*, got torch.int32"):
        _native.dtype_code(torch.empty(0, dtype=torch.int32), "local_pool")


def test_unknown_dtype_code_is_refused_by_the_native_code() -> None:
    with pytest.raises(ValueError, match="unknown dtype code 9"):
        _native.load().bin_index_cpu(0, 9, 0, 0, 0, 0, 0, 0, LAYOUT.spec(), 1)


def test_wrong_arguments_of_an_entry_point_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.call("bin_index", POINTS, POINTS)


@pytest.mark.skipif(not hasattr(_native._module, "bin_index_cuda"), reason="this build has no CUDA code")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_code_without_a_driver_fails_when_called() -> None:
    index = torch.empty(4, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"occkernels: CUDA error in bin_index_kernel.*use CPU tensors"):
        _native.load().bin_index_cuda(POINTS.data_ptr(), 0, 0, 0, 0, index.data_ptr(), 1, 4, LAYOUT.spec(), 0)


def test_cuda_host_gets_cpu_calls_and_can_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(_native, "_cuda_host", None)
    _native.use_cuda_host(SimpleNamespace(nothing_cuda=lambda *arguments: seen.append(arguments)))  # type: ignore[arg-type]
    _native.call("nothing", POINTS, POINTS, None, 3)
    assert seen == [(POINTS.data_ptr(), 0, 3, 0)]
    _native.use_cuda_host(None)
    with pytest.raises(AttributeError):
        _native.call("nothing", POINTS)


def test_info_tells_versions_and_every_operator() -> None:
    done = subprocess.run([sys.executable, "-m", "occkernels.info"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    assert torch.__version__ in done.stdout and "SIMD in use:" in done.stdout
    rows = {row[0]: row[1:] for row in info.operators()}
    assert rows["bin_points"] == ("yes", "yes", "yes" if hasattr(_native._module, "bin_index_cuda") else "no")
    for name in rows:
        assert name in done.stdout
