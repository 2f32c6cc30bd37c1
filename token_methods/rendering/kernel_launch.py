"""Launches of Triton kernels that cost the host little: small maps are drawn faster than Triton's own launch is worked out.

At each launch Triton types all arguments, looks up the compiled kernel by them and checks what globals the kernel saw. Here the kernel
that a launch gave is kept by what it was compiled for, and is launched itself the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
import triton
from torch import Tensor

ALIGNMENT = 16
"""Bytes; Triton compiles a kernel anew for pointers that are no multiple of it."""
TAKES_ALL_ARGUMENTS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)
"""Whether a compiled kernel is launched with the arguments of its source; before Triton 3.3 it was without the constants."""


class Launcher:
    """A kernel whose arguments are tensors (or None) first, then numbers, on one dimension of programs."""

    def __init__(self, kernel: Any, num_warps: int) -> None:
        self.kernel, self.num_warps = kernel, num_warps
        self._launches: dict[Hashable, Callable[..., None]] = {}

    def __call__(self, programs: int, tensors: tuple[Tensor | None, ...], numbers: tuple[int | float, ...]) -> None:
        """Launch `programs` on the current stream of the first tensor's device."""
        first = tensors[0]
        assert first is not None
        device = first.get_device()  # -1 stands for the CPU
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(programs, tensors, numbers)
        key = programs, device, numbers, *map(_kind, tensors)
        launch = self._launches.get(key)
        if launch is not None:
            return launch(*tensors, *numbers)
        compiled = self.kernel[programs,](*tensors, *numbers, num_warps=self.num_warps)
        if TAKES_ALL_ARGUMENTS and compiled is not None:  # nothing is compiled when kernels are interpreted
            self._launches[key] = compiled[programs, 1, 1]


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, which is positive. (Triton's own takes longer than the launch.)"""
    return 1 << (number - 1).bit_length()


def _kind(tensor: Tensor | None) -> Hashable:
    """What Triton compiles for: the type, and whether the memory begins at a multiple of `ALIGNMENT`."""
    if tensor is None:
        return None
    return tensor.dtype if tensor.data_ptr() % ALIGNMENT == 0 else (tensor.dtype, "anywhere")
