"""Many scans, without a server: every scan of a folder to its answers, by the code and the processes of the service.

A scan is done when its receipt is written: whatever ends a run, the same command goes on with what is missing and ends
with the same bytes. No file of the output holds a time, the name of a machine, or an identifier of a patient.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from components.confined import Bounds, Reply
from components.errors import UserError
from components.files import StopStageError, read_json, replacing, sha256_file, write_json
from components.progress import track
from serving import worker
from serving.asking import require_answer, segmenter_of
from serving.batch_inputs import ScanFiles, as_upload, find_scans, input_of
from serving.batch_report import write_report
from serving.batch_scan_files import PICTURE, SUFFIXES
from serving.batch_tables import EMBEDDINGS, write_tables
from serving.forks import Forks, ReaderGoneError
from serving.limits import Limits

FORMAT = 1
ASKS = ("embed", "classify", "segment")
RUN, RECEIPTS, SEGMENTATIONS, PICTURES = "run.json", "receipts", "segmentations", "pictures"
LOCK, SCRATCH = ".lock", ".scratch-"
DONE, PARTLY, FAILED = "done", "partly", "failed"


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
    """What became of a run: numbers of scans by status; files left out by reason; scans made again by reason; one line
    for each scan that failed, or failed in part."""

    statuses: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    kept: int = 0
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
    _check_places(folder, out)
    limits, bounds = Limits.from_environment(), Bounds.from_environment()
    with _alone(out):
        _clean(out)
        forks = Forks(worker.command(bundle), worker.environment(), bounds)
        try:
            model = forks.start()
            only = _asked(options.only, model)
            run = {"format": FORMAT, "release": {name: model[name] for name in ("name", "line", "digest")}}
            run["options"] = {"only": list(only), "form": options.form}
            _check_release(out, run, options.again)
            found = find_scans(folder, limits)
            write_json(out / RUN, run)
            summary = Summary()
            with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=out) as scratch:
                batch = _Batch(folder, out, Path(scratch), run, forks, summary)
                batch.answer(found.scans, options.jobs)
        finally:
            forks.close()
        receipts = _receipts(out, found.scans)
        _remove_others(out, receipts)
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
        self, folder: Path, out: Path, scratch: Path, run: dict[str, Any], forks: Forks, summary: Summary
    ) -> None:
        self._folder, self._out, self._scratch, self._run = folder, out, scratch, run
        self._forks, self._summary = forks, summary
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
                self._summary.kept += 1
                return
            if why:
                self._summary.again[why] += 1
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
        request = {"ask": "batch", "path": str(path), "scratch": str(scratch), **self._run["options"]}
        for last in (False, True):
            if self._stopped.is_set():
                break
            try:
                reply: Reply = portal.call(self._forks.run, request)
            except ReaderGoneError:  # something from outside has ended it: once more, as a client would
                if last:
                    raise StopStageError("the process that reads scans was ended twice; is this machine out of memory? "
                                         "What is finished is kept, and the same command goes on") from None  # fmt: skip
                continue
            if reply.outcome == "no_room":
                raise StopStageError(f"disk: {reply.message}; what is finished is kept, and the same command goes on")
            return reply
        raise StopStageError("stopped")

    def _keep(self, scan: ScanFiles, content: dict[str, Any], said: dict[str, Any], place: Path) -> None:
        """Move what a child wrote to where it belongs, then write the receipt."""
        outputs = {"picture": (f"{PICTURES}/{scan.id}.png", place / PICTURE)}
        several = len(said["files"]) > 1
        for part, name in said["files"].items():
            stem = f"{scan.id}-{part.replace('/', '_')}" if several else scan.id
            suffix = next(suffix for suffix in SUFFIXES.values() if name.endswith(suffix))
            outputs[f"segment {part}"] = (f"{SEGMENTATIONS}/{stem}{suffix}", place / name)
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
        write_json(_receipt_file(self._out, scan.id), receipt)

    def _missing(self, scan: ScanFiles, content: dict[str, Any]) -> str | None:
        """Why a scan is to be worked on; '' where it is for the first time or failed before, None where it is done."""
        path = _receipt_file(self._out, scan.id)
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


def _check_places(folder: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--output {str(out)!r} is not allowed: a file; a new or empty folder, or that of an earlier run")
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--output {str(out)!r} is not allowed: it lies in the folder that is read; choose one outside")
    if out.is_dir() and not (out / RUN).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"--output {str(out)!r} is not allowed: it holds other files; a new or empty folder, or that of "
                        "an earlier run")  # fmt: skip


def _check_release(out: Path, run: dict[str, Any], again: bool) -> None:
    if not (out / RUN).is_file() or again:
        return
    try:
        before = read_json(out / RUN)["release"]["digest"]
    except (ValueError, KeyError, TypeError):
        before = "unknown"
    if before != run["release"]["digest"]:
        raise UserError(f"--output {str(out)!r} is of another release ({str(before)[:12]}, and this one is "
                        f"{run['release']['digest'][:12]}); choose another folder, or --again to make all of it again")  # fmt: skip


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the output for this run; the kernel gives it back however the run ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output {str(out)!r} is in use by another run; wait for it to end, or choose another "
                            "folder") from None  # fmt: skip
        yield


def _clean(out: Path) -> None:
    """Remove what a run left that was killed."""
    for path in out.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)
    for place in (out, *(out / name for name in (RECEIPTS, SEGMENTATIONS, PICTURES))):
        for path in place.glob(".*.partial"):
            path.unlink(missing_ok=True)


def _receipt_file(out: Path, name: str) -> Path:
    return out / RECEIPTS / f"{name}.json"


def _receipts(out: Path, scans: Sequence[ScanFiles]) -> list[dict[str, Any]]:
    return [read_json(_receipt_file(out, scan.id)) for scan in scans]


def _remove_others(out: Path, receipts: Sequence[dict[str, Any]]) -> None:
    """Remove what is of scans that are there no more, or was asked for before and is no longer."""
    wanted = {_receipt_file(out, receipt["id"]) for receipt in receipts}
    wanted |= {out / of["file"] for receipt in receipts for of in receipt["outputs"].values()}
    others = [path for name in (RECEIPTS, SEGMENTATIONS, PICTURES) for path in (out / name).glob("*")]
    dropped = 0
    for path in others:
        if path not in wanted:
            path.unlink()
            dropped += path.parent.name == RECEIPTS
    if dropped:
        print(f"removed: results of {dropped} scans that the folder no longer holds", file=sys.stderr)
    if not any("embed" in receipt["answers"] for receipt in receipts):
        (out / EMBEDDINGS).unlink(missing_ok=True)
