"""Calls the service: one method for each of its routes."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx

from serving.client.answers import (
    Classification,
    Embedding,
    Location,
    Model,
    Retrieval,
    Saliency,
    Segmentation,
    read,
)
from serving.client.packing import packed

AnyPath = str | Path
Point = tuple[float, float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class InPacs:
    """A scan in the service's PACS, named in place of being sent: UIDs of its study and series."""

    study: str
    series: str


AnyScan = AnyPath | InPacs
LATER = (429, 503)  # with Retry-After: another try is sensible


class ServiceError(Exception):
    """The service has not answered; the message is its own line where it gave one.

    Attributes:
        status: of HTTP; 0 where nothing came back, or nothing was sent.
        retry_after: seconds after which another try is sensible, where the service says so.
    """

    def __init__(self, message: str, status: int = 0, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Client:
    """A service at an address.

    Scans are paths: of a zip, a tar or a NIfTI volume, which is sent as it is, or of a folder with the DICOM files of
    one series; or :class:`InPacs`, where the service reads a PACS. ``store=True`` has the result stored there, in the
    scan's study, as DICOM. Points are RAS mm. Every method raises :class:`ServiceError` where there is no answer.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: AnyPath | None = None,
        certificate: tuple[AnyPath, AnyPath] | None = None,
        timeout_s: float = 360.0,
        tries: int = 5,
        longest_wait_s: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connects with the first call.

        Args:
            url: such as ``http://127.0.0.1:3000``.
            token: where the service asks for one.
            ca: PEM file of the authorities that a server's certificate must be of; the system's where None.
            certificate: PEM files of this client's own and its key, where the service asks for one.
            timeout_s: for each step of a call; longer than the service's own bound, which is 300 s.
            tries: of a call, at most, where the service is busy; it says when to come again.
            longest_wait_s: between two tries; where the service asks for more, that is the error.
            sleep: waits.

        Raises:
            ServiceError: a file of certificates is not readable as such.
        """
        if tries < 1:
            raise ValueError(f"tries: {tries} is not allowed: 1 or more")
        self._tries, self._longest, self._sleep = tries, longest_wait_s, sleep
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, verify=_trust(ca, certificate), follow_redirects=False
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def model(self) -> Model:
        """What is served."""
        return _content(Model, self._asked("GET", "/model"))

    def embed(self, scan: AnyScan) -> Embedding:
        """The vector of a scan."""
        return _content(Embedding, self._sent("/embed", scan))

    def classify(self, scan: AnyScan, point_mm: Point | None = None, store: bool = False) -> Classification:
        """What every head answers; those that see a point, at ``point_mm``."""
        return _content(Classification, self._sent("/classify", scan, point_mm=_at(point_mm), **_storing(store)))

    def classify_report(self, scan: AnyScan, point_mm: Point | None = None) -> bytes:
        """The same as a DICOM structured report, of a scan that is DICOM."""
        return self._sent("/classify", scan, point_mm=_at(point_mm), form="dicom").content

    def segment(self, scan: AnyScan, head: str | None = None, store: bool = False) -> Segmentation:
        """The structures of a scan and their volumes; ``head`` where the release has several that segment."""
        return _content(Segmentation, self._sent("/segment", scan, head=head, **_storing(store)))

    def segment_file(self, scan: AnyScan, form: Literal["nifti", "dicom"] = "nifti", head: str | None = None) -> bytes:
        """The label map as .nii.gz on the scan's grid, or as DICOM SEG."""
        return self._sent("/segment", scan, head=head, form=form).content

    def saliency(
        self,
        scan: AnyScan,
        head: str | None = None,
        point_mm: Point | None = None,
        of_class: str | None = None,
        way: Literal["occlusion", "gradients"] = "occlusion",
        blocks: int | None = None,
        store: bool = False,
    ) -> Saliency:
        """What a head's answer rests on."""
        query = {"head": head, "point_mm": _at(point_mm), "of_class": of_class, "way": way, "blocks": blocks}
        return _content(Saliency, self._sent("/saliency", scan, **query, **_storing(store)))

    def saliency_map(
        self,
        scan: AnyScan,
        head: str | None = None,
        point_mm: Point | None = None,
        of_class: str | None = None,
        way: Literal["occlusion", "gradients"] = "occlusion",
        blocks: int | None = None,
        form: Literal["nifti", "dicom", "capture"] = "nifti",
    ) -> bytes:
        """The same as a map: .nii.gz on the scan's grid, a Parametric Map, or a slice of it as a Secondary Capture."""
        query = {"head": head, "point_mm": _at(point_mm), "of_class": of_class, "way": way, "blocks": blocks}
        return self._sent("/saliency", scan, **query, form=form).content

    def locate(self, scan: AnyScan, other: AnyScan, point_mm: Point) -> Location:
        """Where in ``other`` a point of ``scan`` is."""
        scans = {"scan": scan, "other": other}
        return _content(Location, self._asked("POST", "/locate", scans, {"point_mm": _at(point_mm)}))

    def retrieve(self, scan: AnyScan, nearest: int | None = None) -> Retrieval:
        """The cases of the index that are most like a scan."""
        return _content(Retrieval, self._sent("/retrieve", scan, nearest=nearest))

    def preview(self, scan: AnyScan) -> bytes:
        """The scan on the model's grid, .nii.gz in HU."""
        return self._sent("/preview", scan).content

    def _sent(self, path: str, scan: AnyScan, **query: str | int | None) -> httpx.Response:
        return self._asked("POST", path, {"scan": scan}, query)

    def _asked(
        self,
        method: str,
        path: str,
        scans: Mapping[str, AnyScan] | None = None,
        query: Mapping[str, str | int | None] | None = None,
    ) -> httpx.Response:
        """The answer with status 200; where the service is busy, after as many tries as are allowed."""
        params = {name: value for name, value in (query or {}).items() if value is not None}
        sent = {field: Path(of) for field, of in (scans or {}).items() if not isinstance(of, InPacs)}
        for field, of in (scans or {}).items():
            if isinstance(of, InPacs):
                prefix = "" if field == "scan" else f"{field}_"
                params |= {f"{prefix}study": of.study, f"{prefix}series": of.series}
        with ExitStack() as stack:
            try:
                files = {field: ("scan", stack.enter_context(packed(of))) for field, of in sent.items()}
            except (OSError, ValueError) as error:
                raise ServiceError(_line(error)) from None
            for left in reversed(range(self._tries)):
                try:
                    # httpx begins a file again by itself
                    response = self._http.request(method, path, params=params, files=files or None)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    raise ServiceError(f"{self._http.base_url}: no answer: {_line(error)}") from None
                if response.status_code == 200:
                    return response
                refused = _refusal(response)
                wait = refused.retry_after
                if left == 0 or refused.status not in LATER or wait is None or wait > self._longest:
                    raise refused
                self._sleep(wait)
        raise AssertionError("the last try returns or raises")


def _storing(store: bool) -> dict[str, str]:
    return {"form": "dicom", "store": "true"} if store else {}


def _trust(ca: AnyPath | None, certificate: tuple[AnyPath, AnyPath] | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(*certificate)
    except (OSError, ssl.SSLError) as error:
        raise ServiceError(
            f"certificates {ca or ''} {certificate or ''}: not readable as PEM: {_line(error)}"
        ) from None
    return context


def _content(kind: type[T], response: httpx.Response) -> T:
    try:
        return read(kind, response.json())
    except ValueError as error:
        raise ServiceError(f"an answer that this client does not know: {_line(error)}", response.status_code) from None


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        told: Any = response.json()
    except ValueError:
        told = None
    said = told.get("error") if isinstance(told, dict) else None
    message = str(said) if said else f"HTTP {response.status_code} {response.reason_phrase}".strip()
    after = response.headers.get("retry-after", "")
    return ServiceError(message, response.status_code, int(after) if after.isascii() and after.isdigit() else None)


def _at(point_mm: Point | None) -> str | None:
    return None if point_mm is None else ",".join(repr(float(mm)) for mm in point_mm)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
