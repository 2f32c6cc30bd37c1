"""Which of the training processes this one is."""

from __future__ import annotations

import torch.distributed as dist


def process_rank() -> tuple[int, int]:
    """(rank, number of processes) over all machines; (0, 1) without data parallelism."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
