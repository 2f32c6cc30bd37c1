#!/usr/bin/env bash
# Makes the Python environment of this project; demo.sh and test.sh source this file and go on in that environment.
#
# Uses the virtual environment that is active, else makes .venv beside pyproject.toml. Safe to repeat: when nothing
# changed since the last time it is done at once, and an interrupted installation is taken up again.
# pip's own settings apply, so another package index is given the usual way (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL).
# Where a CPU build of torch is visible to pip and there is no GPU, the CPU build is installed (docs/install.md).
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
stop() { printf '[setup] %s\n' "$@" >&2; exit 1; }

suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3 python; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    stop "Python 3.11 or 3.12 is needed, and neither is on PATH (found: $(python3 --version 2>&1 || true))." \
        "On Debian 12: sudo apt-get install -y python3 python3-venv python3-dev"
}

enter_environment() {
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        suits python || stop "The active environment $VIRTUAL_ENV has $(python --version 2>&1); Python 3.11 or 3.12 is needed." \
            "Type 'deactivate' to let this script make its own."
        return
    fi
    if ! suits "$project/.venv/bin/python" || ! "$project/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python="$(find_python)"
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear "$project/.venv" || stop "On Debian, Python's venv is a package of its own: sudo apt-get install -y python3-venv"
    fi
    # shellcheck disable=SC1091
    . "$project/.venv/bin/activate"
}

# pyliblzfse, which viser wants for one file format, is a few C files and has no wheels. Where the machine has no
# compiler, one that comes as a Python package builds it and is removed again.
build_without_compiler() {
    if command -v cc >/dev/null || python -c 'import liblzfse' >/dev/null 2>&1; then
        return
    fi
    say "no C compiler found: borrowing one that comes as a Python package"
    python -m pip install ziglang
    local zig
    zig="$(python -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))')"
    CC="$zig cc" LDSHARED="$zig cc -shared" python -m pip install --use-pep517 --no-deps pyliblzfse
    python -m pip uninstall --yes ziglang
}

require_python_headers() {
    python -c 'import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
        stop "A dependency is compiled during installation and needs Python's headers; on Debian: sudo apt-get install -y python3-dev"
}

# An environment that was made by hand keeps its torch; ours gets the pinned pair. torchvision always goes along in the
# same command: each works with one torch only, and pip, when asked for one alone, replaces the other.
extras() {
    if [ "$VIRTUAL_ENV" != "$project/.venv" ] && python - 2>/dev/null <<'PYTHON'
from importlib.metadata import version

version("torchvision")
assert tuple(map(int, version("torch").split(".")[:2])) >= (2, 4)
PYTHON
    then
        echo dev
    else
        echo dev,pinned
    fi
}

check_torch_suits_machine() {
    if nvidia-smi >/dev/null 2>&1 && [ "$(python -c 'import torch; print(torch.version.cuda)')" = None ]; then
        stop "There is a GPU, but torch is a CPU build. Hide that build from pip (see 'pip config list'), remove .venv, try again."
    fi
}

# Checked by name here, because ns-export otherwise dies while it imports open3d and pymeshlab.
name_missing_libraries() {
    python - <<'PYTHON'
import ctypes

packages = {"libGL.so.1": "libgl1", "libX11.so.6": "libx11-6", "libgomp.so.1": "libgomp1", "libudev.so.1": "libudev1"}
missing = []
for library, package in packages.items():
    try:
        ctypes.CDLL(library)
    except OSError:
        missing.append(package)
if missing:
    print(f"[setup] ns-export needs system libraries that are absent; type: sudo apt-get install -y {' '.join(missing)}")
PYTHON
}

enter_environment
stamp="$VIRTUAL_ENV/.nerfstudio-tokens"
state="$project $(cat "$project/pyproject.toml" "$project/scripts/setup.sh" "$project/scripts/torchvision_cpu.py" | sha256sum | cut -d ' ' -f 1)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    say "installing into $VIRTUAL_ENV: some minutes and 4 GB, 8 GB with CUDA"
    require_python_headers
    build_without_compiler
    python -m pip install -e "$project[$(extras)]"
    check_torch_suits_machine
    python "$project/scripts/torchvision_cpu.py"
    echo "$state" >"$stamp"
    say "installed"
fi
name_missing_libraries
