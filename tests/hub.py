"""A server that answers as the Hugging Face hub does for one repository, on this machine."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "0" * 40


class Hub:
    """Files of one repository, at every revision the same.

    Attributes:
        asked: paths of the requests for bytes, in order.
        cut: bytes after which each answer breaks off; None for none.
    """

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository, self.files, self.asked = repository, files, list[str]()
        self.cut: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(head=True)

            def do_GET(self) -> None:
                hub.asked.append(self.path)
                self._answer(head=False)

            def _answer(self, head: bool) -> None:
                content = hub.found(self.path)
                first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0] or 0)
                self.send_response(404 if content is None else 206 if first else 200)
                if content is None:
                    self.send_header("X-Error-Code", "RepoNotFound")
                else:
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    if first:
                        self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
                rest = (content or b"")[first:]
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                if not head:
                    self.wfile.write(rest if hub.cut is None else rest[: hub.cut])

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def found(self, path: str) -> bytes | None:
        """The file that a request is for, at any revision."""
        start = f"/{self.repository}/resolve/"
        _, _, file = path.split("?")[0].removeprefix(start).partition("/")
        return self.files.get(file) if path.startswith(start) else None

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
