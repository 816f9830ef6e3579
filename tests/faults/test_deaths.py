"""Every way a callback can end its process: counted, explained, kept."""

import pytest
from support.rabbit import Rabbit
from support.workers import Project

pytestmark = pytest.mark.faults

TASK = """
    class Dying(WorkerTask):
        def callback(self, message):
            note("start", message.data, message.attempt)
            {death}
            message.ack()

        def shutdown(self, message, cause):
            note("shutdown", message.attempt, cause.reason.value, cause.signal, cause.exit_code)
            super().shutdown(message, cause)
"""

DEATHS = {
    "sigkill": ("os.kill(os.getpid(), signal.SIGKILL)", "signal", {"signal": 9, "text": "signal 9 (SIGKILL)"}),
    "os._exit(0)": ("os._exit(0)", "exit", {"exit_code": 0, "text": "code 0"}),
    "segfault": ("ctypes.string_at(0)", "signal", {"signal": 11, "text": "signal 11", "traceback": "in callback"}),
    "tiny objects": (
        "hoard = []\n            while True: hoard.append({'n': [len(hoard)]})",
        "memory",
        {"text": "out of memory", "exception": "MemoryError"},
    ),
    "one big block": ("bytearray(10**10)", "memory", {"text": "out of memory"}),
    "endless loop": ("while True: pass", "timeout", {"text": "ran longer than 1 s", "traceback": "in callback"}),
    "sys.exit(0)": ("sys.exit(0)", "exit", {"exit_code": 0, "text": "sys.exit(0)"}),
    "sys.exit(text)": ("sys.exit('bye')", "exit", {"exit_code": 1, "text": "sys.exit(1)"}),
    "keyboard interrupt": ("raise KeyboardInterrupt", "signal", {"signal": 2, "text": "signal 2"}),
    "abort": ("os.abort()", "signal", {"signal": 6, "text": "SIGABRT", "traceback": "in callback"}),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_message_that_always_kills_its_process_is_started_exactly_max_attempts_times_and_kept_with_the_reason(
    name: str, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Three starts, three calls of shutdown() with the cause, one dead letter that names it; the worker lives on."""
    death, reason, expected = DEATHS[name]
    project.task(TASK.format(death=death))
    project.config(f"""
        workers:
          dying:
            task: workers.task:Dying
            queue: {queue}
            callback_timeout: {"1s" if name == "endless loop" else "60s"}
            memory_limit: 150MiB
            retry: {{max_attempts: 3, delays: [200ms]}}
    """)
    worker = project.start("dying")
    rabbit.publish(queue, "poison")
    worker.wait_for("message.settled", outcome="dead-lettered")
    starts = [line for line in project.ledger if line.startswith("start")]
    shutdowns = [line for line in project.ledger if line.startswith("shutdown")]
    assert starts == ["start poison 1", "start poison 2", "start poison 3"]
    signal_and_code = f"{expected.get('signal')} {expected.get('exit_code')}"
    assert shutdowns == [f"shutdown {attempt} {reason} {signal_and_code}" for attempt in (1, 2, 3)]
    ((body, headers),) = rabbit.dead(queue)
    assert body == "poison"
    assert headers["workerkit-reason"] == reason
    assert headers["workerkit-attempt"] == 3
    assert expected["text"] in headers["workerkit-message"]
    assert headers.get("workerkit-signal") == expected.get("signal")
    assert expected.get("traceback", "") in headers.get("workerkit-traceback", "")
    assert headers.get("workerkit-exception", "").endswith(expected.get("exception", ""))
    assert rabbit.ready(queue) == 0
    assert worker.stop() == 0
