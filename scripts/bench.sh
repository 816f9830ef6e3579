#!/usr/bin/env bash
# Prepares what the benchmark needs from the system and runs it; the arguments are its own (--help lists them).
# It makes the peers' virtual environments itself, under bench/.venvs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib/apt.sh

source=bench/peers/consumer.c
consumer=bench/.venvs/consumer

compile() {
    mkdir -p "$(dirname "$consumer")"
    cc -O2 -Wall -Wextra -o "$consumer.new" "$source" -lrabbitmq 2>"$consumer.errors" && mv "$consumer.new" "$consumer"
}

# The client in C is left out where it cannot be had; the report then says so.
compile_consumer() {
    if [ "$consumer" -nt "$source" ]; then return; fi
    rm -f "$consumer"
    if compile; then return; fi
    if can_install; then
        echo "bench: installing a C compiler and librabbitmq-dev"
        if apt_install gcc libc6-dev librabbitmq-dev && compile; then return; fi
    fi
    echo "bench: cannot compile $source, so librabbitmq is left out. It needs the Debian packages gcc, libc6-dev and" \
        "librabbitmq-dev, installed as root. What went wrong:" >&2
    cat "$consumer.errors" >&2
}

scripts/rabbitmq.sh
compile_consumer
exec .venv/bin/python -m bench "$@"
