"""The cheap launch: Triton's own launch the first time, and wherever Triton might compile anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="launches Triton kernels")
from token_methods.rendering import kernel_launch
from token_methods.rendering.kernel_launch import Launcher, power_of_two


class RecordedKernel:
    """Takes launches as a Triton kernel does, and gives a compiled kernel that takes them too."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, num_warps: int) -> RecordedKernel.Compiled:
            assert num_warps == 2
            self.launches.append(("source", grid, arguments))
            return self.Compiled(self)

        return launch

    class Compiled:
        def __init__(self, kernel: RecordedKernel) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments: self.kernel.launches.append(("compiled", grid, arguments))


def test_the_same_sizes_and_types_are_launched_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_launch, "TAKES_ALL_ARGUMENTS", True)
    kernel, x, y = RecordedKernel(), torch.zeros(8), torch.ones(8)
    launch = Launcher(kernel, num_warps=2)
    for tensors, numbers in (
        ((x, None), (3, 0.5)),
        ((y, None), (3, 0.5)),
        ((x, y), (3, 0.5)),
        ((x, None), (4, 0.5)),
        ((x.bfloat16(), None), (3, 0.5)),
        ((x[1:], None), (3, 0.5)),
        ((x, None), (4, 0.5)),
    ):
        launch(7, tensors, numbers)
        assert kernel.launches[-1][2][0] is tensors[0] and kernel.launches[-1][2][2:] == numbers
    assert [way for way, *_ in kernel.launches] == ["source", "compiled", "source", "source", "source", "source", "compiled"]
    launch(7, (y[1:], None), (3, 0.5))
    assert kernel.launches[-1][0] == "compiled"  # not aligned either
    launch(8, (x, None), (3, 0.5))
    assert kernel.launches.pop()[:2] == ("source", (8,))
    assert {(way, grid) for way, grid, _ in kernel.launches} == {("source", (7,)), ("compiled", (7, 1, 1))}


def test_triton_launches_everything_where_compiled_kernels_take_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_launch, "TAKES_ALL_ARGUMENTS", False)
    kernel = RecordedKernel()
    launch = Launcher(kernel, num_warps=2)
    for _ in range(2):
        launch(7, (torch.zeros(8),), (3,))
    assert [way for way, *_ in kernel.launches] == ["source", "source"]


def test_powers_of_two() -> None:
    assert [power_of_two(number) for number in (1, 2, 3, 4, 5, 255, 256, 257)] == [1, 2, 4, 4, 8, 256, 256, 512]
