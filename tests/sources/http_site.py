"""An HTTP server on this machine that resumes, cuts, fails and lies on demand."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Site:
    """What the server holds and how it misbehaves."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next connections are cut, one each."""
    statuses: list[int] = field(default_factory=list)
    """Status codes of the next answers, one each."""
    etag: str | None = '"v1"'
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of each request."""


@contextmanager
def running_site() -> Iterator[Site]:
    """Serve a site on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.requests.append((self.path, wanted))
            content = served.files.get(self.path)
            status = served.statuses.pop(0) if served.statuses else 200 if content is not None else 404
            if content is None or status != 200:
                self.send_error(status)
                return
            offset = 0
            if wanted and self.headers.get("If-Range") == served.etag:
                offset = int(wanted.removeprefix("bytes=").rstrip("-"))
                status = 206 if offset < len(content) else 416
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) - offset if status != 416 else 0))
            if served.etag:
                self.send_header("ETag", served.etag)
            self.end_headers()
            if status != 416:
                self.wfile.write(content[offset : offset + served.cuts.pop(0) if served.cuts else None])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Site(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def zip_of(members: dict[str, bytes]) -> bytes:
    """Return a zip file of (path, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def names_left(folder: Path) -> list[str]:
    """Return what is in a download cache, but for its lock."""
    return [path.name for path in folder.iterdir() if path.name != ".lock"]
