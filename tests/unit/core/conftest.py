"""A message as a callback gets it, and what it told its worker."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from support.handles import RecordingHandle

from workerkit import MessageAdapter, Properties
from workerkit.message import Incoming
from workerkit.payload import body_decoder
from workerkit.properties import encode
from workerkit.settlement import Outcome

settings.register_profile("unit", deadline=None, max_examples=50)  # a loaded machine is slow, not wrong
settings.load_profile("unit")

MakeMessage = Callable[..., MessageAdapter]


@pytest.fixture
def sent() -> list[Outcome]:
    """What went over the wire."""
    return []


@pytest.fixture
def handle(sent: list[Outcome]) -> RecordingHandle:
    """What the messages report to."""
    return RecordingHandle(sent)


@pytest.fixture
def make_message(handle: RecordingHandle) -> MakeMessage:
    def make(
        body: bytes = b"{}", *, payload_type: object = None, raw: bytes | None = None, **properties
    ) -> MessageAdapter:
        incoming = Incoming(
            queue="jobs",
            exchange="images",
            routing_key="uploaded.png",
            redelivered=True,
            attempt=2,
            raw_properties=encode(Properties(**properties)) if raw is None else raw,
            body=body,
        )
        return MessageAdapter(incoming, handle, body_decoder(payload_type))

    return make


@pytest.fixture
def message(make_message: MakeMessage) -> MessageAdapter:
    return make_message()
