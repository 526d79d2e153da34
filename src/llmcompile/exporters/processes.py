"""Programs of vendors: run so that nothing of them outlives us, without a shell, and without our secrets."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from llmcompile.errors import ToolchainError
from llmcompile.exporters import launcher

LAST_LINES = 20
"""Lines of a log that a message of a failure shows."""
_LAUNCHER = Path(launcher.__file__)
_LINE_BYTES = 1 << 16
"""A longer line of a log comes in pieces of this size."""
_LONGEST_WAIT_SECONDS = 1.0
"""How long a program that ended can go unnoticed while something else holds its streams open."""
_TAIL_CHARACTERS = 1000
_GRACE_SECONDS = 10.0
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|(ACCESS|PRIVATE)_?KEY"
    r"|(^|_)(KEYS?|PASS|PAT|AUTH|NETRC|COOKIE)(_|\d|$)|.+_PWD$|^SSH_AUTH_SOCK$",
    re.IGNORECASE,
)
"""Names of variables that a program must not see: anywhere in them, or as one of the words between underscores.

SSH_AUTH_SOCK is no secret and still lets a process sign with all of the user's keys; ranks run on this machine, so
neither a builder nor mpirun needs it. PWD and OLDPWD stay.
"""
_NO_SECRET = ("TOKENIZERS_PARALLELISM", "OLDPWD")
_USER_IN_URL = re.compile(r"://[^/\s@]+:[^/\s@]+@")


@dataclass(frozen=True)
class Line:
    """One line of a program's log; `progress` says in a few words what it means, or is None."""

    text: str
    progress: str | None = None


OnLine: TypeAlias = Callable[[Line], None]
Stages: TypeAlias = Sequence[tuple[re.Pattern[str], str]]
"""Lines of a log that say how far a program is -> the few words for it, with {0} for the pattern's first group."""


def stage(stages: Stages, text: str) -> str | None:
    """What a line says of how far a program is, by the first pattern it holds; None for most."""
    for pattern, words in stages:
        match = pattern.search(text)
        if match is not None:
            return words.format(*match.groups(default=""))
    return None


def child_environment(*, without: Collection[str] = ()) -> dict[str, str]:
    """Our environment without tokens, keys and URLs with a password, for programs that need none.

    Their output is not buffered.

    Args:
        without: Further variables that are left out.
    """
    kept = {name: value for name, value in os.environ.items() if name not in without and not _is_secret(name, value)}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def has_password(text: str) -> bool:
    """Whether a URL in `text` carries a password."""
    return _USER_IN_URL.search(text) is not None


def _is_secret(name: str, value: str) -> bool:
    if name.startswith("LLMCOMPILE_") or has_password(value):
        return True
    return _SECRET.search(name) is not None and name not in _NO_SECRET


class Child:
    """A program in a session of its own; a context manager that ends all its processes, whatever happens to us.

    Attributes:
        words: The program and its arguments.
        last: The last lines of its log.
        talking: Whether more of its log may come.
    """

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            words: The program and its arguments.
            folder: Where it runs.
            environment: What it sees; None for `child_environment()`.

        Raises:
            ToolchainError: It cannot be started.
        """
        self.words = tuple(words)
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.talking = True
        self._pending = b""
        self._closed = False
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *words],
                cwd=folder,
                env=child_environment() if environment is None else environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ToolchainError(words[0], f"cannot be started: {error.strerror}", "a program") from error
        os.set_blocking(self.fileno(), False)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop([self])

    def fileno(self) -> int:
        """The end of the pipe its log comes from."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self) -> list[str]:
        """The lines that have come, without waiting; `talking` is False once no more will.

        A carriage return ends a line too, since progress bars use it.
        """
        ended = self._process.poll() is not None  # asked first: what it said before it ended is in the pipe by now
        try:
            chunk: bytes | None = os.read(self.fileno(), 1 << 16)
        except BlockingIOError:
            chunk = None
        # Closed, or something it left behind keeps it open after the end.
        self.talking = not (chunk == b"" or (chunk is None and ended))
        *whole, self._pending = re.split(rb"[\r\n]+", self._pending + (b"" if chunk is None else chunk))
        if not self.talking or len(self._pending) >= _LINE_BYTES:
            whole.append(self._pending)
            self._pending = b""
        lines = [line.decode(errors="replace").rstrip() for line in whole if line.strip() != b""]
        self.last.extend(lines)
        return lines

    def lines(self, timeout_seconds: float | None = None) -> Iterator[str]:
        """Its log, line by line as it comes, to the end.

        Raises:
            TimeoutError: It said nothing more, or did not end, in `timeout_seconds` from now.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self.talking:
            left = _LONGEST_WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            wait([self], left)
            yield from self.read()

    def ending(self) -> int:
        """Wait for its end: the exit code, or less than zero the signal that ended it.

        Raises:
            ToolchainError: It was not started, since there is no such program.
        """
        code = self._process.wait()
        if code == 127 and len(self.last) > 0 and self.last[-1].startswith(launcher.NOT_STARTED):
            reason = self.last[-1].removeprefix(launcher.NOT_STARTED)
            raise ToolchainError(self.words[0], f"cannot be started: {reason}", "a program")
        return code

    def signalled(self, number: int) -> bool:
        """Send a signal to all its processes; whether there is one left."""
        if self._closed:
            return False  # its number may be another's by now
        self._process.poll()  # a process that was not waited for is still in its group
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Wait for it and close the pipe."""
        self._process.wait()
        self._closed = True
        if self._process.stdout is not None:
            self._process.stdout.close()


def wait(children: Iterable[Child], seconds: float) -> None:
    """Wait until one of the children says something, or the time is over, or a second, since one may have ended."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child, selectors.EVENT_READ)
        selector.select(min(seconds, _LONGEST_WAIT_SECONDS))


def stop(children: Sequence[Child]) -> None:
    """End what is left of the children's sessions: politely first, and then not; nothing where all has ended."""
    for sent, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, 1.0)):
        left = [child for child in children if child.signalled(sent)]
        deadline = time.monotonic() + seconds
        while left != [] and time.monotonic() < deadline:
            left = [child for child in left if child.signalled(0)]
            if left != []:
                time.sleep(0.02)
        if left == []:
            break
    for child in children:
        child.close()


def ended(code: int) -> str:
    """An exit code in words: "exit code 1", "killed by SIGKILL"."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def tail(last: Sequence[str]) -> str:
    """The last lines of a log, as a message shows them."""
    return f"its last {len(last)} lines:\n" + "\n".join(f"  {shortened(text)}" for text in last)


def shortened(text: str) -> str:
    """A line that a program may have made as long as it likes, at the length a message has room for."""
    return text if len(text) <= _TAIL_CHARACTERS else f"{text[:_TAIL_CHARACTERS]}..."
