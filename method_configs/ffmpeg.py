"""An `ffmpeg` for `ns-render`, which looks for that name on PATH and stops without it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def ensure_ffmpeg_on_path() -> None:
    """Where no `ffmpeg` is on PATH, append a folder with a link of that name to imageio-ffmpeg's static binary.

    Only this process and its children see the longer PATH. Silent where it cannot be done (a read-only home, no
    binary for this platform): `ns-render` then says itself that ffmpeg is missing.
    """
    if shutil.which("ffmpeg") is not None:
        return
    with contextlib.suppress(Exception):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        link = cache / "nerfstudio-tokens" / "bin" / "ffmpeg"
        if not link.is_file():  # also where it leads to a binary that was removed since
            import imageio_ffmpeg  # here, because every ns-* command imports this module and few need what follows

            link_in_one_step(link, Path(imageio_ffmpeg.get_ffmpeg_exe()))
        os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH"), str(link.parent)]))


def link_in_one_step(link: Path, target: Path) -> None:
    """Make or replace a symbolic link such that another process sees the old one or the new one, never none."""
    link.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=link.parent) as scratch:
        fresh = Path(scratch) / link.name
        fresh.symlink_to(target)
        fresh.replace(link)
