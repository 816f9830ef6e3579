"""The text of Supervisor's files: exactly the golden files, and read by Supervisor's own parser exactly the settings.

After a wanted change, write the golden files again and read the diff:

    .venv/bin/python tests/unit/supervision/test_supervision_generate.py
"""

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from supervisor.datatypes import RestartWhenExitUnexpected
from supervisor.options import ServerOptions

from workerkit.errors import ConfigurationError
from workerkit.settings.model import Settings, SupervisorSettings, WorkerSettings
from workerkit.supervision import render, socket_path, write

GOLDEN = Path(__file__).parents[2] / "golden" / "supervisor"

SHOP = Settings(
    workers={
        "thumbnail": WorkerSettings(
            task="workers.thumbnail:ThumbnailWorker", instances=4, environment={"OMP_NUM_THREADS": "1"}
        ),
        "mail": WorkerSettings(
            task="workers.mail:MailWorker", environment={"SUBJECT": "100 % yours; #1", "STAGE": "live"}
        ),
    },
    supervisor=SupervisorSettings(stopwaitsecs=45, user="deploy", environment={"TZ": "UTC", "STAGE": "test"}),
)


def render_in(project, config, *, overrides=None, command=("/usr/bin/python3", "-m", "workerkit")):
    return render(
        config,
        project_root=project,
        config_path=project / "config" / "workerkit.yaml",
        command=command,
        overrides=overrides,
    )


def one_worker(name="mail", supervisor=None, **keys):
    return Settings(
        workers={name: WorkerSettings(task="workers.mail:MailWorker", **keys)},
        supervisor=supervisor or SupervisorSettings(),
    )


def read_by_supervisor(project, config, **keys):
    """Write the files, let Supervisor's own parser read them, and return its options."""
    write(render_in(project, config, **keys), project / "supervisor")
    options = ServerOptions()
    options.realize(["-c", str(project / "supervisor" / "supervisord.conf")])
    assert options.parse_warnings == []
    return options


def programs(options):
    return {program.name: program for group in options.process_group_configs for program in group.process_configs}


@pytest.mark.parametrize("name", ["supervisord.conf", "conf.d/workers.conf"])
def test_the_files_of_a_shop_are_the_golden_files(name):
    """A change of a single character is a change for every user, and is seen in review."""
    assert render_in(Path("/srv/shop"), SHOP)[name] == (GOLDEN / name).read_text()


def test_supervisor_reads_every_option_as_meant(project):
    """One program per worker in the group ``workers``; one process per instance."""
    config = Settings(
        workers={
            "thumbnail": WorkerSettings(task="w:T", instances=2),
            "mail": WorkerSettings(task="w:M"),
        },
        supervisor=SupervisorSettings(stopwaitsecs=45),
    )
    options = read_by_supervisor(project, config)
    [group] = options.process_group_configs
    assert group.name == "workers"
    assert sorted(programs(options)) == ["mail_00", "thumbnail_00", "thumbnail_01"]

    program = programs(options)["thumbnail_01"]
    assert shlex.split(program.command) == [
        "/usr/bin/python3",
        "-m",
        "workerkit",
        "--config",
        f"{project}/config/workerkit.yaml",
        "run",
        "thumbnail",
    ]
    assert program.directory == str(project)
    assert program.environment == {"WORKERKIT_INSTANCE": "01"}
    assert program.autostart is True
    assert program.autorestart is RestartWhenExitUnexpected
    assert program.exitcodes == [64, 77, 78]
    assert (program.startsecs, program.startretries, program.stopwaitsecs) == (1, 3, 45)
    assert (program.stopsignal, program.stopasgroup, program.killasgroup) == (15, True, True)
    assert (program.redirect_stderr, program.stderr_logfile) == (True, None)
    assert program.stdout_logfile == f"{project}/supervisor/log/thumbnail_01.log"
    assert (program.stdout_logfile_maxbytes, program.stdout_logfile_backups) == (50 * 1024**2, 10)
    assert program.uid is None


def test_the_only_door_is_a_private_unix_socket(project):
    """No TCP port; the socket has mode 0700; logs, pid file and socket stay inside the project."""
    options = read_by_supervisor(project, one_worker())
    [server] = options.server_configs
    assert (server["family"].name, server["file"], server["chmod"]) == ("AF_UNIX", str(socket_path(project)), 0o700)
    assert options.logfile == f"{project}/supervisor/log/supervisord.log"
    assert options.pidfile == f"{project}/supervisor/run/supervisord.pid"
    assert options.childlogdir == f"{project}/supervisor/log"
    assert (options.nodaemon, options.umask) == (False, 0o022)


def test_a_configured_user_runs_the_workers(project):
    """``supervisor.user`` becomes each program's user."""
    config = one_worker(supervisor=SupervisorSettings(user="root"))
    assert programs(read_by_supervisor(project, config))["mail_00"].uid == 0


def test_a_workers_environment_wins_over_the_common_one(project):
    """``supervisor.environment`` is for all workers, and the narrower setting is the stronger."""
    config = one_worker(
        environment={"STAGE": "live"}, supervisor=SupervisorSettings(environment={"STAGE": "test", "TZ": "UTC"})
    )
    assert programs(read_by_supervisor(project, config))["mail_00"].environment == {
        "STAGE": "live",
        "TZ": "UTC",
        "WORKERKIT_INSTANCE": "00",
    }


# Letters alone would hardly ever meet a rule of the format, so its own words and characters are drawn, too.
VALUES = st.lists(
    st.one_of(
        st.sampled_from([*"%;#,='\"\\ \t$:[]()é💥\x85\u2028", "%(here)s", "%(process_num)d", "%(ENV_HOME)s", "%s"]),
        st.text(max_size=3),
    ),
    max_size=8,
).map("".join)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
@example("100%")
@example("a ;comment and a #colour")
@example("; first")
@example(" spaces at both ends ")
@example("it's, 'so' to say")
@example('{"json": "yes", "n": [1, 2]}')
@example("%(here)s %%(here)s")
@example("ümläut 💥")
@example("")
def test_supervisor_reads_back_exactly_the_value_or_it_is_refused(project, value):
    """An environment value reaches the worker as it was written; only those without a spelling are refused."""
    has_spelling = (
        not set(value) & {"\n", "\r", "\0"} and value == value.strip("'\"") and not ("'" in value and '"' in value)
    )
    config = one_worker(environment={"FIRST": value, "SECOND": "after it"})
    if has_spelling:
        environment = programs(read_by_supervisor(project, config))["mail_00"].environment
        assert environment == {"FIRST": value, "SECOND": "after it", "WORKERKIT_INSTANCE": "00"}
    else:
        with pytest.raises(ConfigurationError, match=r"workerkit\.yaml: workers\.mail\.environment\.FIRST: "):
            render_in(project, config)


@pytest.mark.parametrize(
    "folder",
    ["50% off", "%(here)s", "two  spaces", "a ;b #c", 'quote\'d "twice"', "ends with a space ", "größe", "comma, dot."],
)
def test_a_project_may_stand_in_any_folder(project, folder):
    """The root is in the command, the directory, the logs, the pid file and the socket, each read in its own way."""
    root = project / folder
    root.mkdir()
    options = read_by_supervisor(root, one_worker(), command=[f"{root}/python", "-m", "a b%c;d ;e"])
    program = programs(options)["mail_00"]
    assert shlex.split(program.command)[:3] == [f"{root}/python", "-m", "a b%c;d ;e"]
    assert shlex.split(program.command)[4] == f"{root}/config/workerkit.yaml"
    assert program.directory == str(root)
    assert program.stdout_logfile == f"{root}/supervisor/log/mail_00.log"
    assert options.logfile == f"{root}/supervisor/log/supervisord.log"
    assert options.pidfile == f"{root}/supervisor/run/supervisord.pid"
    assert options.server_configs[0]["file"] == str(socket_path(root))


@pytest.mark.parametrize("folder", ["shop[1]", "what?", "all*"])
def test_a_folder_that_supervisor_cannot_include_from_is_refused(folder):
    """Supervisor would find no files and start no workers, with a warning that nobody reads."""
    with pytest.raises(ConfigurationError, match="rename it"):
        render_in(Path("/srv") / folder, one_worker())


def test_a_relative_path_is_a_mistake_of_the_caller():
    """Supervisor runs in another directory, in which it would mean something else."""
    with pytest.raises(ValueError, match="must be absolute"):
        render_in(Path("shop"), one_worker())


def test_the_longest_socket_in_the_project_leaves_room_for_supervisors_suffix():
    """107 bytes fit on Linux and 103 on macOS, and Supervisor first binds the path with its pid behind it."""
    room = 103 - len(".4194304") - len("/supervisor/run/supervisor.sock")
    longest = Path("/" + "r" * (room - 1))
    assert socket_path(longest) == longest / "supervisor" / "run" / "supervisor.sock"

    too_long = Path("/" + "r" * room)
    assert socket_path(too_long).parent.parent == Path("/tmp")
    assert socket_path(too_long) == socket_path(too_long) != socket_path(too_long / "r")
    assert f"file={socket_path(too_long)}\n" in render_in(too_long, one_worker())["supervisord.conf"]


def test_no_workers_is_a_configuration_error():
    """An empty group would make Supervisor run nothing, without a word."""
    with pytest.raises(ConfigurationError, match=r"/srv/shop/config/workerkit\.yaml: workers: there is none"):
        render_in(Path("/srv/shop"), Settings())


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "a b", "a,b", "[a]", "a%b", "-a", ".a", "a\nb", "größe"])
def test_a_name_that_no_program_can_have_is_refused(name):
    """The name stands in a section header, a comma list, a command line of supervisorctl and a file name."""
    with pytest.raises(ConfigurationError, match="not usable as the name of a Supervisor program"):
        render_in(Path("/srv/shop"), one_worker(name))


@pytest.mark.parametrize("variable", ["", "1ST", "A B", "A=B", "A-B", "Ä", "A\n"])
def test_a_variable_that_supervisor_reads_differently_is_refused(variable):
    """Supervisor's lexer would split it, or fail when it starts."""
    with pytest.raises(ConfigurationError, match="is not a name of an environment variable"):
        render_in(Path("/srv/shop"), one_worker(environment={variable: "x"}))


def test_the_instance_number_is_not_the_operators_to_set():
    """It would be overwritten, and what an operator writes is never ignored in silence."""
    config = one_worker(supervisor=SupervisorSettings(environment={"WORKERKIT_INSTANCE": "7"}))
    with pytest.raises(ConfigurationError, match=r"supervisor\.environment\.WORKERKIT_INSTANCE"):
        render_in(Path("/srv/shop"), config)


@pytest.mark.parametrize("unwritable", ["a\nb", "a\rb", "a\0b", "a\ud800b"])
def test_a_line_break_in_a_command_is_refused(unwritable):
    """It would begin a new option, written by whoever chose the value."""
    with pytest.raises(ConfigurationError, match="cannot be written to a Supervisor file"):
        render_in(Path("/srv/shop"), one_worker(), command=["/usr/bin/python3", unwritable])


@pytest.mark.parametrize("value", ["'hunter2'", "hunt'er\"2", "hunter2\n"])
def test_a_value_that_supervisor_cannot_read_is_refused_without_being_shown(value):
    """It may be a secret, and errors end in terminals and CI logs; the key is enough to find it."""
    config = one_worker(supervisor=SupervisorSettings(environment={"PASSWORD": value}))
    with pytest.raises(ConfigurationError, match=r"supervisor\.environment\.PASSWORD") as refused:
        render_in(Path("/srv/shop"), config)
    assert "hunt" not in str(refused.value)


def test_a_project_overrides_one_template_and_keeps_the_others(tmp_path):
    """Its file replaces the packaged one of the same name; ``$$`` is a dollar."""
    (tmp_path / "program.conf").write_text("[program:$name]\n; costs $$5\ncommand=$command\nnumprocs=$instances\n")
    before = render_in(Path("/srv/shop"), one_worker())
    after = render_in(Path("/srv/shop"), one_worker(), overrides=tmp_path)
    assert after["supervisord.conf"] == before["supervisord.conf"]
    assert after["conf.d/workers.conf"].endswith(
        "[group:workers]\nprograms=mail\n\n[program:mail]\n; costs $5\ncommand=/usr/bin/python3 -m workerkit "
        "--config /srv/shop/config/workerkit.yaml run mail\nnumprocs=1\n"
    )


def test_a_project_without_its_own_templates_gets_the_packaged_ones(tmp_path):
    """The folder of overrides need not exist."""
    config = one_worker()
    assert render_in(tmp_path, config, overrides=tmp_path / "absent") == render_in(tmp_path, config)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("program.conf", "$nmae", r"program\.conf: \$nmae is not a placeholder; here are \$name \$command"),
        ("program.conf", "costs $5", r"program\.conf: Invalid placeholder.* a literal dollar is written \$\$"),
        ("programs.conf", "", r"programs\.conf: overrides no template; the templates are supervisord\.conf"),
    ],
)
def test_a_mistake_in_a_template_is_named_with_its_file(tmp_path, file, text, complaint):
    """A typo in an override is neither ignored nor a traceback."""
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        render_in(Path("/srv/shop"), one_worker(), overrides=tmp_path)


def test_a_configuration_outside_the_project_is_named_in_full():
    """The first line says which YAML to change."""
    files = render(
        one_worker(),
        project_root=Path("/srv/shop"),
        config_path=Path("/etc/shop.yaml"),
        command=["workerkit"],
        overrides=None,
    )
    assert files["supervisord.conf"].startswith(
        "; generated by workerkit supervisor generate from /etc/shop.yaml: do not edit, change the YAML\n"
    )


if __name__ == "__main__":
    for golden, text in render_in(Path("/srv/shop"), SHOP).items():
        (GOLDEN / golden).parent.mkdir(parents=True, exist_ok=True)
        (GOLDEN / golden).write_text(text)
