"""Helpers of the test suite: real projects, real worker processes, a direct look at the broker."""
