"""What nerfstudio loads to list our dataparsers. Looking up a name here never raises.

nerfstudio does not catch exceptions of entry points: one that escapes would break every `ns-*` command of the user.
A dataparser that cannot be offered is therefore `None` (nerfstudio skips it), and one line says why.

nerfstudio loads this while its own modules are half imported, so neither this module nor what it imports may touch
`nerfstudio.configs.dataparser_configs`, `nerfstudio.data.datamanagers`, `nerfstudio.pipelines`,
`nerfstudio.engine.trainer` or `nerfstudio.models`.
"""

from __future__ import annotations

import sys
from importlib import import_module

MODULES = {
    "procedural_data": "dataparsers.procedural.parser",
    "dl3dv_data": "dataparsers.dl3dv",
    "cifar_data": "dataparsers.cifar",
    "image_folder_data": "dataparsers.image_folder",
}
"""The module that defines each dataparser specification."""


def __getattr__(name: str) -> object:
    """A dataparser specification by its identifier: `dl3dv_data` for the dataparser `dl3dv-data`."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(MODULES[name]), name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = "`pip check` names what an installation lacks; install nerfstudio-tokens again to mend it"
        print(f"nerfstudio-tokens: the dataparser {name.replace('_', '-')} is disabled: {reason} ({remedy})", file=sys.stderr)
        return None
