#!/usr/bin/env bash
# Everything from a fresh checkout to a trained model, its figures and a video, on CPU or GPU: bash scripts/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
exec python scripts/demo.py "$@"
