"""The folder that many scans are answered into: what lies where, whose it is, and what does not belong."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.files import read_json

FORMAT = 1
RUN, TABLE, LEFT_OUT, EMBEDDINGS, REPORT = "run.json", "scans.csv", "left_out.csv", "embeddings.npz", "report.html"
RECEIPTS, SEGMENTATIONS, PICTURES = "receipts", "segmentations", "pictures"
LOCK, SCRATCH = ".lock", ".scratch-"
SUFFIXES = {"nifti": ".nii.gz", "dicom": ".dcm"}  # of a segmentation, by form
PICTURE = "picture.png"  # in a child's scratch folder, beside segmentations by their number
# Of structures in pictures, by value; of those that come later the same again. As `ctfoundry volume` colours masks.
COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffd60a", "#bf5af2", "#64d2ff", "#ff9f0a", "#ac8e68")
NEEDED = "a new or empty folder, or that of an earlier run"


def receipt_file(out: Path, name: str) -> Path:
    """The receipt of the scan of this id."""
    return out / RECEIPTS / f"{name}.json"


def check_places(folder: Path, out: Path) -> None:
    """Raise UserError where ``out`` is a file, holds other things than an earlier run's, or lies in ``folder``."""
    what = f"--output {str(out)!r} is not allowed"
    if out.exists() and not out.is_dir():
        raise UserError(f"{what}: a file; {NEEDED}")
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{what}: it lies in the folder that is read; choose one outside")
    if out.is_dir() and not (out / RUN).is_file() and any(not _is_ours(path) for path in out.iterdir()):
        raise UserError(f"{what}: it holds other files; {NEEDED}")


def _is_ours(path: Path) -> bool:
    """Whether a run that was killed before it wrote anything else may have left it."""
    return path.name == LOCK or path.name.startswith(SCRATCH) or path.name.startswith(f".{RUN}.")


def check_release(out: Path, digest: str, again: bool) -> None:
    """Raise UserError where the output is of another release than that of ``digest``, unless it is to be made again."""
    if again or not (out / RUN).is_file():
        return
    try:
        before = str(read_json(out / RUN)["release"]["digest"])
    except (ValueError, KeyError, TypeError):
        before = "unknown"
    if before != digest:
        raise UserError(
            f"--output {str(out)!r} is of another release ({before[:12]}; now it is {digest[:12]}); choose another "
            "folder, or --again to make all of it again"
        )


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the output for this run; the kernel gives it back however the run ends. Raises UserError where another has
    it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"--output {str(out)!r} is in use by another run"
            raise UserError(f"{what}; wait for it to end, or choose another folder") from None
        yield


def clean(out: Path) -> None:
    """Remove what a run left that was killed."""
    for path in out.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)
    for place in (out, *(out / name for name in (RECEIPTS, SEGMENTATIONS, PICTURES))):
        for path in place.glob(".*.partial"):
            path.unlink(missing_ok=True)


def remove_others(out: Path, receipts: Sequence[dict[str, Any]]) -> int:
    """Remove what is of scans without a receipt among these, or is named by none of them.

    Returns:
        How many scans are there no more.
    """
    wanted = {receipt_file(out, receipt["id"]) for receipt in receipts}
    wanted |= {out / of["file"] for receipt in receipts for of in receipt["outputs"].values()}
    gone = 0
    for path in [path for name in (RECEIPTS, SEGMENTATIONS, PICTURES) for path in (out / name).glob("*")]:
        if path not in wanted:
            path.unlink()
            gone += path.parent.name == RECEIPTS
    if not any("embed" in receipt["answers"] for receipt in receipts):
        (out / EMBEDDINGS).unlink(missing_ok=True)
    return gone
