"""CUDA graphs: a module's kernels, recorded once and then started together, where starting takes the host longer than running the GPU.

PyTorch's `make_graphed_callables` is made for scripts: it replaces `forward` for good, takes one shape, hands out memory that its next
call writes over, and fails where other threads (which load data) use the GPU while it records. Here a call that is not the recorded one
simply runs.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.func import functional_call

PLAIN_CALLS = 2
"""Calls of a kind that run as they are, in which PyTorch chooses algorithms and Triton compiles; the next one is recorded."""


def alone(result: Tensor) -> tuple[Tensor, ...]:
    """The result of a module that returns one tensor, as a tuple."""
    return (result,)


class GraphReplay:
    """Calls a module of one tensor that neither waits for the GPU nor looks at values on the host.

    On CUDA the third call of a kind (shape, type, mode, gradients wanted or not) records a graph, which it and all later ones replay;
    of each mode one kind is recorded. Weights are read where they lie, so they may change in place; random numbers and buffers that the
    module changes go on as without graphs. Gradients can be taken once, before the next call with gradients.

    Everything else runs as it is: on a CPU, other kinds, and training by several processes, which exchange numbers in it.
    """

    def __init__(self, module: nn.Module, tensors: Callable[[Any], tuple[Tensor, ...]] = alone) -> None:
        """`tensors` takes the module's result apart."""
        self.module = module
        self.tensors = tensors
        self.enabled = True
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, tuple[Hashable, _Recording]] = {}

    def __call__(self, x: Shaped[Tensor, "*shape"]) -> tuple[Tensor, ...]:
        """The tensors of the module's result."""
        recording = self._recording(x) if self.enabled and x.is_cuda else None
        return self.tensors(self.module(x)) if recording is None else recording.replay(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphReplay:
        """Calls the copied module; graphs cannot be copied."""
        twin = GraphReplay(copy.deepcopy(self.module, memo), self.tensors)
        twin.enabled = self.enabled
        return twin

    def _recording(self, x: Tensor) -> _Recording | None:
        """Of calls like this one, if there is one."""
        if torch.cuda.is_current_stream_capturing() or (torch.is_grad_enabled() and _trains_together()):
            return None
        place = next((parameter.data_ptr() for parameter in self.module.parameters()), 0)  # another once the module was moved
        mode = self.module.training, torch.is_grad_enabled(), place
        kind = *mode, x.shape, x.dtype, x.requires_grad, torch.is_autocast_enabled("cuda")
        if mode not in self._recordings:
            self._calls[kind] += 1
            if self._calls[kind] <= PLAIN_CALLS:
                return None
            self._recordings[mode] = kind, _Recording(self.module, self.tensors, x)
        recorded, recording = self._recordings[mode]
        return recording if recorded == kind else None


def _trains_together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@cache
def _passing_memory() -> Any:
    """What all recordings without gradients take their memory from: none keeps anything there from one replay to the next."""
    return torch.cuda.graph_pool_handle()


class _Recording:
    """A call as a graph and, where gradients are wanted, its backward pass as a second one."""

    def __init__(self, module: nn.Module, tensors: Callable[[Any], tuple[Tensor, ...]], x: Tensor) -> None:
        differentiable = torch.is_grad_enabled()
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad} if differentiable else {}
        self.parameters = tuple(trained.values())
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.number = 0
        # Without the cache of weights in 16 bits, which would be read again when the weights have changed.
        cast = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False)
        with torch.inference_mode(False), torch.set_grad_enabled(differentiable), cast:
            self.input = x.detach().clone().requires_grad_(x.requires_grad and differentiable)
            # The same memory under new names: what else was computed with the parameters ties them to another stream.
            names = {name: value.detach().requires_grad_() for name, value in trained.items()}
            pool = None if differentiable else _passing_memory()
            with torch.cuda.graph(self.forward, pool=pool, capture_error_mode="thread_local"):
                results = tensors(functional_call(module, names, (self.input,)))
            if differentiable:
                inputs = (*((self.input,) if self.input.requires_grad else ()), *names.values())
                self.result_grads = tuple(torch.empty_like(result) for result in results)
                with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
                    grads = torch.autograd.grad(results, inputs, self.result_grads, allow_unused=True)
                self.grads = grads if self.input.requires_grad else (None, *grads)
            self.results = tuple(result.detach() for result in results)

    def replay(self, x: Tensor) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return self.run(x)
        results: tuple[Tensor, ...] = _Replay.apply(self, x, *self.parameters)
        return results

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        self.input.detach().copy_(x)
        self.forward.replay()
        self.number += 1
        return tuple(result.clone() for result in self.results)

    def differentiate(self, grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        """Of the run before, once: the memory of its activations is used again on the way."""
        for place, grad in zip(self.result_grads, grads, strict=True):
            place.copy_(grad)
        self.backward.replay()
        self.number += 1
        return tuple(None if grad is None else grad.clone() for grad in self.grads)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        results = recording.run(x)
        ctx.recording, ctx.number = recording, recording.number
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.number != ctx.recording.number:
            raise RuntimeError("a CUDA graph's gradients can be taken once, before its next call: set enabled to False on its GraphReplay")
        return None, *ctx.recording.differentiate(grads)
