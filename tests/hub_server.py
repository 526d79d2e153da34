"""A Hugging Face hub on the loopback interface: one repository, the requests it saw, and faults to switch on.

It speaks what huggingface_hub asks of `HF_ENDPOINT`: the listing of a model or dataset, and HEAD and GET of its files
with ETag, X-Repo-Commit, Content-Length and Range. huggingface_hub reads `HF_ENDPOINT` when it is imported, so that the
code under test has to run in a process of its own, started with `Hub.environment`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Fault:
    """What the hub answers instead of what was asked for.

    Attributes:
        status: HTTP status.
        code: X-Error-Code, by which huggingface_hub tells failures of one status apart; "" for none.
        message: X-Error-Message; "" for none.
    """

    status: int
    code: str = ""
    message: str = ""


GATED_UNKNOWN = Fault(401, "GatedRepo", "Access to this repository is restricted.")
GATED_KNOWN = Fault(403, "GatedRepo", "You are not in the authorized list.")
BAD_TOKEN = Fault(401, "", "Invalid credentials in Authorization header")
FORBIDDEN = Fault(403, "", "Forbidden")
NO_REPOSITORY = Fault(404, "RepoNotFound", "Repository not found")
NO_REVISION = Fault(404, "RevisionNotFound", "Invalid rev id")
NO_ENTRY = Fault(404, "EntryNotFound", "Entry not found")
TOO_MANY = Fault(429, "", "Too many requests")
UNAVAILABLE = Fault(503, "", "Service unavailable")


@dataclass(frozen=True)
class Request:
    """One request as it arrived: method, path without query, whole target, and headers with lower-case names."""

    method: str
    path: str
    target: str
    headers: Mapping[str, str]


@dataclass
class Hub:
    """A context manager: the server runs inside the `with` block.

    Attributes:
        files: Content of the repository's files, by name.
        kind: "models" or "datasets".
        repo: Id of the repository; every other one is answered with NO_REPOSITORY.
        revisions: Names that stand for COMMIT, beside COMMIT itself.
        listing_fault: Answer to every request for the model's listing; None for the listing.
        file_faults: File name -> answer to every request for it.
        resets: File name -> bytes of its body after which the connection is reset, once.
        ranges: Whether Range headers are honoured.
        requests: What arrived, in order.
    """

    files: dict[str, bytes]
    repo: str = "org/tiny"
    kind: str = "models"
    revisions: tuple[str, ...] = ("main",)
    listing_fault: Fault | None = None
    file_faults: dict[str, Fault] = field(default_factory=dict)
    resets: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            serves = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The hub's address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that takes this hub for the real one, and caches in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }

    @property
    def folder(self) -> str:
        """Where the repository's files are, below the endpoint."""
        return f"/{self.repo}" if self.kind == "models" else f"/{self.kind}/{self.repo}"

    @property
    def downloaded(self) -> list[str]:
        """Names of the files whose content was asked for, in alphabetical order, each once."""
        start = f"{self.folder}/resolve/"
        found = {unquote(r.path) for r in self.requests if r.method == "GET" and r.path.startswith(start)}
        return sorted(path.removeprefix(start).partition("/")[2] for path in found)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serves: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub = self.serves
        path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.command, path, self.path, headers))
        listing, resolve = f"/api/{hub.kind}/{hub.repo}", f"{hub.folder}/resolve/"
        if path == listing or path.startswith(f"{listing}/revision/"):
            self._list(unquote(path.removeprefix(listing).removeprefix("/revision/")))
        elif path.startswith(resolve):
            revision, _, name = path.removeprefix(resolve).partition("/")
            self._file(unquote(revision), unquote(name))
        else:
            self._fail(NO_REPOSITORY)

    def _list(self, revision: str) -> None:
        hub = self.serves
        if hub.listing_fault is not None:
            self._fail(hub.listing_fault)
        elif revision not in ("", COMMIT, *hub.revisions):
            self._fail(NO_REVISION)
        else:
            siblings = [{"rfilename": name, "size": len(body)} for name, body in hub.files.items()]
            listing = {"id": hub.repo, "modelId": hub.repo, "sha": COMMIT, "private": False, "siblings": siblings}
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _file(self, revision: str, name: str) -> None:
        hub = self.serves
        fault = hub.file_faults.get(name)
        if fault is not None:
            self._fail(fault)
        elif revision not in (COMMIT, *hub.revisions):
            self._fail(NO_REVISION)
        elif name not in hub.files:
            self._fail(NO_ENTRY)
        else:
            body = hub.files[name]
            headers = {
                "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            self._send_range(name, body, headers)

    def _send_range(self, name: str, body: bytes, headers: Mapping[str, str]) -> None:
        asked = self.headers.get("Range")
        if asked is None or not self.serves.ranges:
            self._send(200, body, headers, self.serves.resets.pop(name, None) if self.command == "GET" else None)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) + 1 if last != "" else len(body), len(body))
        if begin >= end:
            self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        else:
            self._send(206, body[begin:end], {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(body)}"})

    def _fail(self, fault: Fault) -> None:
        headers = {"X-Error-Code": fault.code, "X-Error-Message": fault.message}
        self._send(fault.status, b"", {name: value for name, value in headers.items() if value != ""})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], reset_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:reset_after])
        if reset_after is not None:
            self._reset()

    def _reset(self) -> None:
        """Reset the connection once the other side has all that was sent."""
        self.wfile.flush()
        unsent = b"\1\0\0\0"
        while unsent != b"\0\0\0\0":
            time.sleep(0.005)
            unsent = fcntl.ioctl(self.connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # server.shutdown_request would send an orderly FIN; closing the descriptor itself sends the reset.
        os.close(self.connection.detach())
        self.close_connection = True
