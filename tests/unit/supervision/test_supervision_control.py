"""What SupervisorControl makes of answers, and of the absence of one. A real Supervisor answers it in tests/e2e."""

import socket
import threading
import xmlrpc.client

import pytest

from workerkit.errors import ControlError
from workerkit.supervision import Instance, SupervisorControl, _transport

RUNNING = {
    "name": "thumbnail_00",
    "group": "workers",
    "statename": "RUNNING",
    "pid": 4711,
    "start": 1000,
    "stop": 990,
    "now": 1062,
    "exitstatus": 0,
    "spawnerr": "",
    "description": "pid 4711, uptime 0:01:02",
}


def http_response(body, status="200 OK"):
    return b"HTTP/1.0 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def answer_of(value):
    return http_response(xmlrpc.client.dumps((value,), methodresponse=True).encode())


@pytest.fixture
def answer(project):
    """Return a function that makes a socket give one prepared answer, and returns its control."""
    path = project / "supervisor.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads = []

    def prepare(response):
        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as request:
                length = next(int(line.split()[1]) for line in request if line.lower().startswith(b"content-length"))
                next(line for line in request if line == b"\r\n")
                request.read(length)
                if response is None:
                    connection.recv(1)  # until the other side gives up
                else:
                    connection.sendall(response)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return SupervisorControl(path)

    yield prepare
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    listener.close()


def test_a_running_instance_has_a_pid_and_an_uptime(answer):
    """Uptime is by Supervisor's clock; an exit status of an earlier process is not this one's."""
    [instance] = answer(answer_of([RUNNING])).instances()
    assert instance == Instance(
        name="thumbnail_00",
        group="workers",
        state="RUNNING",
        pid=4711,
        uptime=62,
        exit_status=None,
        description="pid 4711, uptime 0:01:02",
        spawn_error="",
    )
    assert instance.worker == "thumbnail"


@pytest.mark.parametrize(
    ("state", "stop", "exit_status"),
    [("EXITED", 1050, 78), ("STOPPED", 1050, 78), ("STOPPED", 0, None), ("BACKOFF", 1050, None), ("FATAL", 1050, None)],
)
def test_an_exit_status_is_told_only_where_supervisor_has_one(answer, state, stop, exit_status):
    """Supervisor says 0 for "I do not know" as well as for success: a failed start must not look like a success."""
    known = 0 if exit_status is None else exit_status
    info = RUNNING | {"statename": state, "pid": 0, "stop": stop, "exitstatus": known}
    [instance] = answer(answer_of([info])).instances()
    assert (instance.pid, instance.uptime, instance.exit_status) == (None, None, exit_status)


def test_a_clock_that_was_set_back_gives_no_negative_uptime(answer):
    """Supervisor takes the times from the wall clock."""
    [instance] = answer(answer_of([RUNNING | {"now": 900}])).instances()
    assert instance.uptime == 0


def test_no_supervisor_is_said_with_what_to_do(project):
    """The usual case on a fresh host."""
    path = project / "supervisor.sock"
    with pytest.raises(ControlError, match=f"does not answer on {path}: start it with supervisord -c "):
        SupervisorControl(path).instances()


def test_a_socket_left_by_a_dead_supervisor_is_no_supervisor(project):
    """After a crash the file is there and nobody listens."""
    path = project / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(ControlError, match="does not answer"):
        SupervisorControl(path).instances()


def test_a_stuck_supervisor_is_not_waited_for_forever(answer, monkeypatch):
    """A stopped process accepts connections and never answers."""
    monkeypatch.setattr(_transport, "_PATIENCE", 0.1)
    with pytest.raises(ControlError, match=r"does not answer.*timed out"):
        answer(None).instances()


@pytest.mark.parametrize(
    "response",
    [
        http_response(b"", "401 Unauthorized"),
        http_response(b"<html>not XML-RPC"),
        http_response(xmlrpc.client.dumps(xmlrpc.client.Fault(6, "SHUTDOWN_STATE"), methodresponse=True).encode()),
        b"",
        b"SSH-2.0-OpenSSH\r\n",
    ],
    ids=["unauthorized", "no XML", "shutting down", "closed", "no HTTP"],
)
def test_an_answer_that_is_none_is_a_control_error(answer, response):
    """Nothing but ControlError leaves, whatever listens there."""
    with pytest.raises(ControlError, match=r"supervisor\.sock"):
        answer(response).instances()


def test_another_users_supervisor_is_said_to_be_so(project, monkeypatch):
    """Mode 0700 on the socket: how to start Supervisor would be the wrong advice."""

    def refuse(self):  # a test that runs as root has no socket that refuses it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_transport._Connection, "connect", refuse)
    with pytest.raises(ControlError, match="run this as the user who started supervisord"):
        SupervisorControl(project / "supervisor.sock").instances()
