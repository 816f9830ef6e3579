"""``python -m workerkit`` is ``workerkit``."""

from workerkit.cli.main import main

main()
