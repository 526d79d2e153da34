"""Run a program so that it does not outlive us: `python -I -S launcher.py OUR_PID PROGRAM ARGUMENT ...`.

A session of its own keeps an interrupt at the terminal from reaching a compiler before us, and keeps the kernel from
ending it with us: after `kill -9` an orphan would go on writing where the next run builds. This process stands between.
The kernel sends it SIGTERM when the one that started it dies (PR_SET_PDEATHSIG), and it ends all of its group, the
compiler's own workers too, which no signal for the compiler alone would reach.

A process of its own, since code between fork and exec (`preexec_fn`) may deadlock in a process that has threads, and
since `setpriv --pdeathsig` is not on every machine and would guard the compiler alone. Where there is no prctl a killed
run leaves its compiler behind. Standard library only, and nothing of ours is imported.

Source: man 2 PR_SET_PDEATHSIG: "parent" is the thread that started this process; it is the one that waits for it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 10.0
NOT_STARTED = "llmcompile: cannot be started: "
"""How the only line of a program that could not be started begins; the exit code is 127."""


class Told(BaseException):
    """SIGTERM came."""


def main(parent: int, words: list[str]) -> None:
    """Run `words` in our group, and end as they did; on SIGTERM end the whole group."""
    signal.signal(signal.SIGTERM, _told)
    try:
        _die_with_parent()
        if os.getppid() != parent:  # it died before the kernel was asked
            return
        _end_as(_wait(words))
    except Told:
        _end_group()


def _told(number: int, frame: object) -> None:
    raise Told


def _die_with_parent() -> None:
    try:
        from ctypes import CDLL

        CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return


def _wait(words: list[str]) -> int:
    try:
        process = subprocess.Popen(words)  # noqa: S603
    except OSError as error:
        os.write(1, f"{NOT_STARTED}{error.strerror}\n".encode())
        return 127
    return process.wait()


def _end_group() -> None:
    """SIGTERM to all of our group, and SIGKILL to what is left, ourselves among them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and _others():
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)


def _others() -> bool:
    """Whether another process of our group runs, as /proc says; one that ended and was not waited for does not."""
    mine, group = os.getpid(), os.getpgrp()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == mine:
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z" and int(fields[2]) == group:
            return True
    return False


def _end_as(code: int) -> None:
    """End with an exit code, or by the signal that ended the program, without a core of our own."""
    if code >= 0:
        raise SystemExit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
