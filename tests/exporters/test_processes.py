"""Programs are started without our secrets, heard to the end, and do not outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmcompile.errors import ToolchainError
from llmcompile.exporters import launcher, processes
from llmcompile.exporters.processes import Child
from watching import alive, wait_for


def test_both_streams_come_line_by_line(tmp_path: Path) -> None:
    """A carriage return ends a line, a blank line is none, and the last needs no end."""
    words = ["sh", "-c", r"printf 'one\n\ntwo\rthree' >&2; printf '\nfour'; exit 3"]

    with Child(words, tmp_path) as child:
        lines = list(child.lines())
        code = child.ending()

    assert lines == ["one", "two", "three", "four"]
    assert (code, list(child.last)) == (3, lines)
    assert processes.ended(code) == "exit code 3"


def test_only_the_last_lines_are_kept(tmp_path: Path) -> None:
    """Twenty of them, each as long as a message has room for."""
    with Child(["sh", "-c", "seq 30; head -c 3000 /dev/zero | tr '\\0' x"], tmp_path) as child:
        assert len(list(child.lines())) == 31

    text = processes.tail(child.last)
    assert text.splitlines()[:2] == ["its last 20 lines:", "  12"]
    assert text.endswith("xxx...")
    assert len(text) < 1200


def test_a_silent_program_is_ended_after_its_time(tmp_path: Path) -> None:
    """The deadline is for the whole log, and leaving the context ends the program and what it started."""
    words = ["sh", "-c", "sleep 300 & echo $! $$; wait"]

    with pytest.raises(TimeoutError), Child(words, tmp_path) as child:
        list(child.lines(0.5))

    pids = [int(pid) for pid in child.last[0].split()]
    assert not any(alive(pid) for pid in pids)


def test_what_a_program_leaves_behind_does_not_keep_us_waiting(tmp_path: Path) -> None:
    """A process that holds its streams open is not waited for, and is ended."""
    start = time.monotonic()

    with Child(["sh", "-c", "sleep 300 & echo $!"], tmp_path) as child:
        lines = list(child.lines())
        code = child.ending()

    assert (len(lines), code) == (1, 0)
    assert time.monotonic() - start < 5
    wait_for(lambda: not alive(int(lines[0])))


def test_several_are_heard_in_turn_and_stopped_together(tmp_path: Path) -> None:
    """Whoever has something to say ends the wait; one grace for all of them."""
    quick = Child(["sh", "-c", "echo quick"], tmp_path)
    slow = Child(["sh", "-c", "echo $$; sleep 300"], tmp_path)
    try:
        while quick.talking or len(slow.last) == 0:
            processes.wait([child for child in (quick, slow) if child.talking], 5)
            quick.read()
            slow.read()
    finally:
        processes.stop([quick, slow])

    assert list(quick.last) == ["quick"]
    assert processes.ended(slow.ending()) == "killed by SIGKILL"
    assert not alive(int(slow.last[0]))


def test_a_program_that_is_none_is_said_so(tmp_path: Path) -> None:
    """By its path, and exit code 127 of the process between."""
    with Child([str(tmp_path / "absent")], tmp_path) as child:
        list(child.lines())
        with pytest.raises(ToolchainError, match="absent: cannot be started: No such file or directory"):
            child.ending()


def test_a_folder_that_is_none_is_said_so(tmp_path: Path) -> None:
    """As what cannot be started."""
    with pytest.raises(ToolchainError, match="true: cannot be started: No such file or directory"):
        Child(["true"], tmp_path / "absent")


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PWD", "SSH_AUTH_SOCK", "LLMCOMPILE_MODEL"])
def test_secrets_stay_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, keys, and what only our own options mean."""
    monkeypatch.setenv(name, "hf_secret")

    assert name not in processes.child_environment()


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "PATH", "PWD", "OLDPWD", "XAUTHORITY", "KEYBOARD", "COMPASS", "PYTHONPATH"]
)
def test_what_only_looks_like_a_secret_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of a name decides, not a part of a word."""
    monkeypatch.setenv(name, "/some/where")

    assert processes.child_environment()[name] == "/some/where"
    assert name not in processes.child_environment(without=[name])


def test_a_url_with_a_password_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name; one without stays."""
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hunter2@host/db")
    monkeypatch.setenv("SOME_URL", "https://host:8080/a@b")

    assert "DATABASE_URL" not in processes.child_environment()
    assert "SOME_URL" in processes.child_environment()


def test_a_program_that_ignores_the_end_is_killed(tmp_path: Path) -> None:
    """What does not heed SIGTERM gets SIGKILL, by the process between, whoever of us is left."""
    stubborn = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    short = Path(launcher.__file__).read_text().replace("_GRACE_SECONDS = 10.0", "_GRACE_SECONDS = 0.3")
    (tmp_path / "launcher.py").write_text(short)
    words = [sys.executable, "-I", str(tmp_path / "launcher.py"), str(os.getpid()), "sh", "-c", stubborn]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    process.terminate()

    assert process.wait(10) == -signal.SIGKILL
    assert process.stdout.read() == b""  # closed by all that had it
    process.stdout.close()
