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
pytest tests/unit

wait "$next"
# One process, so that the tests share one broker, in the order in which a failure is quickest to understand.
exec pytest --durations=10 "$@" tests/contract tests/integration tests/faults tests/e2e
