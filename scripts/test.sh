#!/usr/bin/env bash
# Tests, lint, types and import contracts: bash scripts/test.sh [pytest options]
# Every check runs, also after one that failed; the exit status is 0 when all passed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

failed=()
check() {
    local name="$1"
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    local start=$SECONDS
    "$@" || failed+=("$name")
    printf '== %s took %d s\n' "$name" $((SECONDS - start))
}

# One thread per test process: with more, the small tensors of the tests wait for each other.
export OMP_NUM_THREADS=1
check lint ruff check .
check format ruff format --check .
check types mypy
check "import contracts" lint-imports
check tests python -m pytest -n 2 --dist loadfile "$@"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
printf '\nall checks passed\n'
