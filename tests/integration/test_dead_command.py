"""``workerkit dead`` shows why messages died, brings them back and never loses one on the way."""

import asyncio
import json
import re
import signal

import pytest
from command_project import Client, Project, unique

from workerkit.brokers.rabbitmq import browse
from workerkit.brokers.rabbitmq.amqp import Connection

pytestmark = pytest.mark.integration

MANY = 40_000
"""Messages whose replay takes seconds, so that there is a middle of it."""


@pytest.fixture
def project(tmp_path, rabbitmq):
    return Project(tmp_path, rabbitmq.url)


@pytest.fixture
def client(rabbitmq):
    client = Client(rabbitmq.url)
    yield client
    client.close()


@pytest.fixture
def queue(client):
    """A queue with three dead letters of two reasons, ids a, b, c."""
    name = unique("dead")
    client.declare(name, queue_type="quorum")
    client.declare(f"{name}.dead", queue_type="quorum", delivery_limit=1_000_000)
    client.dead_letter(name, '{"n": 1}', "a")
    client.dead_letter(name, '{"n": 2}', "b", reason="timeout")
    client.dead_letter(name, '{"n": 3}', "c")
    client.wait_ready(f"{name}.dead", 3)
    return name


def ids(project, queue):
    return [letter["message_id"] for letter in project.json("dead", "list", queue)["messages"]]


def test_list_says_what_died_of_what_and_leaves_it_there(project, client, queue):
    """A row per dead letter and the counts by reason; however often one looks, all stay, in their order."""
    for name in (queue, f"{queue}.dead"):
        ended = project.run("dead", "list", name)
        assert ended.code == 0
        lines = [line.split("  ") for line in ended.out.splitlines()]
        assert [[cell.strip() for cell in line if cell] for line in lines[1:3]] == [
            ["1", "a", "exception", "builtins.ValueError: no such image", "5", "2026-01-02T03:04:05.678Z", "8B"],
            ["2", "b", "timeout", "builtins.ValueError: no such image", "5", "2026-01-02T03:04:05.678Z", "8B"],
        ]
        assert lines[-1] == ["3 of 3 dead letters: exception 2, timeout 1"]
        client.wait_ready(f"{queue}.dead", 3)
    assert ids(project, queue) == ["a", "b", "c"]


def test_list_reads_no_more_than_its_limit(project, queue):
    """--limit bounds what is taken out to be looked at; the total is that of the queue."""
    ended = project.run("dead", "list", queue, "--limit", "2")
    assert ended.out.splitlines()[-1] == "2 of 3 dead letters: exception 1, timeout 1"


def test_a_message_that_rabbitmq_dead_lettered_shows_its_reason(project, client):
    """Without headers of ours the reason, the queue and the time are those of x-death."""
    name = unique("expired")
    client.declare(f"{name}.dead", queue_type="quorum")
    client.declare(name, message_ttl=1, dead_letter_exchange="", dead_letter_routing_key=f"{name}.dead")
    client.publish(name, "x", message_id="e")
    client.wait_ready(f"{name}.dead", 1)
    [letter] = project.json("dead", "list", name)["messages"]
    assert (letter["reason"], letter["attempt"]) == ("expired", None)
    assert letter["message"] == f"dead-lettered by RabbitMQ from queue '{name}'"
    assert letter["failed_at"].endswith("Z")


def test_show_tells_the_whole_story_of_one(project, client, queue):
    """By number or by id: properties, headers, the body made readable, the traceback."""
    by_number = project.run("dead", "show", queue, "2")
    client.wait_ready(f"{queue}.dead", 3)
    assert by_number.code == 0
    assert "reason: timeout" in by_number.out
    assert "  tenant: acme" in by_number.out
    assert 'body:\n{\n  "n": 2\n}\n' in by_number.out
    assert by_number.out.endswith("traceback:\nTraceback (most recent call last):\n  boom\n")
    by_id = project.json("dead", "show", queue, "--id", "b")
    assert (by_id["number"], by_id["body"], by_id["body_encoding"]) == (2, '{"n": 2}', "utf-8")
    assert by_id["traceback"] == "Traceback (most recent call last):\n  boom"


@pytest.mark.parametrize(("args", "code"), [(["9"], 65), (["--id", "z"], 65), ([], 64)])
def test_show_of_what_is_not_there_is_an_error(project, queue, args, code):
    """A number or an id that does not exist is bad data; giving neither is a usage error."""
    assert project.run("dead", "show", queue, *args).code == code


def test_bytes_of_a_dead_letter_are_shown_harmlessly(project, client, queue):
    """Bodies that are no text come as base64, and no message can send commands to the terminal."""
    client.dead_letter(queue, b"\xff\x00", "bin")
    client.dead_letter(queue, "plain \x1b[31mred", "esc", **{"workerkit-message": "\x1b]0;owned\x07[bold]x"})
    client.wait_ready(f"{queue}.dead", 5)
    assert project.json("dead", "show", queue, "4")["body"] == "/wA="
    client.wait_ready(f"{queue}.dead", 5)
    listed, shown = project.run("dead", "list", queue), project.run("dead", "show", queue, "5")
    assert "\x1b" not in listed.out + shown.out
    assert "\\x1b]0;owned\\x07[bold]x" in listed.out
    assert "plain \\x1b[31mred" in shown.out


def test_replay_brings_all_back_as_first_attempts(project, client, queue):
    """Body, id and the publisher's headers are kept; our story and RabbitMQ's counters are gone."""
    ended = project.run("dead", "replay", queue)
    assert (ended.code, ended.out) == (0, "replayed 3, left 0\n")
    messages = client.take(queue, 3)
    assert [body for _, body in messages] == [b'{"n": 1}', b'{"n": 2}', b'{"n": 3}']
    assert [properties.message_id for properties, _ in messages] == ["a", "b", "c"]
    for properties, _ in messages:
        kept = {key for key in properties.headers if key != "x-delivery-count"}
        assert kept == {"tenant", "workerkit-routing-key", "workerkit-replayed-at"}
        assert properties.delivery_mode == 2
    client.wait_ready(f"{queue}.dead", 0)


@pytest.mark.parametrize(
    ("selection", "left"),
    [(["--id", "c", "--id", "a"], ["b"]), (["--reason", "timeout"], ["a", "c"]), (["--limit", "2"], ["c"])],
    ids=["id", "reason", "limit"],
)
def test_replay_takes_only_what_is_selected(project, client, queue, selection, left):
    """The others stay where they are; a dry run says the same and moves nothing."""
    moved = 3 - len(left)
    dry = project.run("dead", "replay", queue, *selection, "--dry-run")
    plural = "" if moved == 1 else "s"
    assert dry.out.splitlines()[-1] == f"would replay {moved} dead letter{plural} to {queue}, leave {len(left)}"
    client.wait_ready(f"{queue}.dead", 3)
    ended = project.run("dead", "replay", queue, *selection)
    assert (ended.code, ended.out) == (0, f"replayed {moved}, left {len(left)}\n")
    client.wait_ready(f"{queue}.dead", len(left))
    client.wait_ready(queue, moved)
    assert ids(project, queue) == left


def test_replay_of_an_id_that_is_not_there_is_bad_data(project, queue):
    """What was found is replayed, what was not is named: exit 65."""
    ended = project.run("dead", "replay", queue, "--id", "a", "--id", "z")
    assert (ended.code, ended.out) == (65, "replayed 1, left 2\n")
    assert "has the id 'z'" in ended.err


def test_replay_into_another_queue_ends_even_when_it_is_the_same_one(project, client, queue):
    """--to names the target; what comes back while replaying is not replayed again."""
    ended = project.run("dead", "replay", queue, "--to", f"{queue}.dead")
    assert (ended.code, ended.out) == (0, "replayed 3, left 0\n")
    client.wait_ready(f"{queue}.dead", 3)


def test_replay_to_a_missing_queue_touches_nothing(project, client, queue):
    """Exit 65 before the first message is moved."""
    ended = project.run("dead", "replay", queue, "--to", "no-such-queue")
    assert (ended.code, ended.out) == (65, "")
    assert "queue 'no-such-queue' does not exist" in ended.err
    client.wait_ready(f"{queue}.dead", 3)


def test_replay_stops_at_the_first_refusal_and_keeps_the_rest(project, client, queue):
    """A dead letter leaves its queue only when its copy is confirmed: a full target costs nothing."""
    full = unique("full")
    client.declare(full, queue_type="classic", max_length=1, overflow="reject-publish")
    ended = project.run("dead", "replay", queue, "--to", full)
    assert (ended.code, ended.out) == (75, "replayed 1, left 2\n")
    assert ended.err.startswith("workerkit: number 2: the broker refused")
    client.wait_ready(f"{queue}.dead", 2)
    client.wait_ready(full, 1)


@pytest.mark.alone
def test_nothing_is_lost_when_replay_is_killed_in_the_middle(project, client, queue):
    """SIGKILL between publish and acknowledgement: every message is in at least one of the two queues."""
    sent = {b'{"n": 1}', b'{"n": 2}', b'{"n": 3}', *(b"%d" % number for number in range(MANY))}
    lines = b"".join(b"%d\n" % number for number in range(MANY))
    assert project.run("publish", f"{queue}.dead", "--lines", stdin=lines).code == 0
    client.wait_ready(f"{queue}.dead", MANY + 3)
    with project.started("dead", "replay", queue) as process:
        while client.ready(queue) < 10:
            assert process.poll() is None
        process.kill()
    assert client.ready(queue) < MANY + 3, "it was not killed in the middle"
    assert client.drain(queue, f"{queue}.dead", until=len(sent)) == sent


@pytest.mark.alone
def test_an_interrupted_replay_waits_for_what_is_on_its_way_and_counts_it(project, client, queue):
    """Ctrl-C: each message is in exactly one of the two queues, the numbers are those of the broker, exit 130."""
    lines = b"".join(b"%d\n" % number for number in range(MANY))
    assert project.run("publish", f"{queue}.dead", "--lines", stdin=lines).code == 0
    client.wait_ready(f"{queue}.dead", MANY + 3)
    with project.started("dead", "replay", queue) as process:
        while client.ready(queue) < 10:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stdout.read().decode()
    numbers = re.fullmatch(r"interrupted: replayed (\d+), left (\d+)\n", said)
    assert numbers, said
    done, left = map(int, numbers.groups())
    assert (process.returncode, done + left) == (130, MANY + 3)
    client.wait_ready(queue, done)
    client.wait_ready(f"{queue}.dead", left)


def test_drop_deletes_what_is_selected_after_asking(project, client, queue):
    """Without a terminal only --yes is a yes; a dry run and a no delete nothing."""
    selection = ("dead", "drop", queue, "--reason", "exception")
    assert project.run(*selection, stdin=b"y\n").code == 64
    dry = project.run(*selection, "--dry-run")
    assert dry.out.splitlines()[-1] == "would drop 2 dead letters, leave 1"
    question = f"Delete 2 dead letters of 3 in {queue}.dead for good? [y/N]"
    code, _ = project.answer(*selection, question=question, reply="n")
    client.wait_ready(f"{queue}.dead", 3)
    assert code == 1
    ended = project.run(*selection, "--yes")
    assert (ended.code, ended.out) == (0, "dropped 2, left 1\n")
    assert client.bodies(f"{queue}.dead", 1) == [b'{"n": 2}']


def test_drop_deletes_nothing_that_was_not_asked_about(project, client, queue):
    """What dies while the question waits fits the selection too, and stays."""

    def die() -> None:
        client.wait_ready(f"{queue}.dead", 3)
        client.dead_letter(queue, "new", "d")
        client.wait_ready(f"{queue}.dead", 4)

    code, shown = project.answer("dead", "drop", queue, question="for good? [y/N]", reply="y", meanwhile=die)
    assert (code, "dropped 3, left 1" in shown) == (0, True)
    assert client.bodies(f"{queue}.dead", 1) == [b"new"]


def test_any_number_of_messages_can_be_passed_over(client, queue, rabbitmq, monkeypatch):
    """What is held fills a subscription; the next one goes on behind it, and everything goes back in its order."""
    monkeypatch.setattr(browse, "PREFETCH", 2)
    dead = f"{queue}.dead"
    for number in range(4, 8):
        client.dead_letter(queue, json.dumps({"n": number}), str(number))
    client.wait_ready(dead, 7)

    async def look() -> list[bytes]:
        connection = await Connection.open(rabbitmq.url, name="test", heartbeat=10, attempt_timeout=10)
        async with browse.Browser(connection, dead, 100) as browser:
            seen = []
            while delivery := await browser.next():
                seen.append(delivery.body)
                if len(seen) == 6:
                    browser.ack(delivery)
        await connection.close()
        return seen

    expected = [json.dumps({"n": number}).encode() for number in range(1, 8)]
    assert asyncio.run(look()) == expected
    assert client.bodies(dead, 6) == expected[:5] + expected[6:]
