"""What nerfstudio loads to list our methods. Looking up a name here never raises.

nerfstudio does not catch exceptions of entry points: one that escapes would break every `ns-*` command of the user,
also for methods that are not ours. A method that cannot be offered is therefore `None` (nerfstudio skips it), and one
line says why.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module

from method_configs.ffmpeg import ensure_ffmpeg_on_path

MODULES = {
    "tokengs": "method_configs.tokengs",
    "gaussiantoken": "method_configs.gaussiantoken",
    "vqgan": "method_configs.gaussiantoken",
}
"""The module that defines the methods whose identifiers begin with the key."""

ensure_ffmpeg_on_path()


def __getattr__(name: str) -> object:
    """A method by its identifier: `tokengs_2view` for the method `tokengs-2view`."""
    family = name.partition("_")[0]
    if family not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(MODULES[family]), name)
    except Exception as error:
        say_once(f"the {family} methods are disabled: {type(error).__name__}: {error}")
        return None


@cache
def say_once(message: str) -> None:
    """One line on stderr for one cause, however many methods it disables."""
    remedy = "`pip check` names what an installation lacks; install nerfstudio-tokens again to mend it"
    print(f"nerfstudio-tokens: {' '.join(message.split())} ({remedy})", file=sys.stderr)
