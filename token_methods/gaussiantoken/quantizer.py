"""The vector quantiser of GaussianToken: `VectorQuantize` of vector-quantize-pytorch with the published settings.

An EMA codebook (van den Oord et al. 2017) that k-means starts and that replaces dead codes, with gradients by the rotation trick
(Fifty et al. 2024, arXiv 2410.06424). The codebook has no parameters: its buffers are the published ones, by name and shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from token_methods.gaussiantoken.config import GaussianTokenArchitecture


class Quantized(NamedTuple):
    """Vectors replaced by codes."""

    features: Float[Tensor, "batch n dim"]
    """The codes; in training the gradient goes on to the vectors."""
    indices: Int64[Tensor, "batch n"]
    """Which codes they are."""
    commitment: Float[Tensor, ""]
    """Mean squared distance between vectors and codes, which pulls at the vectors; 0 in evaluation."""


class Quantizer(VectorQuantize):
    """Replaces vectors by their nearest codes; in training it learns the codebook from them. Float32 whatever autocast it runs under.

    The first training batch starts the codebook; until then all codes are zero. Where several processes train together, they learn
    one codebook from all their vectors (build the network after the process group).
    """

    def __init__(self, architecture: GaussianTokenArchitecture) -> None:
        super().__init__(
            dim=architecture.code_dim,
            codebook_size=architecture.codebook_size,
            decay=architecture.codebook_decay,
            commitment_weight=1.0,
            threshold_ema_dead_code=architecture.dead_code_threshold,
            kmeans_init=True,
            kmeans_iters=architecture.kmeans_iterations,
            ema_update=True,
            learnable_codebook=False,
            rotation_trick=True,
            sync_codebook=num_processes() > 1,
        )
        self.published_threshold, self.published_vectors = architecture.dead_code_threshold, architecture.dead_code_vectors
        self._codebook.initted = torch.zeros(1)  # releases of the library differ in its shape and type

    def forward(self, vectors: Float[Tensor, "batch n dim"]) -> Quantized:
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            if not self.training:
                indices = self.nearest(vectors)
                return Quantized(self.lookup(indices), indices, vectors.new_zeros(()))
            threshold = self.threshold(vectors.shape[:-1].numel() * num_processes())
            self._codebook.threshold_ema_dead_code = self._codebook.reset_cluster_size = threshold
            features, indices, commitment = super().forward(vectors)
            return Quantized(features, indices, commitment.reshape(()))

    def threshold(self, num_vectors: int) -> float:
        """Hits per step below which a code is dead, when a step brings `num_vectors`.

        The published threshold is for the published batches; with a much smaller one, every code would fall below it.
        """
        return self.published_threshold * min(1.0, num_vectors / self.published_vectors)

    def nearest(self, vectors: Float[Tensor, "*batch dim"]) -> Int64[Tensor, "*batch"]:
        """Index of the code at the smallest Euclidean distance."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        # The square of the vector itself is the same for all codes.
        distances = torch.addmm(self.codebook.square().sum(dim=-1), flat, self.codebook.mT, alpha=-2)
        return distances.argmin(dim=-1).view(vectors.shape[:-1])

    def lookup(self, indices: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """The codes of indices."""
        return self.codebook[indices]


def num_processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
