# `make` lists the targets. Each is a few scripts in a row; the work is done in scripts/.

.DEFAULT_GOAL := help
.PHONY: help setup test lint unit demo bench clean
.NOTPARALLEL:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Prepare .venv, and nothing else
	@scripts/setup.sh

test: setup ## Run every check: lint, then all tests against real RabbitMQ nodes
	@scripts/rabbitmq.sh
	@scripts/check.sh

lint: setup ## Check style and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

unit: setup ## Run the tests that need nothing but Python
	@.venv/bin/pytest tests/unit

demo: setup ## Watch workers lose nothing while they are killed (AMQP_URL=... uses that broker)
	@test -n "$$AMQP_URL" || scripts/rabbitmq.sh
	@.venv/bin/python scripts/demo.py

bench: setup ## Measure workerkit beside other clients, 35 minutes (ARGS=--quick, ARGS=--help)
	@scripts/bench.sh $(ARGS)

clean: ## Remove caches and build output; .venv and bench/.venvs stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -path ./.venv -prune -o -path ./bench/.venvs -prune -o -type d -name __pycache__ -exec rm -rf {} +
