"""The gateway's DICOM listener: C-STORE of CT images and C-ECHO, with pynetdicom.

An image is acknowledged when it is on the disk and in the queue, and not before: a sender that was told so may forget
it.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    LegacyConvertedEnhancedCTImageStorage,
    RLETransferSyntaxes,
)
from pynetdicom import AE, _config, evt

import components  # noqa: F401  # which silences what pydicom quotes of a header
from components.ct.dataset import INFLATED_BYTES, open_dataset
from components.errors import UserError
from serving.gateway.queue import Queue
from serving.gateway.spool import Spool

log = logging.getLogger(__name__)

STORED = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian,
    *JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes, *RLETransferSyntaxes,
]  # fmt: skip
VERIFICATION = "1.2.840.10008.1.1"  # C-ECHO
IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
SUCCESS, NO_ROOM, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000  # PS3.4, table B.2-1
LEAST_FREE_BYTES = 2**30
ASSOCIATIONS = 20
ARTIM_SECONDS, IDLE_SECONDS = 30, 60


@dataclass(frozen=True)
class Door:
    """Where the gateway listens, and to whom.

    Attributes:
        host, port: of the listener; port 0 takes a free one.
        title: its AE title; an association that calls another is refused.
        callers: AE titles that may call; empty lets all.
        tls: for DICOM over TLS; None for plain.
    """

    host: str
    port: int
    title: str
    callers: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None


class Listener:
    """Receives images into a spool.

    Attributes:
        port: on which it listens.
        received: images, since it began.
    """

    def __init__(self, door: Door, spool: Spool, queue: Queue, lock: threading.Lock) -> None:
        """
        Args:
            door: where to listen.
            spool: takes the images.
            queue: is told of them.
            lock: held while an image goes into the one and the other, and by whoever clears a study away.

        Raises:
            UserError: the port is taken.
        """
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # its lines hold identifiers
        _config.STORE_RECV_CHUNKED_DATASET = True  # a file as it comes, and nothing in memory
        tempfile.tempdir = str(spool.incoming)  # where pynetdicom writes it
        self._spool, self._queue, self._lock = spool, queue, lock
        self._open: dict[Any, set[str]] = {}
        self.received = 0
        entity = AE(door.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(door.callers)
        entity.maximum_associations = ASSOCIATIONS
        entity.acse_timeout = entity.dimse_timeout = ARTIM_SECONDS
        entity.network_timeout = IDLE_SECONDS
        for stored in STORED:
            entity.add_supported_context(stored, SYNTAXES)
        entity.add_supported_context(VERIFICATION)
        handlers: list[tuple[evt.EventType, Callable[[evt.Event], Any]]] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_ABORTED, self._gone),
            (evt.EVT_CONN_CLOSE, self._gone),
        ]
        try:
            server = entity.start_server(
                (door.host, door.port), block=False, ssl_context=door.tls, evt_handlers=list(handlers)
            )
        except OSError as error:
            raise UserError(f"--listen {door.host}:{door.port}: {str(error.strerror).lower()}") from None
        assert server is not None  # it does not block
        self._server, self.port = server, int(server.server_address[1])

    def busy(self) -> set[str]:
        """Studies of which an association is open."""
        return {study for studies in list(self._open.values()) for study in list(studies)}

    def close(self) -> None:
        """Take no more; what is being sent is aborted, and its sender knows."""
        self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        path = Path(event.dataset_path)
        if self._spool.free_bytes() < LEAST_FREE_BYTES:
            log.error("less than %d MiB are free on the spool's disk: images are refused", LEAST_FREE_BYTES >> 20)
            return NO_ROOM
        identifiers = identifiers_of(path)
        if identifiers is None:
            log.warning("an image without study, series and instance UID was refused")
            return NOT_UNDERSTOOD
        try:
            with self._lock:
                study = self._spool.put(path, *identifiers)
                self._queue.arrived(study, str(event.assoc.requestor.ae_title))
        except (OSError, UserError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            log.error("an image cannot be kept: %s; its sender was told to come again", said)
            return NO_ROOM
        self._open.setdefault(event.assoc, set()).add(study)
        self.received += 1
        return SUCCESS

    def _released(self, event: evt.Event) -> None:
        try:
            self._queue.settled(self._open.pop(event.assoc, set()))
        except UserError as error:
            log.error("%s", error)  # then patience, in place of quiet, completes the study

    def _gone(self, event: evt.Event) -> None:
        self._open.pop(event.assoc, None)


def identifiers_of(path: Path) -> tuple[str, str, str] | None:
    """Study, series and instance UID of a file; None where it has not all of them."""
    try:
        with path.open("rb") as stream:
            dataset = open_dataset(stream, path.stat().st_size, IDENTIFIERS, INFLATED_BYTES).dataset
        study, series, instance = (str(dataset.get(name) or "").strip("\0 ") for name in IDENTIFIERS)
    except Exception:  # pydicom raises many kinds on damaged files
        return None
    return (study, series, instance) if study and series and instance else None
