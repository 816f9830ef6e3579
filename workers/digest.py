"""Computes checksums of files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from workerkit import MessageAdapter, RejectMessage, WorkerTask
from workers.misbehaviour import MayMisbehave, misbehave_if_asked
from workers.results import ResultFolder


@dataclass(kw_only=True)
class DigestJob(MayMisbehave):
    """The body of a message."""

    path: str


class DigestWorker(WorkerTask):
    """SHA-256, size, line and word count of one file.

    Body:      JSON {"path": str}; a relative path starts at the worker's working directory, the project's folder.
               The message_id names the result.
    Done:      ``$RESULTS_FOLDER/MESSAGE_ID.json`` (default ``var/digests``) holds
               {"path": str, "sha256": str, "bytes": int, "lines": int, "words": int, "attempt": int}.
    Rejected:  there is no such file, or the message_id is missing or cannot name a file.
    Retried:   anything else that goes wrong, by the policy in ``config/workerkit.yaml``.
    """

    payload_type = DigestJob  # a body that is not of this shape becomes a dead letter, untried

    def initialize(self) -> None:
        super().initialize()
        self.logger.set_main_logger("digest")
        self.results = ResultFolder(Path(os.environ.get("RESULTS_FOLDER", "var/digests")))

    def callback(self, message: MessageAdapter) -> None:
        job: DigestJob = message.data
        try:
            content = Path(job.path).read_bytes()
        except FileNotFoundError:
            raise RejectMessage(f"no such file: {job.path}") from None
        digest = hashlib.sha256(content).hexdigest()
        misbehave_if_asked(job, message.attempt)
        self.results.write(
            message.message_id,
            {
                "path": job.path,
                "sha256": digest,
                "bytes": len(content),
                "lines": content.count(b"\n"),
                "words": len(content.split()),
                "attempt": message.attempt,
            },
        )
        self.logger.debug("digest.written", path=job.path, sha256=digest)
        message.ack()
