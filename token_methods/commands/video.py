"""A video file from pictures that arrive one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor


def write_video(frames: Iterable[Float[Tensor, "height width 3"]], path: Path, frames_per_second: int, total: int | None = None) -> None:
    """Write H.264 (yuv420p) under a temporary name, then rename; height and width must be even.

    Raises:
        OSError: the folder cannot be written or is full; no file is left behind.
    """
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    writer = None
    try:
        for frame in track(frames, description="Rendering video", total=total, transient=True, console=CONSOLE):
            pixels = frame.detach().clamp(0, 1).mul(255).round().byte().cpu().numpy()
            if writer is None:
                size = (pixels.shape[1], pixels.shape[0])
                writer = imageio_ffmpeg.write_frames(
                    str(unfinished), size, fps=frames_per_second, codec="libx264", quality=8, macro_block_size=2, ffmpeg_log_level="error"
                )
                writer.send(None)
            writer.send(pixels.copy(order="C"))
        if writer is not None:
            writer.close()
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}): name another folder or make room") from error
    finally:
        if writer is not None:
            writer.close()
        unfinished.unlink(missing_ok=True)
