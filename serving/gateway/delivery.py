"""Where answers go: into the PACS by STOW-RS, or to a DICOM node by C-STORE. Both into the study of the scan."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

import components  # noqa: F401  # which silences what pydicom quotes of a header
from components.errors import UserError
from components.sources.pacs import asking
from serving.gateway.asking import BrokenError, LaterError
from serving.pacs import store_object

NODE = re.compile(r"(?P<title>[^@\\\s]{1,16})@(?P<host>[^@\s]+):(?P<port>\d{1,5})")
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
SECONDS = 30


class Delivery(Protocol):
    """Takes answers."""

    def deliver(self, file: Path) -> None:
        """Deliver a DICOM file. Taking the same one again changes nothing: its UIDs are the same.

        Raises:
            LaterError: it cannot be reached.
            BrokenError: it refuses this file.
        """

    def holds(self, file: Path) -> bool | None:
        """Whether it has a file that it took: one that dies may lose what it had acknowledged. None where it does not
        say. Raises LaterError where it cannot be reached."""


class Dicomweb:
    """The PACS that ``CTFOUNDRY_DICOMWEB_*`` names."""

    def deliver(self, file: Path) -> None:
        """See :meth:`Delivery.deliver`."""
        try:
            store_object(file)
        except UserError as error:
            refused = "did not take" in str(error) or "refused" in str(error)
            raise (BrokenError if refused else LaterError)(str(error)) from None

    def holds(self, file: Path) -> bool | None:
        """See :meth:`Delivery.holds`."""
        study, series, instance = _identifiers(file)
        try:
            with asking(SECONDS) as client:
                return bool(client.search_for_instances(study, series, search_filters={"SOPInstanceUID": instance}))
        except UserError as error:
            raise LaterError(str(error)) from None


class Node:
    """A DICOM node."""

    def __init__(self, title: str, host: str, port: int, own_title: str) -> None:
        self._title, self._host, self._port, self._own = title, host, port, own_title

    def deliver(self, file: Path) -> None:
        """See :meth:`Delivery.deliver`."""
        made = pydicom.dcmread(file)
        with self._associated(made.SOPClassUID) as association:
            if not association.accepted_contexts:
                raise BrokenError(f"DICOM node {self._title}: takes no {made.SOPClassUID.name}")
            status = association.send_c_store(made).get("Status")
        if status is None or status >> 8 == 0xA7:  # no answer, or out of resources
            raise LaterError(f"DICOM node {self._title}: cannot take it now")
        if status and status >> 12 != 0xB:  # warnings tell of what was taken
            raise BrokenError(f"DICOM node {self._title}: refuses it (status {status:04X}H)")

    def holds(self, file: Path) -> bool | None:
        """See :meth:`Delivery.holds`; by C-FIND, where the node knows it."""
        asked = pydicom.Dataset()
        asked.QueryRetrieveLevel = "IMAGE"
        asked.StudyInstanceUID, asked.SeriesInstanceUID, asked.SOPInstanceUID = _identifiers(file)
        with self._associated(STUDY_ROOT_FIND) as association:
            if not association.accepted_contexts:
                return None
            said = [status.get("Status") for status, _ in association.send_c_find(asked, STUDY_ROOT_FIND)]
        if not said or said[-1] != 0:
            return None  # it cannot say, or does not want to
        return any(status in (0xFF00, 0xFF01) for status in said)

    @contextmanager
    def _associated(self, sop_class: str) -> Iterator[Association]:
        """An association for one SOP class. Raises LaterError where there is none, or it breaks off."""
        entity = AE(self._own)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = SECONDS
        entity.connection_timeout = SECONDS
        entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        association = entity.associate(self._host, self._port, ae_title=self._title)
        if not association.is_established and not association.is_rejected and association.rejected_contexts:
            yield association  # pynetdicom has ended it: no context was accepted
            return
        if not association.is_established:
            what = "rejects the association" if association.is_rejected else "does not answer"
            raise LaterError(f"DICOM node {self._title}: {what}")
        try:
            yield association
        except (RuntimeError, ValueError) as error:
            raise LaterError(f"DICOM node {self._title}: the association broke off ({type(error).__name__})") from None
        finally:
            association.release()


def _identifiers(file: Path) -> tuple[str, str, str]:
    made = pydicom.dcmread(file, stop_before_pixels=True)
    return str(made.StudyInstanceUID), str(made.SeriesInstanceUID), str(made.SOPInstanceUID)


def delivery_to(text: str, own_title: str) -> Delivery:
    """The delivery that an option names: ``dicomweb``, or ``TITLE@host:port``. Raises UserError for any other."""
    if text == "dicomweb":
        with asking(SECONDS):  # looks at what is configured
            return Dicomweb()
    node = NODE.fullmatch(text)
    if node is None or not 0 < int(node["port"]) < 65536:
        raise UserError(f"--results {text!r} is not allowed: dicomweb, or TITLE@host:port of a DICOM node")
    return Node(node["title"], node["host"], int(node["port"]), own_title)
