"""``workerkit publish`` refuses what cannot become a message before it connects to anything."""

import pytest
from click.testing import CliRunner

from workerkit.cli.main import cli
from workerkit.cli.terminal import printable


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Run it against a broker that is not there: what is refused here was refused without one."""
    config = tmp_path / "workerkit.yaml"
    config.write_text("broker: {url: 'amqp://127.0.0.1:1'}")
    monkeypatch.chdir(tmp_path)

    def run(*args, stdin=b""):
        return CliRunner().invoke(cli, ["--config", str(config), "publish", *args], input=stdin)

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["q", "{}", "--header", "x-death=1"], "'x-death'"),
        (["q", "{}", "--header", "X-Delay=1"], "'X-Delay'"),
        (["q", "{}", "--header", "workerkit-attempt=9"], "'workerkit-attempt'"),
        (["q", "{}", "--header", "CC=other"], "'CC'"),
        (["q", "{}", "--header", "novalue"], "not NAME=VALUE"),
        (["q", "{}", "--header", f"{'n' * 256}=v"], "255 bytes"),
        (["q", "{}", "--header", f"n={'v' * 100_001}"], "100000 fit"),
        (["q", "{}", "--message-id", "i" * 256], "255 bytes"),
        (["q", "a", "--lines", "--message-id", "m"], "--message-id names one message"),
        (["q", "{}", "--delay", "soon"], "not a duration"),
        (["q", "{}", "--delay", "0s"], "more than 0"),
        (["q", "{}", "--delay", "50d"], "at most 49d"),
        (["q" * 256, "{}"], "1 to 255 bytes"),
        (["q"], "standard input is empty"),
    ],
)
def test_what_cannot_be_sent_is_a_usage_error(publish, options, said):
    """Reserved headers, values that do not fit AMQP and options that exclude each other are refused by name."""
    result = publish(*options)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_a_file_that_cannot_be_read_is_named(publish):
    """@FILE of a missing file says which file and why."""
    assert str(publish("q", "@missing.json").exception) == "cannot read missing.json: No such file or directory"


def test_texts_of_others_cannot_control_the_terminal():
    """Escape sequences in a message are shown, not obeyed; line breaks stay only where they are wanted."""
    assert printable("a\x1b[2Jb\n\u202e") == "a\\x1b[2Jb\\n\\u202e"
    assert printable("a\n\tb\x07", lines=True) == "a\n\tb\\x07"
