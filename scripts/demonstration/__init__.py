"""The parts of ``scripts/demo.py``: what is published, the project it runs in, and the accounts at the end."""
