"""From body and content type to data, and never to running code."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import msgspec
import pytest

from workerkit import UndecodableBody
from workerkit.payload import body_decoder


class Job(msgspec.Struct):
    path: str
    width: int = 100


@dataclass
class Point:
    x: int


class Options(TypedDict):
    fast: bool


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"a": 1}', None, {"a": 1}),
        (b'{"a": 1}', "application/json", {"a": 1}),
        (b"[1]", "Application/JSON; charset=utf-8", [1]),
        (b"1", "application/cloudevents+json", 1),
        ("grün".encode(), "text/plain", "grün"),
        ("grün".encode("latin-1"), 'text/plain; charset="latin-1"', "grün"),
        (b"\x00\xff", "application/octet-stream", b"\x00\xff"),
        (b"", "text/plain", ""),
    ],
)
def test_the_content_type_says_what_the_body_is(body: bytes, content_type: str | None, expected: object) -> None:
    """JSON when nothing is said."""
    assert body_decoder()(body, content_type, None) == expected


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (b"", None, None),
        (b"{", None, None),
        (b"\xff", None, None),
        (b"[" * 100_000, None, None),
        (b"\xff", "text/plain", None),
        (b"x", "text/plain; charset=klingon", None),
        (b"x", "image/png", None),
        (b"{}", "application/json", "gzip"),
    ],
)
def test_what_does_not_fit_is_undecodable(body: bytes, content_type: str | None, encoding: str | None) -> None:
    """One error for all of it, so that such a message goes to the dead letters without retries."""
    with pytest.raises(UndecodableBody):
        body_decoder()(body, content_type, encoding)


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "UTF8", "identity"])
def test_encodings_that_change_nothing_are_accepted(encoding: str | None) -> None:
    """kombu and others write the charset into content_encoding."""
    assert body_decoder()(b"1", None, encoding) == 1


@pytest.mark.parametrize(
    "content_type", ["application/x-python-serialize", "application/pickle", "application/x-pickle"]
)
def test_a_pickle_is_never_loaded(content_type: str, tmp_path: Path) -> None:
    """A queue that anybody can write to must not run code in the worker."""

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    with pytest.raises(UndecodableBody, match=content_type):
        body_decoder()(pickle.dumps(Bomb()), content_type, None)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("payload_type", "body", "expected"),
    [
        (Job, b'{"path": "a.png"}', Job("a.png")),
        (Point, b'{"x": 1}', Point(1)),
        (Options, b'{"fast": true}', {"fast": True}),
        (dict[str, int], b'{"a": 1}', {"a": 1}),
    ],
)
def test_a_payload_type_makes_data_of_that_type(payload_type: object, body: bytes, expected: object) -> None:
    """Structs, dataclasses, typed dicts and generics alike."""
    assert body_decoder(payload_type)(body, None, None) == expected


def test_data_of_another_type_names_the_place() -> None:
    """The reason in the dead letter says which key was wrong."""
    with pytest.raises(UndecodableBody, match=r"not of the payload type: .*`\$\.width`"):
        body_decoder(Job)(b'{"path": "a", "width": "wide"}', None, None)
