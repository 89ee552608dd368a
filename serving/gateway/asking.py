"""The service as the gateway uses it: what it can answer, and one question about one series."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from components.errors import UserError
from serving.gateway.spool import Images

TOKEN_VARIABLE, CA_VARIABLE = "CTFOUNDRY_SERVICE_TOKEN_FILE", "CTFOUNDRY_SERVICE_CA"
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 600.0
LATER = (408, 429, 503)  # the service says so itself: it is no fault of the series
NO_ANSWER = (413, 415, 422)
WAIT_SECONDS = 5.0
DICOM = "dicom"


class LaterError(Exception):
    """The service cannot be asked now; ``seconds`` says when another try is sensible."""

    def __init__(self, message: str, seconds: float = WAIT_SECONDS) -> None:
        super().__init__(message)
        self.seconds = seconds


class NothingError(Exception):
    """The service has looked at the series, and has no answer for it."""


class BrokenError(Exception):
    """The service failed on the series; another try may go better."""


@dataclass(frozen=True)
class Model:
    """What a service serves: the release's digest, and its questions by name: route and parameters."""

    digest: str
    asks: Mapping[str, tuple[str, dict[str, str]]]


class Service:
    """A ctfoundry service."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: such as ``http://127.0.0.1:3000``. A bearer token is in the file that
                ``CTFOUNDRY_SERVICE_TOKEN_FILE`` names, authorities of its certificate in ``CTFOUNDRY_SERVICE_CA``.

        Raises:
            UserError: it is no address, or a file is not there.
        """
        parts = httpx.URL(address) if address.startswith(("http://", "https://")) else None
        if parts is None or not parts.host:
            raise UserError(f"--service {address!r} is not allowed: http(s)://host[:port] of a ctfoundry service")
        headers = {}
        if token_file := os.environ.get(TOKEN_VARIABLE):
            headers["Authorization"] = f"Bearer {_read(token_file, TOKEN_VARIABLE)}"
        authorities = os.environ.get(CA_VARIABLE)
        if authorities:
            _read(authorities, CA_VARIABLE)
        self._client = httpx.Client(
            base_url=address, headers=headers, verify=authorities or True, trust_env=False,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        )  # fmt: skip

    def close(self) -> None:
        """Let its connections go."""
        self._client.close()

    def model(self) -> Model:
        """What it serves now. Raises LaterError where it does not say."""
        try:
            answer = self._client.get("/model")
        except httpx.HTTPError as error:
            raise LaterError(f"the service does not answer ({type(error).__name__})") from None
        if answer.status_code != 200:
            raise LaterError(f"the service: {_said(answer)}", _wait(answer))
        told = answer.json()
        asks: dict[str, tuple[str, dict[str, str]]] = {
            f"segment {head}": ("/segment", {"head": head, "form": DICOM}) for head in told["segments"]
        }
        if "scan" in told["heads"].values():
            asks["classify"] = ("/classify", {"form": DICOM})
        return Model(told["digest"], asks)

    def ask(self, images: Images, route: str, parameters: Mapping[str, str]) -> bytes:
        """The answer to a question about a series, a DICOM file.

        Raises:
            LaterError, NothingError, BrokenError: there is none.
        """
        headers = {"Content-Type": "application/x-tar", "Content-Length": str(images.tar_bytes())}
        try:
            answer = self._client.post(route, params=dict(parameters), content=images.as_tar(), headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise LaterError(f"the service does not answer ({type(error).__name__})") from None
        except httpx.ReadTimeout:
            raise BrokenError(f"the service gave no answer within {ANSWER_SECONDS:.0f} s") from None
        except httpx.HTTPError as error:  # it ended under the question, or closed an upload that it does not want
            raise LaterError(f"the connection to the service broke off ({type(error).__name__})") from None
        if answer.status_code == 200:
            return answer.content
        if answer.status_code in NO_ANSWER and "Retry-After" not in answer.headers:
            raise NothingError(_said(answer))
        if answer.status_code in LATER or answer.status_code == 401:
            raise LaterError(f"the service: {_said(answer)}", _wait(answer))
        raise BrokenError(f"the service: {_said(answer)}")


def _read(path: str, variable: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{variable}: {path}: not a file that can be read as text") from None


def _said(answer: httpx.Response) -> str:
    """Its line, which names no patient."""
    try:
        content: Any = answer.json()
        return str(content["error"])[:400]
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {answer.status_code}"


def _wait(answer: httpx.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else WAIT_SECONDS
