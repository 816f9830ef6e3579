#!/usr/bin/env bash
# Every check there is, cheapest first. Ends at the first kind that fails; the last line is pytest's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

# The first time this takes a minute, of which little is work for the processor: the checks without a broker go on.
scripts/rabbitmq-next.sh &
next=$!

ruff check
ruff format --check
mypy
pytest -n 2 tests/unit

wait "$next"
# These wait for processes most of the time, so two files run at once, each side with a broker of its own.
pytest -n 2 --dist loadfile --durations=5 "$@" -m "not alone" tests/contract tests/integration tests/e2e tests/faults
exec pytest --durations=5 "$@" -m alone tests/faults
