"""The files of the page: a fixed list, read once, each with an ETag of its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.routes import ROUTES

FOLDER = Path(__file__).with_name("static")
INDEX = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}


@dataclass(frozen=True)
class StaticFile:
    """A file: its content, its media type, and its ETag, in the quotes that the header has."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> StaticFile:
        """From the disk."""
        content = path.read_bytes()
        return cls(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()}"')

    def answer(self, request: Request) -> Response:
        """The file; 304 without it where the client has this very one."""
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers={"etag": self.etag})
        return Response(self.content, media_type=self.media_type, headers={"etag": self.etag})


FILES = {told.name: StaticFile.read(FOLDER / (told.path[1:] or INDEX)) for told in ROUTES if told.public}


def static_routes() -> list[Route]:
    """A route for each file."""
    return [_route(told.path, FILES[told.name]) for told in ROUTES if told.public]


def _route(path: str, file: StaticFile) -> Route:
    async def answer(request: Request) -> Response:
        return file.answer(request)

    return Route(path, answer, methods=["GET"])
