"""The reserve of memory for shutdown()."""

import subprocess
import sys
import textwrap

from workerkit import ShutdownHelper


def run(code: str) -> str:
    """Run code in an interpreter of its own, whose limits and sizes it may change. Returns what it printed."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_reserve_counts_as_data_memory_and_costs_no_resident_memory() -> None:
    """VmData grows by the reserve, and RSS by less than one of its pages' worth of mebibytes; release takes it back."""
    sizes = run("""
        from workerkit.shutdown import ShutdownHelper

        def sizes():
            lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
            return [int(lines[key].split()[0]) // 1024 for key in ("VmData", "VmRSS")]

        helper = ShutdownHelper()
        before = sizes()
        helper.reserve(64)
        during = sizes()
        helper.release()
        after = sizes()
        print([b - a for a, b in zip(before, during)], [b - a for a, b in zip(before, after)])
    """)
    assert sizes in {
        f"[{data}, {rss}] [{left}, {rss}]" for data in (63, 64, 65) for rss in (0, 1) for left in (-1, 0, 1)
    }


def test_after_the_limit_was_reached_releasing_the_reserve_lets_python_work_again() -> None:
    """Under RLIMIT_DATA an allocation fails, and succeeds once the reserve is given back."""
    result = run("""
        import resource
        from workerkit.shutdown import ShutdownHelper

        helper = ShutdownHelper()
        helper.reserve(16)
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + (2 << 20),) * 2)
        try:
            bytearray(8 << 20)
            print("there was no limit")
        except MemoryError:
            helper.release()
            print(len(bytearray(8 << 20)))
    """)
    assert result == str(8 << 20)


def test_a_second_reserve_replaces_the_first_and_zero_keeps_nothing() -> None:
    """initialize() may run again, and a task may do without."""
    helper = ShutdownHelper()
    for multiplier in (1, 2, 0):
        helper.reserve(multiplier)
    helper.release()
    helper.release()


def test_the_helper_knows_the_messages_of_all_callbacks_that_run(make_message) -> None:
    """In the order in which they began; each is disarmed by itself, and twice does no harm."""
    helper = ShutdownHelper()
    first, second, third = make_message(), make_message(), make_message()
    for message in (first, second, third):
        helper.arm(message)
    assert list(helper.messages) == [first, second, third]
    helper.disarm(second)
    helper.disarm(second)
    assert list(helper.messages) == [first, third]
    for message in (first, third):
        helper.disarm(message)
    assert not helper.messages
