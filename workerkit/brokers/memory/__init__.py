"""A broker in this process: what tests of workers stand on, and ``memory://``."""
