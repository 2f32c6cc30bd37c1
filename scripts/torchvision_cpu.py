"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Package indices commonly offer torchvision as a CUDA build only. Beside a CPU torch its compiled operators cannot be
loaded, and `import torchvision` then fails with "operator torchvision::nms does not exist", because two operators
that are to be described were never declared. nerfstudio imports torchvision before it looks for plugins, so every ns-*
command fails with it.

`python scripts/torchvision_cpu.py` checks whether the environment suffers from this, and only then copies this very
file into site-packages with a `.pth` line that loads it when the interpreter starts. There it waits for the first
`import torchvision`, declares the two operators and is gone. torchvision's transforms, models and `utils` then work;
`torchvision.ops.nms` and `torchvision.io`, which nerfstudio does not use, still do not. A no-op wherever torchvision's
own operators load. To remove it, delete `nerfstudio_tokens_torchvision_cpu.py` and `.pth` from site-packages.
"""

from __future__ import annotations

import sys

INSTALLED_NAME = "nerfstudio_tokens_torchvision_cpu"


class TorchvisionFinder:
    """Import hook: declares the operators just before torchvision is imported, then lets the import go on as usual."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_operators()


def declare_missing_operators() -> None:
    """Declare `torchvision::nms` and `qnms` if torch has no CUDA and torchvision's compiled operators do not load."""
    # This module is loaded at every start of the interpreter: nothing but `sys` may be imported before it is needed.
    import ctypes
    import importlib.util
    from pathlib import Path

    try:
        import torch

        spec = importlib.util.find_spec("torchvision")
    except ImportError:
        return
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return
    try:
        ctypes.CDLL(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        TorchvisionFinder.library = library  # type: ignore[attr-defined]  # the declarations live as long as this object


def torchvision_error() -> str:
    """What `import torchvision` says in a fresh interpreter; empty if it works."""
    import subprocess

    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stderr.strip()


def install() -> int:
    """Install the hook into this interpreter's site-packages if it is needed; the exit status is 0 when torchvision imports."""
    import shutil
    import sysconfig
    from pathlib import Path

    error = torchvision_error()
    if "operator torchvision::nms does not exist" in error:
        site_packages = Path(sysconfig.get_path("purelib"))
        shutil.copyfile(__file__, site_packages / f"{INSTALLED_NAME}.py")
        (site_packages / f"{INSTALLED_NAME}.pth").write_text(f"import {INSTALLED_NAME}\n", encoding="utf-8")
        print(f"torchvision is a CUDA build beside a CPU torch: installed {site_packages / INSTALLED_NAME}.py")
        error = torchvision_error()
    if error:
        print(
            f"import torchvision fails:\n{error}\nInstall the pair that belongs together in one command: see docs/install.md",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(install())
if __name__ == INSTALLED_NAME:
    sys.meta_path.insert(0, TorchvisionFinder())
