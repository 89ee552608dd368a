"""A hospital's PACS: series found by QIDO-RS and brought in by WADO-RS (DICOM PS3.18), with dicomweb-client.

How this machine reaches it stands in the environment, see ``components/sources/pacs.py``; which series are taken, in
``cohort.dicomweb``.

Study and series UIDs lead to a patient, and a series cannot be fetched without them. So a series' ``location`` is its
keyed pseudonym, and a map from pseudonym to UIDs stays on this machine: ``.ctfoundry/dicomweb/<place>.parquet``, which
git ignores and only its owner may read. Stage `cohort` writes it. Where it is missing, or lacks a series (a fresh
checkout, another machine), `acquire` asks the PACS for its CT series again; the same ``CTFOUNDRY_PSEUDONYM_KEY`` then
gives the same pseudonyms.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from pydicom.errors import InvalidDicomError

from components.ct.dataset import INFLATED_BYTES, InflateError, open_dataset
from components.ct.keys import accession_key, patient_key, require_secret, series_key, study_key, uid_key
from components.errors import UserError
from components.files import STATE
from components.sources.config import DicomwebConfig, SourceConfig, TransferConfig
from components.sources.interface import Listed, Listing
from components.sources.pacs import NO_JSON, SERIES_BYTES, Client, asking

log = logging.getLogger(__name__)

MAPS = STATE / "dicomweb"
CHECK_SECONDS = 20.0
QUERY_SECONDS = 60.0
QUERY_ATTEMPTS = 3  # of one page: a listing of hundreds must not end with one hiccup
PASSES = 5
QUESTIONS = 8  # at a time, where a PACS must be asked series by series: 150,000 of them take minutes and not hours
SLICE_BYTES = 526_000  # QIDO tells no bytes: a slice of 512x512 pixels of 16 bit, with its header
COUNT = "NumberOfSeriesRelatedInstances"
TAGS = {
    "StudyDate": "00080020", "AccessionNumber": "00080050", "Modality": "00080060", "RetrieveURL": "00081190",
    "PatientID": "00100020", "BodyPartExamined": "00180015", "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E", COUNT: "00201209", "SOPInstanceUID": "00080018",
}  # fmt: skip
ASKED = ("PatientID", "AccessionNumber", "StudyDate", "BodyPartExamined", COUNT)
UID = re.compile(r"[0-9A-Za-z.]{1,64}")  # laxer than the standard, as PACS are, but safe in an address

Row = dict[str, str]  # keyword to value; '' where the PACS says that it is empty, absent where it says nothing


class SeriesTooLargeError(UserError):
    """A series has more bytes than it may have here."""


class DicomwebSource:
    """Data are told apart by ``location``, a pseudonym of UIDs that are unique in the world: no version is needed."""

    version = ""

    def __init__(self, config: SourceConfig, place: str) -> None:
        self._config, self._asked, self._map = config, config.dicomweb, MAPS / f"{place}.parquet"

    def list_series(self, held_out: frozenset[str]) -> Listing:
        require_secret("dicomweb")
        with asking(QUERY_SECONDS, attempts=QUERY_ATTEMPTS) as client:
            rows = ct_series(client, self._asked)
        _remember(rows, self._map)
        chosen, funnel = _choose(rows, self._asked)
        chosen = all_known(chosen, "PatientID", self._asked.page)
        if not chosen:
            left = ", ".join(f"{step['criterion']}: {step['series']}" for step in funnel)
            raise UserError(f"PACS: no CT series is left ({left}); see cohort.dicomweb in params.yaml")
        receipt = {"query": "QIDO-RS", "parameters": json.loads(self._asked.model_dump_json())}
        return Listing([self._listed(key, row) for key, row in sorted(chosen.items())],
                       selection={"funnel": funnel, "receipt": receipt})  # fmt: skip

    def _listed(self, key: str, row: Row) -> Listed:
        files = count_of(row)
        return Listed(
            series=key,
            # Studies without a PatientID are nobody's: as one patient they would all fall into one split.
            patient=patient_key(row.get("PatientID") or f"no PatientID|{row['StudyInstanceUID']}"),
            study=study_key(row["StudyInstanceUID"]),
            uid=uid_key(row["SeriesInstanceUID"]),
            accession=accession_key(row.get("AccessionNumber", "")),
            name=key,
            location=key,
            files=files,
            bytes=files * SLICE_BYTES,
            collection=self._config.collection,
            licence=self._config.licence,
            doi=self._config.doi,
        )

    def check(self) -> None:
        """As the protocol says; also makes the map anew where it is missing, once, before the workers need it."""
        require_secret("dicomweb")
        with asking(CHECK_SECONDS) as client:
            client.search_for_series(limit=1, search_filters={"Modality": "CT"})
        if not self._map.is_file():
            _ask_again(self._map.absolute(), self._asked)

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        """Stream the series' instances into numbered files, in the order of their UIDs; one is in memory at a time."""
        study, series = self._uids(str(row["location"]))
        with asking(transfer.stall_s, transfer) as client:
            listed = instances_of(client, study, series, self._asked.page)
            if len(listed) < max(1, int(row["files"])):
                raise UserError(
                    f"PACS: lists {len(listed)} instances of the series, {row['files']} when the cohort was made; "
                    "it has changed: run `dvc repro --force cohort`"
                )
            receive_instances(client, study, series, listed, folder)
        return None

    def _uids(self, key: str) -> tuple[str, str]:
        found = _look_up(self._map, key)
        if found is None:
            _ask_again(self._map.absolute(), self._asked)
            found = _look_up(self._map, key)
        if found is None:
            raise UserError(
                "PACS: it lists no CT series of this pseudonym; was it removed there, or is CTFOUNDRY_PSEUDONYM_KEY "
                "another than when the cohort was made?"
            )
        return found


def _identity(row: Row) -> str:
    """Both UIDs: some PACS hold one series UID in two studies. Without them, all that is known."""
    study, series = row.get("StudyInstanceUID"), row.get("SeriesInstanceUID")
    return f"{study}|{series}" if study and series else json.dumps(row, sort_keys=True)


def count_of(row: Row) -> int:
    """Instances of a series, as the PACS counts them; 0 where it does not."""
    text = row.get(COUNT, "")
    return int(text) if text.isdigit() else 0


# The map.


def _remember(rows: dict[str, Row], path: Path) -> None:
    from components.tables import write_table

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = sorted((key, r["StudyInstanceUID"], r["SeriesInstanceUID"]) for key, r in rows.items() if _fetchable(r))
    write_table(path, pd.DataFrame(known, columns=["series", "study_uid", "series_uid"], dtype=str))


def _look_up(path: Path, key: str) -> tuple[str, str] | None:
    if not path.is_file():
        return None
    import pyarrow.parquet as pq  # the service, which asks a PACS too, keeps no map and does without

    found = pq.read_table(path, filters=[("series", "=", key)]).to_pylist()
    return (found[0]["study_uid"], found[0]["series_uid"]) if found else None


@cache
def _ask_again(path: Path, config: DicomwebConfig) -> None:
    """Make the map anew; once per process, however many series it lacks."""
    require_secret("dicomweb")  # without it every series would get another pseudonym
    with asking(QUERY_SECONDS, attempts=QUERY_ATTEMPTS) as client:
        _remember(ct_series(client, config), path)


# QIDO-RS.


def ct_series(client: Client, config: DicomwebConfig) -> dict[str, Row]:
    """Pseudonym to row of every CT series, of the study dates asked for where the PACS heeds them."""
    filters = {"Modality": "CT"}
    if config.study_dates is not None:
        filters["StudyDate"] = "-".join(day.replace("-", "") for day in config.study_dates)

    def search(offset: int) -> list[Any]:
        return client.search_for_series(limit=config.page, offset=offset, fields=ASKED, search_filters=filters)

    rows = _all_pages(client, search, config.page, _identity, "series")
    return {series_key(_identity(row)): row for row in rows if row.get("Modality", "CT") == "CT"}


def instances_of(client: Client, study: str, series: str, page: int) -> list[str]:
    """SOPInstanceUIDs of a series, sorted."""

    def search(offset: int) -> list[Any]:
        return client.search_for_instances(study, series, limit=page, offset=offset)

    rows = _all_pages(client, search, page, lambda row: row.get("SOPInstanceUID", ""), "instances")
    return sorted(row["SOPInstanceUID"] for row in rows if row.get("SOPInstanceUID"))


def _all_pages(
    client: Client, search: Callable[[int], list[Any]], page: int, identity: Callable[[Row], str], what: str
) -> Iterable[Row]:
    """Every answer to a query, in pages until one brings nothing new; a PACS may send fewer than it was asked for.

    An order that changes between pages shows in answers that come twice, and then others may not have come at all: the
    pages are read again until they bring nothing new.

    Raises:
        UserError: the PACS ignores ``offset``, or says that it has more and does not give it, so that the rest cannot
            be asked for; or its answers never settle.
    """
    found: dict[str, Row] = {}
    for _ in range(PASSES):
        known, received = len(found), 0
        first: set[str] = set()
        seen: set[str] = set()
        more = False  # what is behind the last answer that held something
        while batch := _rows(search(received)):
            more = client.more
            names = {identity(row) for row in batch}
            if received and names == first:
                if len(batch) == page or more:
                    raise UserError(
                        f"PACS: ignores the offset of a query and answers the same {received} {what} each time; set "
                        "cohort.dicomweb.page to more than it holds, or narrow cohort.dicomweb.study_dates"
                    )
                log.warning("PACS: ignores the offset of a query: the %d %s it lists are taken for all", received, what)
                return found.values()
            first = first or names
            received += len(batch)
            found.update({identity(row): row for row in batch})
            if names <= seen:
                break
            seen |= names
        else:
            if more:
                raise UserError(
                    f"PACS: says that it has more than {len(found)} {what}, and does not give them; raise its limit of "
                    "a query's answers, or narrow cohort.dicomweb.study_dates"
                )
        if received == len(seen) or (known and len(found) == known):
            return found.values()
    raise UserError(f"PACS: lists other {what} each time it is asked; try again when it is at rest")


def _rows(answers: list[Any]) -> list[Row]:
    if not all(isinstance(answer, dict) for answer in answers):
        raise UserError(f"PACS: {NO_JSON}")
    return [_row(answer) for answer in answers]


def _row(answer: dict[str, Any]) -> Row:
    """An answer in the DICOM JSON model (PS3.18 annex F) as text; UIDs that it lacks are read from its RetrieveURL."""
    row, elements = {}, {tag.upper(): element for tag, element in answer.items()}  # some write them in lower case
    for keyword, tag in TAGS.items():
        element = elements.get(tag)
        if isinstance(element, dict):
            values = element.get("Value") or [""]
            row[keyword] = "" if values[0] is None else str(values[0]).strip()
    if not row.get(COUNT):
        row.pop(COUNT, None)  # no series has an empty one: the PACS has not counted
    link = re.search(r"/studies/([^/?]+)/series/([^/?]+)", row.get("RetrieveURL", ""))
    if link:
        row = {"StudyInstanceUID": link[1], "SeriesInstanceUID": link[2]} | {k: v for k, v in row.items() if v}
    return row


def _fetchable(row: Row) -> bool:
    return all(UID.fullmatch(row.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID"))


def all_known(rows: dict[str, Row], keyword: str, page: int) -> dict[str, Row]:
    """``rows`` with ``keyword``; what the PACS left out is asked for, several at a time."""
    lacking = [key for key, row in rows.items() if keyword not in row]
    if not lacking:
        return rows
    log.info("PACS: says no %s of %d of %d series; each is asked for", keyword, len(lacking), len(rows))

    def ask(keys: list[str]) -> dict[str, Row]:
        with asking(QUERY_SECONDS, attempts=QUERY_ATTEMPTS) as client:
            return {key: _known(client, rows[key], keyword, page) for key in keys}

    with ThreadPoolExecutor(QUESTIONS) as questions:
        shares = questions.map(ask, [lacking[n::QUESTIONS] for n in range(min(QUESTIONS, len(lacking)))])
        told = {key: row for share in shares for key, row in share.items()}
    return {key: told.get(key, row) for key, row in rows.items()}


def _known(client: Client, row: Row, keyword: str, page: int) -> Row:
    """``row`` with ``keyword``, which the PACS left out: its instances are counted and one's header is asked for."""
    study, series = row["StudyInstanceUID"], row["SeriesInstanceUID"]
    instances = instances_of(client, study, series, page)
    row = {keyword: "", **row, COUNT: str(len(instances))}
    if keyword == COUNT or not instances:
        return row
    header = _rows([client.retrieve_instance_metadata(study, series, instances[0])])[0]
    return {**row, keyword: header.get(keyword, "")}


def _choose(rows: dict[str, Row], config: DicomwebConfig) -> tuple[dict[str, Row], list[dict[str, Any]]]:
    """The series that fulfil the config, and the funnel: how many are left after each criterion."""
    criteria: list[tuple[str, str, Callable[[str], bool]]] = []
    if config.study_dates is not None:
        first, last = (day.replace("-", "") for day in config.study_dates)
        words = f"study from {config.study_dates[0]} to {config.study_dates[1]}"
        criteria.append((words, "StudyDate", lambda date: first <= date <= last))
    if config.body_parts is not None:
        parts = config.body_parts
        criteria.append((f"body part {' or '.join(parts)}", "BodyPartExamined", lambda part: part.upper() in parts))
    least = config.min_instances
    criteria.append((f"at least {least} instances", COUNT,
                     lambda count: count.isdigit() and int(count) >= least))  # fmt: skip
    funnel = [{"criterion": "CT series that the PACS lists", "series": len(rows)}]
    rows = {key: row for key, row in rows.items() if _fetchable(row)}
    funnel.append({"criterion": "with study and series UID", "series": len(rows)})
    for words, keyword, holds in criteria:
        rows = all_known(rows, keyword, config.page)
        rows = {key: row for key, row in rows.items() if holds(row[keyword])}
        funnel.append({"criterion": words, "series": len(rows)})
    return rows, funnel


# WADO-RS.


def receive_instances(
    client: Client, study: str, series: str, listed: Sequence[str], folder: Path, most_bytes: int = SERIES_BYTES
) -> None:
    """Bring a series in as numbered files; one is in memory at a time.

    Args:
        client: of the PACS.
        study, series: UIDs.
        listed: SOPInstanceUIDs that the series has, in the order of the files.
        folder: empty.
        most_bytes: that all files together may have.

    Raises:
        SeriesTooLargeError: the files have more bytes.
        UserError: just these were not sent, each once; or what :func:`asking` raises.
    """
    names = {uid: f"{number:06d}.dcm" for number, uid in enumerate(listed)}
    received: Counter[str] = Counter()
    written = 0
    for uid, content in _instances_sent(client, study, series):
        written += len(content)
        if written > most_bytes:
            raise SeriesTooLargeError(f"PACS: a series of more than {most_bytes} bytes is not allowed")
        if uid in names and uid not in received:
            (folder / names[uid]).write_bytes(content)
        received[uid] += 1
    missing, extra = len(names.keys() - received.keys()), len(received.keys() - names.keys())
    twice = received.total() - len(received)
    if missing or extra or twice:
        raise UserError(
            f"PACS: sent {received.total()} instances where it lists {len(names)}: {missing} missing, "
            f"{extra} not listed, {twice} sent again"
        )


def _instances_sent(client: Client, study: str, series: str) -> Iterator[tuple[str, bytes]]:
    """SOPInstanceUID and bytes of each instance."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's quote values; headers are judged by screening
            for content in client.iter_files(study, series):
                yield _sop_instance_uid(content), content
    except (UserError, OSError):
        raise
    except InflateError as error:
        raise UserError(f"PACS: of an instance that it sends, {error}") from None
    except Exception as error:  # pydicom raises many kinds on damaged files, and their texts hold values
        raise UserError(f"PACS: its answer is not multipart DICOM ({type(error).__name__})") from None


def _sop_instance_uid(content: bytes) -> str:
    """'' where there is none. Read raw: pydicom quotes a value that it thinks wrong in a warning."""
    if content[128:132] != b"DICM":
        raise InvalidDicomError
    dataset = open_dataset(BytesIO(content), len(content), ("SOPInstanceUID",), INFLATED_BYTES).dataset
    value = dataset.get_item("SOPInstanceUID").value if "SOPInstanceUID" in dataset else b""
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip("\0 ")
