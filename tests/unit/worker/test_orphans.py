"""Whose an orphan is, where several executors live: two of them, as shells, below one process that adopts."""

import json
import subprocess
import sys

import psutil

PROGRAM = """if True:
    import asyncio, json, os, signal, subprocess, sys
    import structlog
    from structlog.testing import capture_logs
    from workerkit.worker.orphans import MARK, Orphans

    LEAVE = "(setsid sleep 600 >&- 2>&- &) ; (setsid env -i sleep 601 >&- 2>&- &) ; echo left; exec sleep 602"

    def executor():
        mark = orphans.new_mark()
        process = subprocess.Popen(["sh", "-c", LEAVE], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE)
        orphans.on_started(mark, process.pid)
        process.stdout.readline()
        process.stdout.close()
        return mark, process

    def end(mark, process):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        orphans.on_child()
        status = process.wait()
        with capture_logs() as lines:
            orphans.on_gone(mark)
            orphans.on_child()  # what was ended may not be dead yet; it is not named again
        print(json.dumps({"status": status, "pid": process.pid, "lines": lines}), flush=True)
        sys.stdin.readline()

    async def main():
        first, second = executor(), executor()
        print(json.dumps("ready"), flush=True)
        sys.stdin.readline()
        end(*first)
        end(*second)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, orphans.on_child)
        await orphans.finish(5)
        print(json.dumps("finished"), flush=True)
        sys.stdin.readline()

    orphans = Orphans(structlog.get_logger())
    asyncio.run(main())
"""


def sleeps(parent: psutil.Process) -> dict[int, str]:
    """The orphans that have become ``sleep``: their ids, and how long they would sleep."""
    found = {process.pid: process.cmdline() for process in parent.children()}
    return {pid: line[1] for pid, line in found.items() if line[:1] == ["sleep"] and line[1] != "602"}


def test_an_orphan_ends_with_its_own_executor_and_without_a_mark_with_the_last() -> None:
    """What the other executor left is spared; each exit status goes to who waits for it; nothing is left at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None

        def answer():
            return json.loads(program.stdout.readline())

        def go_on() -> None:
            program.stdin.write("\n")

        parent = psutil.Process(program.pid)
        assert answer() == "ready"
        while len(before := sleeps(parent)) < 4:
            assert program.poll() is None
        go_on()
        first = answer()
        assert first["status"] == -9
        (line,) = first["lines"]
        assert line["event"] == "executor.orphans"
        assert line["executor_pid"] == first["pid"]
        (ended,) = line["ended"]
        assert before[int(ended.split()[0])] == "600"

        go_on()
        second = answer()
        assert second["status"] == -9
        (line,) = second["lines"]
        assert sorted([ended, *line["ended"]]) == sorted(f"{pid} sleep" for pid in before)
        go_on()
        assert answer() == "finished"
        assert parent.children() == []
        go_on()
    assert program.returncode == 0
