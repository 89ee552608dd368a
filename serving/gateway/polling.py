"""Studies found in the PACS, in place of those that it sends: QIDO-RS for new ones, WADO-RS when they have settled."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path

from components.ct.keys import study_key
from components.errors import UserError
from components.sources.config import DicomwebConfig
from components.sources.dicomweb import COUNT, all_known, count_of, ct_series
from components.sources.pacs import asking
from serving.gateway.listener import identifiers_of
from serving.gateway.queue import Queue
from serving.gateway.spool import Spool
from serving.limits import Limits
from serving.pacs import ATTEMPTS, PAGE, STALL_SECONDS, fetch_series

log = logging.getLogger(__name__)

SENDER = "dicomweb"


class Poll:
    """Asks a PACS for CT studies of the last days, and brings in those that no longer change."""

    def __init__(self, spool: Spool, queue: Queue, lock: threading.Lock, days: int, quiet: float) -> None:
        """``days``: of study dates, today's and those before; ``quiet``: seconds in which nothing of a study has
        changed."""
        self._spool, self._queue, self._lock, self._days, self._quiet = spool, queue, lock, days, quiet
        self._seen: dict[str, tuple[str, float]] = {}  # study UID to what was listed, and since when
        self.limits = Limits.from_environment()

    def step(self) -> int:
        """Ask once, and fetch what has settled. Returns how many studies were fetched.

        Raises:
            UserError: the PACS cannot be asked.
        """
        found = self._listed()
        self._seen = {study: seen for study, seen in self._seen.items() if study in found}
        fetched = 0
        for study, series in sorted(found.items()):
            listed = hashlib.sha256(json.dumps(sorted(series.items())).encode()).hexdigest()
            known, since = self._seen.get(study, ("", 0.0))
            if known != listed:
                self._seen[study] = (listed, time.time())
            elif time.time() - since >= self._quiet and self._queue.polled(study_key(study)) != listed:
                self._fetch(study, sorted(series), listed)
                fetched += 1
        return fetched

    def _listed(self) -> dict[str, dict[str, int]]:
        """Study UID to its CT series and how many images each has."""
        days = tuple(str(date.today() - timedelta(back)) for back in (self._days - 1, 0))
        wanted = DicomwebConfig(body_parts=None, study_dates=(days[0], days[1]), min_instances=1, page=PAGE)
        with asking(STALL_SECONDS, attempts=ATTEMPTS) as client:
            rows = ct_series(client, wanted)
            rows = all_known(rows, COUNT, PAGE)
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for row in rows.values():
            if row.get("StudyInstanceUID") and row.get("SeriesInstanceUID"):
                found[row["StudyInstanceUID"]][row["SeriesInstanceUID"]] = count_of(row)
        return found

    def _fetch(self, study: str, series: list[str], listed: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._spool.incoming) as scratch:
            for number, uid in enumerate(series):
                folder = Path(scratch) / str(number)
                fetch_series(study, uid, folder, self.limits)
                for file in sorted(folder.iterdir()):
                    identifiers = identifiers_of(file)
                    if identifiers is None or identifiers[0] != study:
                        raise UserError("PACS: sends images of another study than was asked for")
                    with self._lock:
                        name = self._spool.put(file, *identifiers)
                        self._queue.arrived(name, SENDER)
                shutil.rmtree(folder)
        self._queue.fetched(study_key(study), listed)
