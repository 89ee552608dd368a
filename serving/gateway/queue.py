"""What a gateway has to do and has done, in a database: SQLite in its folder, or PostgreSQL where one is configured.

It names studies and series by pseudonyms only. Every step is one transaction, so a gateway that is killed goes on where
it was. One gateway uses a folder at a time; several may share a database, each with rows of its own ``place``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from components.errors import UserError

RECEIVING, COMPLETE = "receiving", "complete"  # a study's states before its end
ANSWERED, NOTHING, FAILED = "answered", "nothing", "failed"
DUE, DELIVERED = "due", "delivered"  # an answer's states before its end, which is one of the three above
ENDS = (ANSWERED, NOTHING, FAILED)

_metadata = sa.MetaData()
_studies = sa.Table(
    "ctfoundry_gateway_studies",
    _metadata,
    sa.Column("place", sa.String(32), primary_key=True),
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("sender", sa.String(64), nullable=False, default=""),
    sa.Column("arrived_at", sa.Float, nullable=False),  # the last image; seconds since 1970
    sa.Column("settled", sa.Boolean, nullable=False, default=False),  # its sender ended the association in order
    sa.Column("requested", sa.Boolean, nullable=False, default=False),  # somebody said that it is complete
    sa.Column("ended_at", sa.Float),
)
_polled = sa.Table(  # studies of a PACS that were fetched, and which of their series it listed then
    "ctfoundry_gateway_polled",
    _metadata,
    sa.Column("place", sa.String(32), primary_key=True),
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("listed", sa.String(64), nullable=False),
)
_answers = sa.Table(
    "ctfoundry_gateway_answers",
    _metadata,
    sa.Column("place", sa.String(32), primary_key=True),
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("series", sa.String(32), primary_key=True),
    sa.Column("ask", sa.String(200), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("due_at", sa.Float, nullable=False, default=0.0),
    sa.Column("reason", sa.String(500), nullable=False, default=""),
    sa.Column("digest", sa.String(64), nullable=False, default=""),
)


@dataclass(frozen=True)
class Answer:
    """What one question to the service about one series came to.

    Attributes:
        study, series: pseudonyms.
        ask: the question, such as ``classify``.
        fingerprint, images: of the series when it was asked.
        state: ``due``; ``delivered``, and to be looked for where it went; ``answered``; ``nothing``, since there is no
            answer, and ``reason`` says why; or ``failed``.
        tries: that went wrong.
        due_at: not before, in seconds since 1970.
        reason: in a line, of the last try.
        digest: of the release that answered.
    """

    study: str
    series: str
    ask: str
    fingerprint: str
    images: int
    state: str
    tries: int
    due_at: float
    reason: str
    digest: str


@dataclass(frozen=True)
class Study:
    """A study: ``state`` is ``receiving``, ``complete``, or how it ended. See the table's columns."""

    study: str
    state: str
    sender: str
    arrived_at: float
    settled: bool
    requested: bool
    ended_at: float | None


class Queue:
    """Studies and their answers."""

    def __init__(self, address: str, place: str) -> None:
        """
        Args:
            address: of the database, as SQLAlchemy takes it.
            place: whose rows these are.

        Raises:
            UserError: it cannot be opened.
        """
        self._place = place
        try:
            self._engine = sa.create_engine(address, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise UserError(
                f"the queue's database: {' '.join(str(error).split())[:120]}; "
                "allowed: sqlite:///<file> or postgresql+pg8000://<user>@<host>/<database>"
            ) from None
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _durable)
        with self._speaking():
            _metadata.create_all(self._engine)

    def close(self) -> None:
        """Let the database go."""
        self._engine.dispose()

    def arrived(self, study: str, sender: str, now: float | None = None) -> None:
        """An image of a study is in the spool."""
        values = {"state": RECEIVING, "sender": sender, "arrived_at": _now(now), "settled": False, "requested": False,
                  "ended_at": None}  # fmt: skip
        with self._begun() as connection:
            if connection.execute(self._of(_studies, study).values(values)).rowcount == 0:
                connection.execute(sa.insert(_studies).values(place=self._place, study=study, **values))

    def settled(self, studies: set[str]) -> None:
        """The association that brought images of these has ended in order."""
        if studies:
            with self._begun() as connection:
                self._set(connection, _studies.c.study.in_(studies), settled=True)

    def began_again(self, known: list[str], now: float | None = None) -> None:
        """A gateway starts: nothing can have arrived since the last one ended, and ``known`` studies have images."""
        for study in known:
            if self.study(study) is None:  # it ended between the file and the row
                self.arrived(study, "", now)
        with self._begun() as connection:
            self._set(connection, _studies.c.state == RECEIVING, arrived_at=_now(now), settled=False)

    def request(self, study: str) -> bool:
        """Somebody says that a study is complete; False where it is not being received."""
        with self._begun() as connection:
            change = self._of(_studies, study).where(_studies.c.state == RECEIVING).values(requested=True)
            return bool(connection.execute(change).rowcount)

    def complete(self, quiet: float, patience: float, busy: set[str], now: float | None = None) -> list[str]:
        """Have those studies complete of which nothing has come for a while, and say which.

        Args:
            quiet: seconds without an image, where the association that brought them ended in order.
            patience: seconds where it did not, so that a sender can try again.
            busy: studies of which an association is open; they wait.
        """
        found = []
        for study in self.studies((RECEIVING,)):
            silence = _now(now) - study.arrived_at
            if study.requested or (study.study not in busy and silence >= (quiet if study.settled else patience)):
                found.append(study.study)
        if found:
            with self._begun() as connection:
                self._set(connection, _studies.c.study.in_(found), state=COMPLETE)
        return found

    def end(self, study: str, state: str, now: float | None = None) -> bool:
        """A complete study is done with; False where more of it has arrived meanwhile."""
        with self._begun() as connection:
            change = self._of(_studies, study).where(_studies.c.state == COMPLETE)
            return bool(connection.execute(change.values(state=state, ended_at=_now(now))).rowcount)

    def again(self, study: str) -> bool:
        """Ask everything of a study again that failed; False where it has not ended."""
        with self._begun() as connection:
            change = self._of(_studies, study).where(_studies.c.state.in_(ENDS))
            if connection.execute(change.values(state=COMPLETE, ended_at=None)).rowcount == 0:
                return False
            failed = self._of(_answers, study).where(_answers.c.state == FAILED)
            connection.execute(failed.values(state=DUE, tries=0, due_at=0.0))
            return True

    def studies(self, states: tuple[str, ...] = (), only: str | None = None) -> list[Study]:
        """All of them, or those in certain states; the longest waiting first."""
        columns = [column for column in _studies.c if column.name != "place"]
        query = sa.select(*columns).where(_studies.c.place == self._place)
        if states:
            query = query.where(_studies.c.state.in_(states))
        if only is not None:
            query = query.where(_studies.c.study == only)
        with self._begun() as connection:
            rows = connection.execute(query.order_by(_studies.c.arrived_at, _studies.c.study)).mappings()
            return [Study(**row) for row in rows]

    def study(self, study: str) -> Study | None:
        """One of them; None where it is not known."""
        return next((each for each in self.studies(only=study)), None)

    def polled(self, study: str) -> str:
        """What a PACS listed of a study when it was fetched; empty where it was not."""
        query = sa.select(_polled.c.listed).where(_polled.c.place == self._place, _polled.c.study == study)
        with self._begun() as connection:
            return str(connection.execute(query).scalar() or "")

    def fetched(self, study: str, listed: str) -> None:
        """All that a PACS ``listed`` of a study is in the spool: it is complete."""
        with self._begun() as connection:
            connection.execute(self._of(_studies, study).values(settled=True, requested=True))
            if connection.execute(self._of(_polled, study).values(listed=listed)).rowcount == 0:
                connection.execute(sa.insert(_polled).values(place=self._place, study=study, listed=listed))

    def answers(self, study: str) -> list[Answer]:
        """Of a study, in the order of series and question."""
        columns = [column for column in _answers.c if column.name != "place"]
        query = sa.select(*columns).where(_answers.c.place == self._place, _answers.c.study == study)
        with self._begun() as connection:
            rows = connection.execute(query.order_by(_answers.c.series, _answers.c.ask)).mappings()
            return [Answer(**row) for row in rows]

    def put(self, answer: Answer) -> None:
        """What an answer has come to, in place of what it was."""
        values = {name: value for name, value in vars(answer).items() if name not in ("study", "series", "ask")}
        one = (_answers.c.series == answer.series, _answers.c.ask == answer.ask)
        with self._begun() as connection:
            if connection.execute(self._of(_answers, answer.study).where(*one).values(values)).rowcount == 0:
                connection.execute(sa.insert(_answers).values(place=self._place, **vars(answer)))

    def counts(self) -> Mapping[str, int]:
        """Studies by state."""
        query = sa.select(_studies.c.state, sa.func.count()).where(_studies.c.place == self._place)
        with self._begun() as connection:
            return {str(state): int(count) for state, count in connection.execute(query.group_by(_studies.c.state))}

    def _of(self, table: sa.Table, study: str) -> sa.Update:
        return sa.update(table).where(table.c.place == self._place, table.c.study == study)

    def _set(self, connection: sa.Connection, which: sa.ColumnElement[bool], **values: Any) -> None:
        connection.execute(sa.update(_studies).where(_studies.c.place == self._place, which).values(values))

    @contextmanager
    def _begun(self) -> Iterator[sa.Connection]:
        """A transaction."""
        with self._speaking(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            said = " ".join(str(error.orig).split())[:160]
            raise UserError(f"the queue's database: {said}") from None


def sqlite_address(file: Path) -> str:
    """The address of a queue in a file."""
    return f"sqlite:///{file.resolve()}"


def _durable(connection: Any, _: object) -> None:
    """Of SQLite: what is committed is on the disk, and a writer waits for another."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _now(now: float | None) -> float:
    return time.time() if now is None else now
