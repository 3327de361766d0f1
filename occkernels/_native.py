# SPDX-License-Identifier: MIT
"""Loads the native module once, remembers why it failed, and calls it with torch tensors.

``call("name", device_of, *arguments)`` appends ``_cpu`` or ``_cuda`` to the name, replaces every tensor by its address
and adds the last argument of every entry point: the number of threads (CPU) or the current stream's handle (CUDA).
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch  # must come before _C: its OpenMP runtime then is the only one in the process
from torch import Tensor

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

_module: ModuleType | None = None
_failure: BaseException | None = None
_cuda_host: ModuleType | None = None

try:
    from occkernels import _C as _module  # type: ignore[no-redef,attr-defined,unused-ignore]
except ImportError as error:  # kept: the message is needed when an operator is first called, not at import
    _failure = error


def load() -> ModuleType:
    """The native module.

    Raises:
        ImportError: it was not built or cannot be loaded; the message says why and what to do.
    """
    if _module is None:
        raise ImportError(
            f"occkernels: the native module occkernels._C could not be loaded ({_failure}). "
            "Reinstall with: pip install --force-reinstall --no-deps occkernels"
        ) from _failure
    return _module


def has_cuda() -> bool:
    """Whether this build has the CUDA operators and a CUDA device is present. Never initialises CUDA in a CPU build."""
    built = _module is not None and hasattr(_module, "bin_index_cuda")
    return built and torch.cuda.is_available()


def use_cuda_host(module: ModuleType | None) -> None:
    """Route CPU tensors to ``module``'s ``*_cuda`` entry points; None ends it.

    For the tests only: ``tests/cuda_host`` compiles the CUDA sources for the CPU under a host shim.
    """
    global _cuda_host
    _cuda_host = module


def dtype_code(tensor: Tensor, where: str) -> int:
    """Code of a tensor's element type in csrc/common/types.h.

    Raises:
        TypeError: the type is not one of float32, float64, float16, bfloat16.
    """
    try:
        return DTYPE_CODES[tensor.dtype]
    except KeyError:
        raise TypeError(
            f"occkernels.{where}: expected float32, float64, float16 or bfloat16, got {tensor.dtype}. "
            "Convert the tensor first, e.g. with .float()."
        ) from None


MULTIPLIES_BF16 = _module is not None and _module.build_info().get("bf16", "none") != "none"
"""Whether the CPU has an instruction for products of bfloat16 pairs, and this build code for it."""


def runs_cuda_code(tensor: Tensor) -> bool:
    """Whether operators on the tensor run the CUDA sources: on a CUDA device, or compiled for the host."""
    return tensor.device.type != "cpu" or _cuda_host is not None


def has_tensor_cores(tensor: Tensor) -> bool:
    """Whether the device multiplies tf32 and bf16 matrices (compute capability 8.0); for ``runs_cuda_code``."""
    return tensor.device.type == "cpu" or torch.cuda.get_device_capability(tensor.device) >= (8, 0)


def stores_half(tensor: Tensor) -> bool:
    """Whether the pooling code for the tensor's device reads half precision itself: on CUDA, to save bandwidth."""
    return tensor.device.type != "cpu" or _cuda_host is not None


def _address(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return 0 if argument is None else argument


def call(name: str, like: Tensor, *arguments: Any) -> Any:
    """Call entry point ``name`` on the device of ``like``.

    Tensors among the arguments must be contiguous; the argument tuple keeps them alive until this returns. None is
    passed as a null pointer.

    Raises:
        RuntimeError: CUDA tensors, but this build has no CUDA code.
    """
    addresses = [_address(argument) for argument in arguments]
    if _cuda_host is not None and like.device.type == "cpu" and hasattr(_cuda_host, f"{name}_cuda"):
        return getattr(_cuda_host, f"{name}_cuda")(*addresses, 0)
    module = load()
    if like.device.type == "cpu":
        return getattr(module, f"{name}_cpu")(*addresses, torch.get_num_threads())
    if like.device.type != "cuda":
        raise RuntimeError(f"occkernels.{name}: device {like.device} is not supported; use a CPU or CUDA tensor.")
    function = getattr(module, f"{name}_cuda", None)
    if function is None:
        raise RuntimeError(
            f"occkernels.{name}: the tensors are on {like.device} but this build has no CUDA code for it "
            f"(torch {torch.__version__}). Rebuild with nvcc present: "
            "OCC_CUDA=ON pip install --force-reinstall --no-deps occkernels"
        )
    with torch.cuda.device(like.device):
        return function(*addresses, torch.cuda.current_stream(like.device).cuda_stream)


def log_level() -> str:
    """Value of the environment variable OCC_LOG (``debug`` tells why a slow path was taken)."""
    return os.environ.get("OCC_LOG", "").lower()
