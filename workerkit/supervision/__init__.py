"""Supervisor keeps the workers alive: its files, made from the YAML, and what it says about its processes."""

from workerkit.supervision.control import Instance, SupervisorControl
from workerkit.supervision.files import differences, write
from workerkit.supervision.generate import render, socket_path

__all__ = ["Instance", "SupervisorControl", "differences", "render", "socket_path", "write"]
