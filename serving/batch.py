"""Many scans, without a server: every scan of a folder to its answers, by the code and the processes of the service.

A scan is done when its receipt is written: whatever ends a run, the same command goes on with what is missing and ends
with the same bytes. No file of the output holds a time, the name of a machine, or an identifier of a patient.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from components.confined import Bounds, Reply
from components.errors import UserError
from components.files import StopStageError, read_json, replacing, sha256_file, write_json
from components.progress import track
from serving import worker
from serving.asking import SCAN, require_answer, segmenter_of
from serving.batch_files import (
    FORMAT,
    PICTURE,
    PICTURES,
    RUN,
    SCRATCH,
    SEGMENTATIONS,
    SUFFIXES,
    alone,
    check_places,
    check_release,
    clean,
    receipt_file,
    remove_others,
)
from serving.batch_inputs import ScanFiles, as_upload, find_scans, input_of
from serving.batch_report import write_report
from serving.batch_tables import write_tables
from serving.forks import READ_AGAIN, Forks, ReaderGoneError
from serving.limits import Limits

ASKS = ("embed", "classify", "segment")
DONE, PARTLY, FAILED = "done", "partly", "failed"
GOES_ON = "What is finished is kept, and the same command goes on"


@dataclass(frozen=True)
class BatchOptions:
    """What is asked of every scan.

    Attributes:
        only: of :data:`ASKS`; None for all that the release answers.
        form: of segmentations, ``nifti`` or ``dicom``.
        jobs: scans at a time. It changes no byte of the output.
        again: whether the output may be that of another release, to be made again.
    """

    only: tuple[str, ...] | None = None
    form: str = "nifti"
    jobs: int = 1
    again: bool = False


@dataclass
class Summary:
    """What became of a run: numbers of scans by status; files left out by reason; scans made again by reason, those
    that an earlier run had answered, and those whose results were removed since they are there no more; one line for
    each scan that failed, or failed in part."""

    statuses: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    gone: int = 0
    failed: list[str] = field(default_factory=list)


def run_batch(folder: Path, out: Path, bundle: Path, options: BatchOptions) -> Summary:
    """Answer for every scan of a folder.

    Args:
        folder: is read, at any depth.
        out: a new or empty folder, or that of an earlier run.
        bundle: the release folder.
        options: what is asked.

    Raises:
        UserError: no scan, no such release, a question that the release does not answer, an output that is another's or
            in use; no room on the disk, where what is finished is kept.
    """
    check_places(folder, out)
    limits, bounds = Limits.from_environment(), Bounds.from_environment()
    with alone(out):
        clean(out)
        forks = Forks(worker.command(bundle), worker.environment(), bounds)
        try:
            model = forks.start()
            only = _asked(options.only, model)
            run = {"format": FORMAT, "release": {name: model[name] for name in ("name", "line", "digest")}}
            run["options"] = {"only": list(only), "form": options.form}
            check_release(out, model["digest"], options.again)
            found = find_scans(folder, limits)
            write_json(out / RUN, run)
            with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=out) as scratch:
                batch = _Batch(folder, out, Path(scratch), run, list(model["segments"]), forks)
                batch.answer(found.scans, options.jobs)
        finally:
            forks.close()
        summary = batch.summary
        receipts = [read_json(receipt_file(out, scan.id)) for scan in found.scans]
        summary.gone = remove_others(out, receipts)
        write_tables(out, receipts, found.left_out)
        write_report(out, run, receipts, found.left_out)
    for receipt in receipts:
        summary.statuses[receipt["status"]] += 1
        if receipt["status"] != DONE:
            summary.failed.append(f"{receipt['where']}: {receipt['reason']}")
    for (_, reason), number in found.left_out.items():
        summary.left_out[reason] += number
    return summary


class _Batch:
    """Works on the scans of a run; threads wait for children, one a scan."""

    def __init__(
        self, folder: Path, out: Path, scratch: Path, run: dict[str, Any], parts: Sequence[str], forks: Forks
    ) -> None:
        """``parts``: of the release's heads that segment, in its order."""
        self.summary = Summary()
        self._parts = parts
        self._folder, self._out, self._scratch, self._run = folder, out, scratch, run
        self._forks = forks
        self._stopped, self._counting = threading.Event(), threading.Lock()

    def answer(self, scans: Sequence[ScanFiles], jobs: int) -> None:
        """A receipt for each."""
        with start_blocking_portal() as portal, ThreadPoolExecutor(jobs) as threads:
            begun = [threads.submit(self._one, portal, scan) for scan in scans]
            try:
                for future in track(as_completed(begun), [1] * len(begun), f"working on {len(begun)} scans"):
                    future.result()
            except BaseException:
                self._stopped.set()
                threads.shutdown(wait=False, cancel_futures=True)
                self._forks.close()  # ends the children that are waited for
                raise

    def _one(self, portal: BlockingPortal, scan: ScanFiles) -> None:
        """One scan, unless its receipt says that it is done."""
        try:
            before, content = self._states(scan), input_of(self._folder, scan)
        except OSError as error:
            self._commit(scan, {"sha256": "", "files": len(scan.files), "bytes": 0}, FAILED, _unread(error), {}, {})
            return
        why = self._missing(scan, content)
        with self._counting:
            if why is None:
                self.summary.kept += 1
                return
            if why:
                self.summary.again[why] += 1
        with tempfile.TemporaryDirectory(dir=self._scratch) as name:
            place = Path(name)
            try:
                reply = self._reply(portal, as_upload(self._folder, scan, place), place)
                changed = self._states(scan) != before
            except OSError as error:
                self._commit(scan, content, FAILED, _unread(error), {}, {})
                return
            if changed:
                self._commit(scan, content, FAILED, "its files changed while they were read; run again", {}, {})
            elif reply.result is None:
                self._commit(scan, content, FAILED, _line(scan, reply.message), {}, {})
            else:
                self._keep(scan, content, reply.result.content, place)

    def _reply(self, portal: BlockingPortal, path: Path, scratch: Path) -> Reply:
        request = {"ask": "batch", "paths": {SCAN: str(path)}, "scratch": str(scratch), **self._run["options"]}
        for again in range(READ_AGAIN + 1):
            if self._stopped.is_set():
                break
            try:
                reply: Reply = portal.call(self._forks.run, request)
            except ReaderGoneError:  # something from outside has ended it: again, as the service does
                if again == READ_AGAIN:
                    what = f"the process that reads scans was ended {again + 1} times; is this machine out of memory?"
                    raise StopStageError(f"{what} {GOES_ON}") from None
                continue
            if reply.outcome == "no_room":
                raise StopStageError(f"disk: {reply.message}. {GOES_ON}")
            return reply
        raise StopStageError("stopped")

    def _keep(self, scan: ScanFiles, content: dict[str, Any], said: dict[str, Any], place: Path) -> None:
        """Move what a child wrote to where it belongs, then write the receipt."""
        outputs = {"picture": (f"{PICTURES}/{scan.id}.png", place / PICTURE)}
        suffix = SUFFIXES[said["form"]]
        for number, part in enumerate(self._parts):
            if part in said["answers"].get("segment", {}):
                stem = scan.id if len(self._parts) == 1 else f"{scan.id}-{part.replace('/', '_')}"
                outputs[f"segment {part}"] = (f"{SEGMENTATIONS}/{stem}{suffix}", place / f"{number}{suffix}")
        hashes = {}
        for what, (target, source) in outputs.items():
            hashes[what] = {"file": target, "sha256": sha256_file(source)}
            with replacing(self._out / target) as temporary:
                shutil.move(source, temporary)
        refused = said["refused"]
        status = DONE if not refused else PARTLY if said["answers"] else FAILED
        reason = "; ".join(f"{what}: {_line(scan, why)}" for what, why in refused.items())
        self._commit(scan, content, status, reason, said["answers"], hashes)

    def _commit(
        self,
        scan: ScanFiles,
        content: dict[str, Any],
        status: str,
        reason: str,
        answers: dict[str, Any],
        outputs: dict[str, Any],
    ) -> None:
        receipt = {**self._run, "id": scan.id, "where": scan.where, "kind": scan.kind, "input": content}
        receipt |= {"status": status, "reason": reason, "answers": answers, "outputs": outputs}
        write_json(receipt_file(self._out, scan.id), receipt)

    def _missing(self, scan: ScanFiles, content: dict[str, Any]) -> str | None:
        """Why a scan is to be worked on; '' where it is for the first time or failed before, None where it is done."""
        path = receipt_file(self._out, scan.id)
        if not path.is_file():
            return ""
        try:
            receipt = read_json(path)
            if receipt["format"] != FORMAT or receipt["release"] != self._run["release"]:
                return "of another release"
            if receipt["options"] != self._run["options"]:
                return "of other options"
            if receipt["input"] != content:
                return "of other input"
            if receipt["status"] == FAILED:
                return ""
            whole = all(sha256_file(self._out / of["file"]) == of["sha256"] for of in receipt["outputs"].values())
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            whole = False
        if not whole:
            return "damaged"
        moved = {"where": scan.where, "kind": scan.kind}
        if any(receipt[name] != value for name, value in moved.items()):
            write_json(path, receipt | moved)
        return None

    def _states(self, scan: ScanFiles) -> list[tuple[int, int]]:
        states = ((self._folder / location).stat() for location in scan.files)
        return [(state.st_size, state.st_mtime_ns) for state in states]


def _line(scan: ScanFiles, message: str) -> str:
    """A refusal in one line; of a series, which the user has not packed, without the word zip."""
    line = " ".join(message.split())
    return f"series: {line.removeprefix('zip: ')}" if scan.kind == "dicom" and line.startswith("zip: ") else line


def _unread(error: OSError) -> str:
    if error.filename is None or error.errno is None:
        raise error
    return f"a file cannot be read: {str(error.strerror).lower()}"


def _asked(only: tuple[str, ...] | None, model: dict[str, Any]) -> tuple[str, ...]:
    """What is asked of every scan, in the order of :data:`ASKS`."""
    if only is None:
        can = {"embed": True, "classify": "scan" in model["heads"].values(), "segment": bool(model["segments"])}
        return tuple(ask for ask in ASKS if can[ask])
    if wrong := [ask for ask in only if ask not in ASKS]:
        raise UserError(f"--only {wrong[0]!r} is not allowed: of {', '.join(ASKS)}, with commas between")
    if "classify" in only:
        require_answer(model["heads"], None)
    if "segment" in only and not model["segments"]:
        segmenter_of((), None)
    return tuple(ask for ask in ASKS if ask in only)
