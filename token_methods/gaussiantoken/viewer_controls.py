"""What the viewer's control panel offers for looking at tokens."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from nerfstudio.viewer.viewer_elements import ViewerNumber, ViewerSlider


def kept_slider(num_tokens: int) -> ViewerSlider[int]:
    """How many tokens are decoded."""
    return ViewerSlider(
        "Tokens kept", num_tokens, 1, max(num_tokens, 2), 1, hint="Decode only so many tokens: those that add most to the map"
    )


def token_number(num_tokens: int) -> ViewerNumber[int]:
    """Which token the layer `token` is about."""
    return ViewerNumber("Token", 0, hint=f"0 to {num_tokens - 1}: the output type 'token' shows what this one changes")


if TYPE_CHECKING:
    unscanned = property
else:

    class unscanned(cached_property):
        """A property that the viewer does not read. It reads all public ones when it opens, except cached ones; this one keeps nothing."""

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            return self if instance is None else self.func(instance)
