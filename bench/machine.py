"""What the benchmark runs on: hardware, system, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from bench.clients import C_CONSUMER, PEERS
from workerkit.testing.rabbitmq import PrivateRabbitmq


def facts(node: PrivateRabbitmq) -> dict[str, str]:
    """Everything that the figures depend on, in words."""
    erlang = node.ctl("--quiet", "eval", "erlang:system_info(otp_release).").strip().strip('"')
    return {
        "processor": f"{_field('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": f"{_field('/etc/os-release', 'PRETTY_NAME', '=')}, Linux {platform.release()}",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "RabbitMQ": f"{node.version} on Erlang/OTP {erlang}",
        "Python": platform.python_version(),
        "workerkit": f"{version('workerkit')} with pika {version('pika')}",
        **_peers(),
    }


def _peers() -> dict[str, str]:
    """As ``bench/peers/*.txt`` pin them."""
    found = {}
    for requirements in sorted(PEERS.glob("*.txt")):
        pins = requirements.read_text("utf-8").split()
        found[f"environment {requirements.stem}"] = ", ".join(pin.replace("==", " ") for pin in pins)
    if C_CONSUMER.exists():
        compiler = _output("cc", "--version").partition("\n")[0]
        found["librabbitmq"] = f"{_output(str(C_CONSUMER), 'version').strip()}, compiled by {compiler}"
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


def _field(path: str, name: str, separator: str = ":") -> str:
    """The value of a line ``name: value``."""
    found = re.search(rf"^{name}\s*{separator}\s*(.*)$", Path(path).read_text("utf-8"), re.MULTILINE)
    return found[1].strip('"') if found else "unknown"
