"""A small PACS on 127.0.0.1 that has, on demand, every bad habit known of the real ones."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

PASSWORD = "opensesame"
KEYWORDS = ("StudyDate", "Modality", "PatientID", "BodyPartExamined", "StudyInstanceUID", "SeriesInstanceUID")


def make_series(number: int, instances: int = 3, side: int = 16, **tags: str) -> list[Dataset]:
    """A head series of noise, whose identifiers are MRN<number> and 1.2.826..."""
    made, noise = [], np.random.default_rng(number)
    for n in range(instances):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.7.{number}.{n}")
        image = Dataset()
        image.file_meta = meta
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = f"1.2.826.5.{number}", f"1.2.826.6.{number}"
        image.PatientID, image.StudyDate = f"MRN{number}", "20200101"
        image.Modality, image.BodyPartExamined = "CT", "HEAD"
        image.Rows = image.Columns = side
        image.BitsAllocated = 16
        image.PixelData = noise.integers(0, 4096, (side, side), np.int16).tobytes()
        for keyword, value in tags.items():
            setattr(image, keyword, value)
        made.append(image)
    return made


def as_file(image: Dataset) -> bytes:
    """Its bytes in the DICOM file format (PS3.10)."""
    stream = BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def packed(body: bytes, encoding: str, blanks_at: int | None) -> bytes:
    """``body`` compressed, with 64 MiB of blanks at a place of it. They are never in memory."""
    engine = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    at, blanks = (len(body), 0) if blanks_at is None else (blanks_at, 64)
    begin = engine.compress(body[:at])
    return (
        begin
        + b"".join(engine.compress(b" " * 2**20) for _ in range(blanks))
        + engine.compress(body[at:])
        + engine.flush()
    )


@dataclass
class Pacs:
    """Series and habits. ``fault`` is what goes wrong with the body of WADO-RS or, as a status, with all. ``total`` is
    how many answers it gives in all, whatever the offset; ``warns`` of more with ``warning``; ``delay`` is how long it
    thinks; ``preamble`` and ``epilogue`` stand round a multipart body (RFC 2046, 5.1.1). ``encoding`` is the
    Content-Encoding of all bodies, and ``bomb`` says which then inflates to 64 MiB of blanks more: a ``listing``; a
    series, ``before`` its parts or in the last of its ``parts``; or an instance that is sent ``bare``. ``files`` are
    sent in place of a series."""

    series: list[list[Dataset]]
    cap: int = 10**6
    offset: bool = True
    heeds_filters: bool = True
    rotates: bool = False
    leaves_out: tuple[str, ...] = ()
    fault: str = ""
    busy: int = 0
    total: int = 10**6
    warns: bool = False
    warning: str = '299 pacs: "The number of results exceeded the maximum; additional results can be requested."'
    delay: float = 0.0
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    lower_case: bool = False
    boundary: str = "edge"
    preamble: bytes = b""
    epilogue: bytes = b""
    encoding: str = ""
    bomb: str = ""
    files: list[bytes] = field(default_factory=list)
    token: str = ""
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, instance: Dataset, count: int | None) -> dict[str, Any]:
        element = {e.keyword: e for e in instance if e.keyword in (*KEYWORDS, "SOPInstanceUID")}
        answer = {f"{e.tag:08X}": {"vr": e.VR, "Value": [e.value] if e.value else []} for e in element.values()
                  if e.keyword not in self.leaves_out}  # fmt: skip
        if count is not None:
            del answer["00080018"]
            link = f"{self.url}/studies/{instance.StudyInstanceUID}/series/{instance.SeriesInstanceUID}"
            if "RetrieveURL" not in self.leaves_out:
                answer["00081190"] = {"vr": "UR", "Value": [link]}
            if "NumberOfSeriesRelatedInstances" not in self.leaves_out:
                answer["00201209"] = {"vr": "IS", "Value": [count]}
        return answer

    def page(self, rows: list[dict[str, Any]], query: dict[str, list[str]]) -> tuple[list[dict[str, Any]], bool]:
        """The answers asked for, and whether it says that there are more."""
        begin = int(query.get("offset", ["0"])[0]) if self.offset else 0
        if self.rotates and rows:  # a newer series at the top between two pages
            turn = len(self.asked) % len(rows)
            rows = rows[turn:] + rows[:turn]
        end = begin + min(self.cap, int(query.get("limit", ["1000000"])[0]))
        given = rows[: self.total][begin:end]
        if self.lower_case:
            given = [{tag.lower(): element for tag, element in row.items()} for row in given]
        return given, self.warns and end < len(rows) + (self.total < len(rows))


class Handler(BaseHTTPRequestHandler):
    pacs: Pacs

    def do_GET(self) -> None:
        pacs, url = self.pacs, urlsplit(self.path)
        with pacs.lock:
            pacs.asked.append(self.path)
            pacs.at_once += 1
            pacs.most_at_once = max(pacs.most_at_once, pacs.at_once)
        time.sleep(pacs.delay)
        with pacs.lock:
            pacs.at_once -= 1
        allowed = (
            f"Bearer {pacs.token}" if pacs.token else "Basic " + base64.b64encode(f"ct:{PASSWORD}".encode()).decode()
        )
        if self.headers["Authorization"] != allowed:
            return self.send(401)
        if pacs.busy:
            pacs.busy -= 1
            return self.send(503)
        if pacs.fault.isdigit():
            return self.send(int(pacs.fault))
        if pacs.fault == "login page":
            return self.send(200, b"<html>Log in</html>", "text/html")
        parts, query = url.path.strip("/").split("/")[1:], parse_qs(url.query)
        if parts == ["series"]:
            found = [s for s in pacs.series if not pacs.heeds_filters or s[0].Modality in query.get("Modality", ["CT"])]
            return self.send_json(*pacs.page([pacs.answer(s[0], len(s)) for s in found], query))
        of = next((s for s in pacs.series if s[0].SeriesInstanceUID == parts[3]), [])
        if parts[-1] == "instances":
            return self.send_json(*pacs.page([pacs.answer(i, None) for i in of], query))
        if parts[-1] == "metadata":
            known = next(i for i in of if i.SOPInstanceUID == parts[5])
            return self.send_json([known.to_json_dict() | {"7FE00010": {"vr": "OW"}}])
        return self.send_series(pacs.files or [as_file(image) for image in of])

    def send_series(self, files: list[bytes]) -> None:
        fault = self.pacs.fault
        files = {"missing": files[1:], "twice": [*files, files[0]], "no DICOM": [files[0], b"DICOM?"],
                 "extra": [*files, as_file(make_series(99, 1)[0])]}.get(fault, files)  # fmt: skip
        edge = b"\r\n--" + self.pacs.boundary.encode()
        parts = b"".join(edge + b"\r\nContent-Type: application/dicom\r\n\r\n" + f for f in files)
        body = self.pacs.preamble + parts + edge + b"--" + self.pacs.epilogue
        kind = f'multipart/related; type="application/dicom"; boundary="{self.pacs.boundary}"'
        if self.pacs.bomb == "bare":
            return self.send(200, files[0], "application/dicom", blanks_at=len(files[0]))
        if self.pacs.bomb in ("before", "parts"):
            return self.send(200, body, kind, blanks_at=0 if self.pacs.bomb == "before" else len(parts))
        if fault == "no length":  # as Orthanc does
            return self.send(200, body, kind, length=None)
        if fault in ("chunked", "cut, chunked"):
            return self.send_chunked(body, kind, whole=fault == "chunked")
        if fault in ("cut", "cut, no length"):
            return self.send(200, body[:-40], kind, length=len(body) if fault == "cut" else None)
        if fault in ("stalls", "drips"):
            self.send(200, body[:500], kind, length=len(body))
            with contextlib.suppress(ConnectionError):  # given up, as it should be
                for n in range(500, 600):
                    time.sleep(3 if fault == "stalls" else 0.1)
                    self.wfile.write(body[n : n + 1])
            return None
        return self.send(200, body, kind)

    def send_json(self, answer: list[dict[str, Any]], more: bool = False) -> None:
        content = json.dumps(answer).encode() if answer else b""
        at = 0 if self.pacs.bomb == "listing" else None
        return self.send(200 if answer else 204, content, "application/dicom+json", more=more and bool(answer),
                         blanks_at=at)  # fmt: skip

    def send(
        self, status: int, body: bytes = b"", kind: str = "text/plain", length: int | None = -1, more: bool = False,
        blanks_at: int | None = None,
    ) -> None:  # fmt: skip
        self.send_response(status)
        if self.pacs.encoding:
            body = packed(body, self.pacs.encoding, blanks_at)
            self.send_header("Content-Encoding", self.pacs.encoding)
        if more:
            self.send_header("Warning", self.pacs.warning)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def send_chunked(self, body: bytes, kind: str, whole: bool) -> None:
        """In chunks (RFC 9112, 7.1) of 1 byte and more, one with an extension; without the last where not ``whole``."""
        self.protocol_version = "HTTP/1.1"  # HTTP/1.0 knows no chunks
        self.send_response(200)
        for name, value in (("Content-Type", kind), ("Transfer-Encoding", "chunked"), ("Connection", "close")):
            self.send_header(name, value)
        self.end_headers()
        begin, size = 0, 1
        while begin < len(body) - (0 if whole else 500):
            chunk = body[begin : begin + size]
            self.wfile.write(f"{len(chunk):X}{';note=1' if begin == 0 else ''}\r\n".encode() + chunk + b"\r\n")
            begin, size = begin + size, size % 4000 + 37
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def serve(pacs: Pacs, context: ssl.SSLContext | None = None) -> Iterator[Pacs]:
    """Serve it, over TLS with a context, until the loop over this is left."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"pacs": pacs}))
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    pacs.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}/dicom-web"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield pacs
    server.shutdown()
    server.server_close()
