"""A video file from pictures that arrive one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from jaxtyping import Float
from rich.progress import track
from torch import Tensor


def write_video(frames: Iterable[Float[Tensor, "height width 3"]], path: Path, frames_per_second: int, total: int | None = None) -> None:
    """Write H.264 (yuv420p) under a temporary name, then rename; odd sizes lose their last row or column."""
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    writer = None
    try:
        for frame in track(frames, description="Rendering video", total=total, transient=True):
            pixels = frame.detach()[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2].mul(255).round().byte().cpu().numpy()
            if writer is None:
                size = (pixels.shape[1], pixels.shape[0])
                writer = imageio_ffmpeg.write_frames(str(temporary), size, fps=frames_per_second, codec="libx264", quality=8, macro_block_size=2)
                writer.send(None)
            writer.send(pixels.copy(order="C"))
    finally:
        if writer is not None:
            writer.close()
    os.replace(temporary, path)
