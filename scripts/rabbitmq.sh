#!/usr/bin/env bash
# Makes sure that RabbitMQ is installed. Starts nothing: tests and the demo start private nodes of their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib/apt.sh

server=/usr/lib/rabbitmq/bin/rabbitmq-server # where workerkit/testing/rabbitmq.py looks

if [ -x "$server" ]; then exit 0; fi
if ! can_install; then
    echo "rabbitmq: RabbitMQ is not installed: run \`apt-get install rabbitmq-server\` as root" >&2
    exit 69
fi
echo "rabbitmq: installing rabbitmq-server"
apt_install rabbitmq-server || exit 69
