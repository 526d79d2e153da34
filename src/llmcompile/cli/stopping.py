"""SIGTERM as an exception, so that a run ends in order; imports nothing, since it is in place before anything else."""

from __future__ import annotations

import signal
from types import FrameType

SIGTERM_CODE = 143
SIGINT_CODE = 130


class TerminatedError(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt, not an Exception."""


def _raise(number: int, frame: FrameType | None) -> None:
    raise TerminatedError


def install() -> None:
    """Turn SIGTERM into TerminatedError from now on."""
    signal.signal(signal.SIGTERM, _raise)
