"""Who is to blame for a death, as one function of what is known of it."""

from typing import Any

import pytest

from workerkit.worker.deaths import attribute
from workerkit.worker.page import Phase, Running


def callback(seq: int) -> Running:
    return Running(seq, Phase.CALLBACK, 1)


def shutdown(seq: int) -> Running:
    return Running(seq, Phase.SHUTDOWN, 1)


@pytest.mark.parametrize(
    ("running", "known", "culprits"),
    [
        ([], {}, []),
        ([callback(1)], {}, [1]),
        ([callback(1), callback(2)], {}, [1, 2]),
        ([shutdown(1)], {}, []),
        ([shutdown(1), callback(2)], {}, [2]),
        ([shutdown(1), callback(2), callback(3)], {}, [2, 3]),
        # It has named the one that it died of, or we have ended it for the sake of that: before its shutdown() began,
        # during it, or when it was over.
        ([callback(1), callback(2)], {"named": 2}, [2]),
        ([callback(1), shutdown(2)], {"named": 2}, []),
        ([callback(2)], {"named": 2}, [2]),
        ([callback(1)], {"named": 2}, []),
        ([], {"named": 2}, []),
        # We have ended it at the deadline of a stop.
        ([], {"handing_back": True}, []),
        ([callback(1)], {"handing_back": True}, []),
        ([callback(1), callback(2)], {"handing_back": True}, []),
        ([callback(1), shutdown(2)], {"handing_back": True}, []),
        ([callback(1), shutdown(2)], {"handing_back": True, "named": 2}, []),
        ([callback(1)], {"handing_back": True, "named": 1}, []),
    ],
)
def test_one_is_blamed_when_it_is_known_which(
    running: list[Running], known: dict[str, Any], culprits: list[int]
) -> None:
    """Alone, named, or ended for its own sake; else all that ran are suspects, and at the deadline nobody is."""
    assert attribute(running, **{"named": None, "handing_back": False, **known}) == culprits
