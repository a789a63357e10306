"""A local web server that counts requests and misbehaves when asked to."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request as the server saw it."""

    method: str
    """GET or HEAD."""
    path: str
    """With the query string."""
    range: str | None
    """The Range header."""
    status: int
    """What was answered."""
    sent: int
    """Bytes of body."""


@dataclass
class Server:
    """A running server."""

    url: str
    """http://127.0.0.1:port, without a slash at the end."""
    requests: list[Request] = field(default_factory=list)
    """In order of arrival; cleared by the test as it likes."""
    fault: Callable[[str], tuple[int, bytes] | None] | None = None
    """path -> (status, body) to answer instead of the file, or None to serve it."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with each fault, such as Retry-After."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of all bodies."""
        return sum(request.sent for request in self.requests)


@contextmanager
def serve_folder(folder: str | Path, *, ranges: bool = True) -> Iterator[Server]:
    """Serve the files of a folder on this machine, with byte ranges, until the block ends.

    Args:
        folder: Its files are served under their relative paths.
        ranges: False for a server that ignores Range headers and always sends whole files.

    >>> import tempfile, urllib.request
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_text("hello")
    ...     with serve_folder(folder) as server:
    ...         with urllib.request.urlopen(server.url + "/a.txt") as answer:
    ...             answer.read(), len(server.requests)
    (b'hello', 1)
    """
    root = Path(folder).resolve()
    state = Server("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            status, headers, content = _respond(root, state, self.path, self._range())
            sent = len(content) if body else 0
            state.requests.append(Request(self.command, self.path, self._range(), status, sent))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def _range(self) -> str | None:
            return self.headers.get("Range") if ranges else None

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: tests read `requests` instead."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _respond(
    root: Path, state: Server, path: str, wanted: str | None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for one path."""
    fault = state.fault(path) if state.fault else None
    if fault is not None:
        return fault[0], dict(state.headers), fault[1]
    file = (root / unquote(urlsplit(path).path).lstrip("/")).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        return HTTPStatus.NOT_FOUND, {}, b""
    size = file.stat().st_size
    first, last = _span(wanted, size)
    if wanted and first >= size:
        return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"}, b""
    with file.open("rb") as handle:
        handle.seek(first)
        content = handle.read(last - first + 1)
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{size}-{file.stat().st_mtime_ns}"'}
    if wanted is None:
        return HTTPStatus.OK, headers, content
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return HTTPStatus.PARTIAL_CONTENT, headers, content


def _span(wanted: str | None, size: int) -> tuple[int, int]:
    """First and last byte of a single range (RFC 9110, section 14.1.2)."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if match is None or not any(match.groups()):
        return 0, size - 1
    start, end = match.groups()
    if not start:
        return max(0, size - int(end)), size - 1
    return int(start), min(int(end), size - 1) if end else size - 1
