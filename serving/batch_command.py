"""``ctfoundry run``, of the checkout and of an image: its options, and what it says."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import UserError

if TYPE_CHECKING:
    from serving.batch import Summary

SOME_FAILED = 3  # exit status
MOST_NAMED = 20  # scans that failed; the table names them all
TEXT = """\
FOLDER may hold, at any depth and mixed: DICOM files of many series, zips of one series each, NIfTI volumes. They are
found by content, not by name. OUT gets, and the same command after an interruption goes on with what is missing:

  scans.csv           one row a scan: where it lies, status and reason, grid, warnings, findings, volumes
  embeddings.npz      ids, and embeddings (float32, scans x dim)
  segmentations/      a label map (.nii.gz) or DICOM SEG (.dcm) a scan
  receipts/           a scan's answers as the service gives them, with SHA-256 of its input and outputs
  left_out.csv        files that are no scan, by reason: scouts, duplicates, other images
  report.html         all of it on one page, with pictures

exit status: 0 all done; 3 some scans failed, see scans.csv; 1 nothing can be done as asked
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry run``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = TEXT
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with the scans; it is only read")
    out = "new or empty folder outside of FOLDER, or that of an earlier run, which goes on"
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help=out)
    only = "of embed,classify,segment, with commas between (default: all that the release answers)"
    parser.add_argument("--only", metavar="WHAT", help=only)
    form = "of segmentations (default: nifti); dicom is SEG, for scans that are DICOM"
    parser.add_argument("--form", default="nifti", metavar="nifti|dicom", help=form)
    jobs = "scans at a time, each with up to CTFOUNDRY_MAX_MEMORY_BYTES (default: 1)"
    parser.add_argument("--jobs", default="1", metavar="N", help=jobs)
    parser.add_argument("--again", action="store_true", help="OUT is of another release: make all of it again")


def run(arguments: argparse.Namespace, bundle: Path) -> int:
    """Answer for the folder with the release that lies at ``bundle``, and say what became of it."""
    from serving.batch import BatchOptions, run_batch
    from serving.batch_files import SUFFIXES

    if arguments.form not in SUFFIXES:
        raise UserError(f"--form {arguments.form!r} is not allowed: {' or '.join(SUFFIXES)}")
    only = None if arguments.only is None else tuple(arguments.only.split(","))
    options = BatchOptions(only, arguments.form, _jobs(arguments.jobs), arguments.again)
    summary = run_batch(arguments.folder, arguments.output, bundle, options)
    _tell(summary)
    print(f"{_line(summary)}; see {arguments.output / 'report.html'}")
    return SOME_FAILED if summary.failed else 0


def _jobs(text: str) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= cores):
        raise UserError(f"--jobs {text!r} is not allowed: scans at a time, 1 to {cores}, the cores of this machine")
    return int(text)


def _tell(summary: Summary) -> None:
    """What is not as the user may expect, on standard error."""
    lines = [f"failed: {line}" for line in summary.failed[:MOST_NAMED]]
    if len(summary.failed) > MOST_NAMED:
        lines.append(f"failed: {len(summary.failed) - MOST_NAMED} more; scans.csv names them")
    if summary.kept:
        lines.append(f"kept: {summary.kept} done before")
    lines += [f"made again: {number}, whose results were {why}" for why, number in sorted(summary.again.items())]
    if summary.gone:
        lines.append(f"removed: results of {summary.gone} that the folder no longer holds")
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr, flush=True)


def _line(summary: Summary) -> str:
    number = sum(summary.statuses.values())
    told = f"{number} {'scan' if number == 1 else 'scans'}: {_counts(summary.statuses)}"
    return f"{told}; files left out: {_counts(summary.left_out)}" if summary.left_out else told


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
