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
# These wait for processes most of the time, so three files run at once, each side with a broker of its own. In the order
# in which they stand here, as the longest are among the first: then all sides end together.
pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=5 "$@" -m "not alone" \
    tests/faults tests/e2e tests/integration tests/contract
# Most of these only wait for a clock, so two at a time are undisturbed.
exec pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=5 "$@" -m alone tests/faults tests/integration
