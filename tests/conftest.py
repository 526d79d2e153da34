"""What every test has: the command line in-process, no network, and an environment that says nothing."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import pytest
import typer.main
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from llmcompile.cli import app

# Read when torch is first imported: on tiny models, threads that wait for each other cost more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read when XLA first compiles: tiny graphs run once or twice. The examples compile as a user does.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# What a test takes depends on what else the machine does: examples are judged by what they find.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """Leave what was imported, millions of objects that stay, out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


Run: TypeAlias = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Run `llmcompile ARGUMENTS...` in this process; an exception that is our bug passes through."""

    def invoke(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env, catch_exceptions=False)
        return Result(result.exit_code, result.stdout, result.stderr)

    with pytest.MonkeyPatch.context() as patch:
        # Otherwise every run makes the tree of commands anew, which takes longer than most commands.
        patch.setattr("typer.testing._get_command", cache(typer.main.get_command))
        yield invoke


@pytest.fixture(autouse=True, scope="session")
def silent_environment() -> Iterator[None]:
    """Forget every variable that is an option, and let messages be as wide as they like."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("LLMCOMPILE_") or name in ("HF_TOKEN", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
                patch.delenv(name)
        patch.setenv("COLUMNS", "240")
        patch.setenv("TERMINAL_WIDTH", "240")
        yield


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Fail whatever looks up or connects to a host that is not this one."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if host is not None and name not in ("", "localhost", "::1") and not name.startswith("127."):
            raise RuntimeError(f"a test reached for the network: {name}")

    def check_address(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])

    def guarded_connect(self: socket.socket, address: Any) -> None:
        check_address(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        check_address(self, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        check(host)
        return getaddrinfo(host, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield
