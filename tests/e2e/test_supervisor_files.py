"""The generated files under a real supervisord. A tiny stand-in takes the place of workerkit in ``command``.

The stand-in leaves one file per start, with its arguments and environment, and ends as the name of its worker says.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workerkit.errors import ControlError
from workerkit.settings.model import Settings, SupervisorSettings, WorkerSettings
from workerkit.supervision import SupervisorControl, render, socket_path, write

pytestmark = pytest.mark.e2e

# ``startsecs`` is 1: a process that lives longer has started, one that does not has failed to start.
STAND_IN = """\
import json, os, sys, time

endings = {"steady": (600, 0), "planned_end": (1.3, 0), "refused_late": (1.3, 78), "refused_at_once": (0, 78)}
seconds, status = endings[sys.argv[-1]]
start = {"argv": sys.argv[1:], "environment": dict(os.environ), "directory": os.getcwd(), "group": os.getpgrp()}
instance = f"{sys.argv[-1]}_{os.environ['WORKERKIT_INSTANCE']}"
with open(f"starts/{instance}.{os.getpid()}.new", "w") as stream:
    json.dump(start, stream)
os.replace(stream.name, stream.name.removesuffix(".new"))
print("started", instance, flush=True)
time.sleep(seconds)
sys.exit(status)
"""


def wait_for(condition, what, seconds=20):
    """Return the first true value of ``condition()``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return value


@pytest.fixture
def project():
    # pytest's tmp_path can be too long for a Unix socket, which is another test's business.
    with tempfile.TemporaryDirectory(prefix="wk-", dir="/tmp") as folder:
        (Path(folder) / "starts").mkdir()
        (Path(folder) / "stand_in.py").write_text(STAND_IN)
        yield Path(folder)


@pytest.fixture
def supervisord(project):
    """Return a function that generates files for workers, runs supervisord with them and gives access to it."""
    running = []

    def start(root=project, **workers):
        configuration = Settings(
            workers={name: WorkerSettings(task="stand:In", **keys) for name, keys in workers.items()},
            supervisor=SupervisorSettings(stopwaitsecs=5, environment={"STAGE": "100% e2e; #1"}),
        )
        files = render(
            configuration,
            project_root=root,
            config_path=root / "config" / "workerkit.yaml",
            command=[sys.executable, str(root / "stand_in.py")],
            overrides=None,
        )
        write(files, root / "supervisor")
        conf = root / "supervisor" / "supervisord.conf"
        output = (root / "supervisord.out").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", conf],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        running.append((process, output))
        control = SupervisorControl(socket_path(root))

        def answers():
            assert process.poll() is None, (root / "supervisord.out").read_text()
            try:
                return control.instances()
            except ControlError:
                return None

        wait_for(answers, "supervisord to answer")

        def ctl(*arguments):
            return subprocess.run(
                [sys.executable, "-m", "supervisor.supervisorctl", "-c", conf, *arguments],
                capture_output=True,
                text=True,
                timeout=30,
            )

        def instances():
            return {instance.name: instance for instance in control.instances()}

        def starts(instance):
            return [json.loads(path.read_text()) for path in sorted((root / "starts").glob(f"{instance}.*[0-9]"))]

        return SimpleNamespace(control=control, ctl=ctl, instances=instances, starts=starts, process=process)

    yield start
    for process, output in running:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            output.close()


def test_the_commands_in_the_design_work_as_written(project, supervisord):
    """``start workers:*``, ``status workers:steady_00`` and ``stop workers:*``; SupervisorControl sees the same."""
    supervisor = supervisord(steady={"instances": 2, "environment": {"GREETING": 'say "hi", it is 5 % off'}})
    wait_for(lambda: {i.state for i in supervisor.control.instances()} == {"RUNNING"}, "both instances to run")

    [first, second] = supervisor.control.instances()
    assert [(i.name, i.group, i.worker) for i in (first, second)] == [
        ("steady_00", "workers", "steady"),
        ("steady_01", "workers", "steady"),
    ]
    assert first.uptime is not None
    status = supervisor.ctl("status", "workers:steady_00").stdout
    assert status.split()[:2] == ["workers:steady_00", "RUNNING"]
    assert f"pid {first.pid}, uptime" in status

    [start] = supervisor.starts("steady_01")
    assert start["argv"] == ["--config", f"{project}/config/workerkit.yaml", "run", "steady"]
    assert start["environment"]["GREETING"] == 'say "hi", it is 5 % off'
    assert start["environment"]["STAGE"] == "100% e2e; #1"
    assert start["environment"]["WORKERKIT_INSTANCE"] == "01"
    assert start["directory"] == str(project)
    assert start["group"] == second.pid
    log = project / "supervisor" / "log" / "steady_01.log"
    wait_for(lambda: log.read_text() == "started steady_01\n", "the output in the log")

    stopped = supervisor.ctl("stop", "workers:*")
    assert sorted(stopped.stdout.splitlines()) == ["workers:steady_00: stopped", "workers:steady_01: stopped"]
    assert [(i.state, i.pid, i.uptime, i.exit_status) for i in supervisor.control.instances()] == [
        ("STOPPED", None, None, -1),
        ("STOPPED", None, None, -1),
    ]

    started = supervisor.ctl("start", "workers:*")
    assert sorted(started.stdout.splitlines()) == ["workers:steady_00: started", "workers:steady_01: started"]
    assert {i.state for i in supervisor.control.instances()} == {"RUNNING"}
    assert len(supervisor.starts("steady_00")) == 2


def test_only_an_end_that_a_restart_cannot_cure_is_final(supervisord):
    """0 after the TTL is restarted; 78 is not, and 78 at every start is given up after three retries."""
    supervisor = supervisord(planned_end={}, refused_late={}, refused_at_once={})

    wait_for(lambda: len(supervisor.starts("planned_end_00")) >= 3, "the planned end to be restarted twice")
    exited = wait_for(
        lambda: (i := supervisor.instances()["refused_late_00"]).state == "EXITED" and i, "the late refusal to be final"
    )
    assert (exited.exit_status, exited.pid) == (78, None)
    given_up = wait_for(
        lambda: (i := supervisor.instances()["refused_at_once_00"]).state in {"FATAL", "EXITED"} and i,
        "the early refusal to be final",
        seconds=30,
    )
    # FATAL after four failed starts; but on a busy host a start may last its second, and then its code counts at once.
    assert given_up.exit_status == {"FATAL": None, "EXITED": 78}[given_up.state]
    starts = len(supervisor.starts("refused_at_once_00"))
    assert starts == 4 if given_up.state == "FATAL" else starts <= 4

    # By now the planned end has been restarted several times over, the late refusal not once.
    assert len(supervisor.starts("refused_late_00")) == 1
    assert supervisor.instances()["refused_late_00"].state == "EXITED"
    assert supervisor.ctl("status", "workers:refused_late_00").stdout.split()[1] == "EXITED"


def test_a_worker_and_its_child_are_stopped_together(project, supervisord):
    """The executor gets the signal, too: the pair is one process group, and nothing is left behind."""
    (project / "stand_in.py").write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('starts/child', 'w').write(str(child.pid))\n"
        "child.wait()\n"
    )
    supervisor = supervisord(steady={})
    pid = int(
        wait_for(
            lambda: (project / "starts" / "child").exists() and (project / "starts" / "child").read_text(), "the child"
        )
    )
    assert supervisor.ctl("stop", "workers:*").returncode == 0

    def gone():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state == "Z"  # an orphan that nobody has reaped yet is dead as well

    wait_for(gone, "the child to end")


def test_a_deep_project_is_controlled_through_its_socket_in_tmp(project, supervisord):
    """The path of its own socket would not fit; the commands are the same."""
    root = project / ("deep" * 20)
    root.mkdir()
    shutil.copytree(project / "starts", root / "starts")
    shutil.copy(project / "stand_in.py", root)
    try:
        supervisor = supervisord(root, steady={})
        wait_for(lambda: supervisor.starts("steady_00"), "the worker to start")
        assert supervisor.ctl("status").stdout.split()[0] == "workers:steady_00"
        assert supervisor.ctl("shutdown").returncode == 0
        supervisor.process.wait(20)
    finally:
        shutil.rmtree(socket_path(root).parent)
