"""A private node of a newer RabbitMQ than the machine's, in a small Debian that ``scripts/rabbitmq-next.sh`` makes."""

from __future__ import annotations

import os
from pathlib import Path

from workerkit.errors import ConfigurationError
from workerkit.testing.rabbitmq import PrivateRabbitmq, RabbitmqMissing

# Where a node that runs in a chroot sees its folder.
_FOLDER_INSIDE = Path("/mnt")

# Runs a command in a chroot. The mounts are made in a mount namespace that ends with the command: there is nothing to
# unmount, and no other process, such as one that removes the folder, can walk through them.
_SCRIPT = """
    chroot=$1 folder=$2
    shift 2
    mount -t proc proc "$chroot/proc"
    mount --rbind /dev "$chroot/dev"
    mount --bind "$folder" "$chroot/mnt"
    exec chroot "$chroot" "$@"
"""


class ChrootRabbitmq(PrivateRabbitmq):
    """One private node of the RabbitMQ that is installed in a chroot. Needs root.

    Args:
        chroot: the root folder of a Debian system.
        root: as for ``PrivateRabbitmq``.
    """

    def __init__(self, chroot: Path, *, root: Path | None = None) -> None:
        super().__init__(root=root)
        self._system = chroot.resolve()

    @property
    def chroot(self) -> Path:
        """The system whose RabbitMQ this is."""
        return self._system

    def _check_installed(self) -> None:
        if os.geteuid() != 0:
            raise ConfigurationError("a RabbitMQ in a chroot can only be started by root")
        try:
            super()._check_installed()
        except RabbitmqMissing:
            raise RabbitmqMissing(f"no RabbitMQ is installed in {self._system}: run scripts/rabbitmq-next.sh") from None

    def _command(self, program: Path, *args: str) -> list[str]:
        enter = ["/bin/sh", "-euc", _SCRIPT, "sh", str(self._system), str(self._folder)]
        return ["/usr/bin/unshare", "--mount", "--", *enter, *super()._command(program, *args)]

    def _folder_inside(self) -> Path:
        return _FOLDER_INSIDE


def ordinary_node(*, root: Path | None = None) -> PrivateRabbitmq:
    """The RabbitMQ that the tests run on: this machine's, or that of the Debian suite in ``WORKERKIT_TEST_SUITE``.

    ``scripts/rabbitmq-next.sh trixie && WORKERKIT_TEST_SUITE=trixie scripts/check.sh`` runs everything on RabbitMQ 4.0.
    """
    suite = os.environ.get("WORKERKIT_TEST_SUITE")
    return ChrootRabbitmq(suite_folder(suite), root=root) if suite else PrivateRabbitmq(root=root)


def suite_folder(suite: str) -> Path:
    """Where ``scripts/rabbitmq-next.sh SUITE`` leaves its Debian."""
    return Path(os.environ.get("WORKERKIT_CACHE", "/var/tmp/workerkit")) / suite
