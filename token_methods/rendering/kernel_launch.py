"""Launches of Triton kernels that cost the host little: small maps are drawn faster than Triton's own launch is worked out.

At each launch Triton types all arguments, looks up the compiled kernel by them and checks what globals the kernel saw. Here the kernel
that a launch gave is kept by what it was compiled for, and is launched itself the next time.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

ALIGNMENT = 16
"""Bytes; Triton compiles a kernel anew for pointers that are no multiple of it."""
TAKES_ALL_ARGUMENTS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)
"""Whether a compiled kernel is launched with the arguments of its source; before Triton 3.3 it was without the constants."""
_HERE = nullcontext()


class Launcher:
    """A kernel whose arguments are tensors (or None) first, then numbers, on one dimension of programs."""

    def __init__(self, kernel: Any, num_warps: int) -> None:
        self.kernel, self.num_warps = kernel, num_warps
        self._compiled: dict[Hashable, Any] = {}

    def __call__(self, programs: int, tensors: tuple[Tensor | None, ...], numbers: tuple[int | float, ...]) -> None:
        """Launch `programs` on the current stream of the first tensor's device."""
        first = tensors[0]
        assert first is not None
        with on_device_of(first):
            if not TAKES_ALL_ARGUMENTS or not _are_aligned(tensors):
                self.kernel[programs,](*tensors, *numbers, num_warps=self.num_warps)
                return
            key = (first.get_device(), numbers, *[None if value is None else value.dtype for value in tensors])
            compiled = self._compiled.get(key)
            if compiled is None:
                self._compiled[key] = self.kernel[programs,](*tensors, *numbers, num_warps=self.num_warps)
            else:
                compiled[programs, 1, 1](*tensors, *numbers)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one, where kernels are launched; nothing to do where it is."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device_of(tensor)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, which is positive. (Triton's own takes longer than the launch.)"""
    return 1 << (number - 1).bit_length()


def _are_aligned(tensors: tuple[Tensor | None, ...]) -> bool:
    return not any(value.data_ptr() % ALIGNMENT for value in tensors if value is not None)
