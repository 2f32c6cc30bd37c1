"""What is raised when the user's data cannot be used: one sentence that says what, where and how to put it right."""

from __future__ import annotations


class SceneError(ValueError):
    """A scene that cannot be used. Training names it once and skips it; everything else stops."""


class ImageError(SceneError):
    """An image or mask file that cannot be used."""
