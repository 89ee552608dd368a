"""A client of this machine's PACS (DICOMweb, DICOM PS3.18), watched, whose every failure is one line.

How the PACS is reached stands in the environment, never in parameters or tables:

- ``CTFOUNDRY_DICOMWEB_URL``: root of the service, such as ``https://pacs.hospital.example/dicom-web``.
- ``CTFOUNDRY_DICOMWEB_USER`` and ``CTFOUNDRY_DICOMWEB_PASSWORD``, or ``CTFOUNDRY_DICOMWEB_TOKEN`` (a bearer token);
  none of them where the PACS asks for none.
- ``CTFOUNDRY_DICOMWEB_CA``: PEM file of the authorities that may vouch for its certificate, where they are a site's
  own.

What it sends is not to be trusted: HTTP bodies may be compressed, and a megabyte inflate to gigabytes. So bytes are
counted as they come out of that, and an answer that passes what any honest one has is given up.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.web import _Transaction
from requests.auth import HTTPBasicAuth
from requests.utils import get_environ_proxies
from retrying import RetryError

from components.ct.dataset import INFLATED_BYTES
from components.errors import UserError
from components.sources.config import TransferConfig

for _name in ("dicomweb_client", "retrying", "urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # their lines hold UIDs

PREFIX = "CTFOUNDRY_DICOMWEB_"
CONNECT_SECONDS = 10.0
LISTING_BYTES = 2**28  # of one answer in JSON: 150,000 series at once, of a PACS that knows no pages, fit
SERIES_BYTES = 2**34  # of one series: 5,000 slices of 1024 x 1024 fit; an instance of it may have INFLATED_BYTES
# Without the asterisk a PACS decompresses what it sends.
AS_STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
NO_JSON = f"its answer is no DICOM JSON; is {PREFIX}URL the root of a DICOMweb service?"
MORE = re.compile(r"299\b.*(additional results|exceeded)", re.IGNORECASE | re.DOTALL)  # others warn of other things
STATUSES = {
    401: f"access denied (401); check {PREFIX}USER and _PASSWORD, or _TOKEN",
    403: "access denied (403); may this user read the series?",
    404: f"not found (404); is {PREFIX}URL the root of a DICOMweb service, and the series still there?",
}
# What requests says of a connection, and what that means; the first that is found counts.
MEANINGS = (
    ("connecttimeout", f"no connection within {CONNECT_SECONDS:.0f} s; is {PREFIX}URL right, and the network up?"),
    ("connection refused", f"refuses connections; is {PREFIX}URL right, and the service up?"),
    ("nameresolutionerror", f"the host of {PREFIX}URL is not known"),
    ("proxyerror", "the proxy of this machine's environment does not let through"),
    ("sslerror", f"TLS failed; is {PREFIX}URL an https address, and _CA a PEM file of certificates?"),
    ("jsondecodeerror", NO_JSON),
    ("badstatusline", f"answers in no HTTP; is the port of {PREFIX}URL right?"),
)


class Parts:
    """The parts of a multipart message, piece by piece, without what may stand before and after them (RFC 2046, 5.1.1).

    Attributes:
        closed: the delimiter that ends the message has come.
        size: bytes of the part that is coming, so far.
    """

    def __init__(self, boundary: str) -> None:
        self._delimiter, self._closing = f"\r\n--{boundary}".encode(), f"\r\n--{boundary}--".encode()
        self._held, self._begun, self.closed = b"\r\n", False, False  # a message may begin with its first delimiter
        self.size = 0

    def keep(self, piece: bytes) -> bytes:
        """What of a piece, and of what was held back before, belongs to the parts."""
        if self.closed:
            return b""
        data = self._held + piece
        if not self._begun:
            begin = data.find(self._delimiter)
            if begin < 0:
                self._held = data[1 - len(self._delimiter) :]
                return b""
            self._begun, data = True, data[begin:]
        last = data.rfind(self._delimiter)  # one that began in the piece before is whole in this: it was held back
        self.size = self.size + len(piece) if last < 0 else len(data) - last
        end = data.find(self._closing)
        self.closed = end >= 0
        cut = end + len(self._closing) if self.closed else max(0, len(data) - len(self._closing) + 1)
        self._held = data[cut:]
        return data[:cut]


class _Body:
    """A response's body that is given up where it comes too slowly or grows too large, and that knows its end.

    Orthanc, for one, sends WADO-RS without a length: a server that dies looks like one that is done, but for the
    delimiter that closes a multipart message.
    """

    def __init__(self, response: requests.Response, transfer: TransferConfig | None) -> None:
        boundary = re.search(r'boundary="?([^";]+)', response.headers.get("Content-Type", ""), re.IGNORECASE)
        # By what was asked for: to what was not, a PACS may give any content type.
        listing = response.request.headers.get("Accept") != AS_STORED["Accept"]
        self._parts = Parts(boundary[1].strip()) if boundary and not listing else None
        self._allowed = LISTING_BYTES if listing else SERIES_BYTES if self._parts else INFLATED_BYTES
        self._what = "answers a query with" if listing else "sends a series of" if self._parts else "sends"
        self._advice = f"; is {PREFIX}URL right? Then lower cohort.dicomweb.page" if listing else ""
        self._raw, self._transfer, self._begin = response.raw, transfer, time.monotonic()

    def stream(self, amount: int, decode_content: bool) -> Iterator[bytes]:
        """Pieces as they arrive: a read of ``amount`` whole bytes would wait for a server that drips."""
        arrived = 0
        while piece := self._raw.read1(amount, decode_content=decode_content):
            arrived += len(piece)
            self._check_time(arrived)
            kept = self._parts.keep(piece) if self._parts else piece
            self._check_size(arrived)
            if kept:
                yield kept
        if self._parts and not self._parts.closed:
            raise UserError(f"PACS: the connection broke off after {arrived} bytes")

    def _check_time(self, arrived: int) -> None:
        passed = time.monotonic() - self._begin
        if self._transfer is not None and passed > self._transfer.deadline_s(arrived):
            raise UserError(
                f"transfer too slow: {arrived} bytes in {passed:.0f} s; "
                f"at least {self._transfer.slowest_mb_s:g} MB/s is expected"
            )

    def _check_size(self, arrived: int) -> None:
        """Of bytes as they are when inflated: those on the wire say nothing."""
        if arrived > self._allowed:
            raise UserError(f"PACS: {self._what} more than {self._allowed} bytes, which is not allowed{self._advice}")
        if self._parts and self._parts.size > INFLATED_BYTES:
            raise UserError(f"PACS: sends an instance of more than {INFLATED_BYTES} bytes, which is not allowed")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _setting(name: str) -> str:
    return os.environ.get(PREFIX + name, "").strip()


def _url() -> str:
    """Raises UserError where it is not set or no address; it is not quoted, for it may hold a password."""
    url = _setting("URL").rstrip("/")
    try:
        requests.Request("GET", url).prepare()  # refuses what no request could go to, such as a port that is no number
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        state = "not an address" if url else "not set"
        raise UserError(f"{PREFIX}URL: {state}; allowed: http(s)://host[:port]/path of a DICOMweb service")
    if "@" in parts.netloc:
        raise UserError(f"{PREFIX}URL: holds a user name; set {PREFIX}USER and {PREFIX}PASSWORD instead")
    return url


def _open_session(url: str) -> requests.Session:
    """A session that takes credentials and authorities from this module's variables alone: ``REQUESTS_CA_BUNDLE`` and
    ``.netrc`` would silently go before them."""
    user, password, token, authorities = (_setting(name) for name in ("USER", "PASSWORD", "TOKEN", "CA"))
    if bool(user) != bool(password) or (user and token):
        raise UserError(f"{PREFIX}USER, _PASSWORD, _TOKEN: set user and password, or the token, or none")
    if authorities and not Path(authorities).is_file():
        raise UserError(f"{PREFIX}CA: not a file; allowed: a PEM file of certificates")
    session = requests.Session()
    session.trust_env = False
    session.proxies = get_environ_proxies(url)
    session.verify = authorities or True
    if user:
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    if token:
        session.headers["Authorization"] = f"Bearer {token}".encode().decode("latin-1")
    return session


class Client(DICOMwebClient):
    """A client that also knows whether the last answer was all.

    Attributes:
        more: the PACS said that it has more than it answered (PS3.18, 8.3.4.4: Warning 299).
    """

    more = False

    def iter_files(self, study: str, series: str) -> Iterator[bytes]:
        """The files of a series, as they are stored there. Unlike ``iter_series``, it leaves them unread: pydicom
        inflates a deflated one in one go, whatever that takes."""
        url = self._get_series_url(_Transaction.RETRIEVE, study, series)
        response = self._http_get(url, headers=dict(AS_STORED), stream=True)
        if response.headers.get("Content-Type", "").startswith("application/dicom"):
            yield response.content  # against the standard, some send a single instance bare
            return
        yield from self._decode_multipart_message(response, stream=True)


@contextmanager
def asking(answer_s: float, transfer: TransferConfig | None = None, attempts: int = 1) -> Iterator[Client]:
    """A client of this machine's PACS. What goes wrong with it is one line, without address, UIDs or credentials.

    Args:
        answer_s: seconds without a byte after which the PACS is given up.
        transfer: how slowly an answer may come; None sets no limit.
        attempts: of each request, where the PACS cannot be reached or is too busy.
    """
    url = _url()

    def watch(response: requests.Response, *_: Any, **__: Any) -> None:
        client.more = bool(MORE.search(response.headers.get("Warning", "")))
        response.raw = _Body(response, transfer)

    with _open_session(url) as session:
        client = Client(url, session, callback=watch, permissive_uid=True, timeout=(CONNECT_SECONDS, answer_s))
        client.set_http_retry_params(attempts > 1, attempts, wait_exponential_multiplier=500)
        try:
            yield client
        except UserError:
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, RetryError) as error:
            raise UserError(f"PACS: {_meaning(error, answer_s)}") from None


def _meaning(error: Exception, answer_s: float) -> str:
    """What an error means to a person. Its own text is never quoted, but for OpenSSL's verdict on a certificate."""
    answer = error.last_attempt.value if isinstance(error, RetryError) else getattr(error, "response", None)
    if isinstance(answer, requests.Response) and answer.status_code >= 400:
        status = answer.status_code
        return STATUSES.get(status, f"failed ({status})" if status >= 500 else f"refused the query ({status})")
    text = repr(error)
    verdict = re.search(r"certificate verify failed: ([a-zA-Z -]+)", text)
    if verdict:
        return f"its certificate is not trusted ({verdict[1].strip()}); set {PREFIX}CA to a PEM file of its authority"
    if isinstance(error, requests.ReadTimeout) or "ReadTimeoutError" in text or "Read timed out" in text:
        return f"no byte for {answer_s:.0f} s"
    return next((said for sign, said in MEANINGS if sign in text.lower()), "the connection broke off")
