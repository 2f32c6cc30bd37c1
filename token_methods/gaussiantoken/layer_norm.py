"""Layer normalisation of short rows, fused on CUDA where Triton is installed; elsewhere PyTorch's.

PyTorch gives every row a block of threads of its own. The rows of the Gaussian embedder have 64 numbers, and there are a hundred
thousand of them: several rows share a program here.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from token_methods.gaussiantoken.group_norm import HAS_TRITON


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` of the last axis."""

    def forward(self, input: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        if not (input.is_cuda and HAS_TRITON):
            return super().forward(input)
        from token_methods.gaussiantoken.layer_norm_triton import fits, fused_layer_norm

        return fused_layer_norm(input, self.weight, self.bias, self.eps) if fits(input) else super().forward(input)
