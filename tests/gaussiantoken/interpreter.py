"""For tests of CUDA kernels on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import os

import pytest

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None,
    reason="needs Triton and TRITON_INTERPRET=1, which must be set before Triton is loaded",
)
