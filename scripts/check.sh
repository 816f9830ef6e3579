#!/usr/bin/env bash
# Every check there is, cheapest first. Ends at the first kind that fails; the last line is pytest's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

ruff check
ruff format --check
mypy

# One process, so that the tests share one broker, in the order in which a failure is quickest to understand.
suites=()
for suite in tests/unit tests/contract tests/integration tests/faults tests/e2e cookbook; do
    if [ -d "$suite" ]; then suites+=("$suite"); fi
done
exec pytest --durations=10 "$@" "${suites[@]}"
