"""The thin command line that every stage shares: ``python -m components.<stage> --line wholebody [--shard 0]``, or
``[--task organs]``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from components import arithmetic
from components.errors import PassingError, UserError
from components.files import disk_full
from components.processes import short_socket_paths
from components.settings import block_of, reproducible, require_line, shards

DATA = Path("data")
EXIT_PASSING = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later


def data_dir(line: str, stage: str, shard: int | None = None) -> Path:
    """Where a stage's outputs lie, relative to the project's root: ``data/<line>/<stage>[/<shard>]``."""
    folder = DATA / line / stage
    return folder if shard is None else folder / str(shard)


def shard_of(series: str, shards: int) -> int:
    """The shard of a series, by its key alone: a series more moves no other."""
    return int(series[1:], 16) % shards


def stored_volume(store: Path, series: str, shards: int) -> Path:
    """Where the volume of a series lies. ``store``: the line's folder of stage *preprocess*."""
    return store / str(shard_of(series, shards)) / "volumes" / f"{series}.b2nd"


def cohort_slice(cohort_folder: Path, shard: int) -> Path:
    """Where the cohort's rows and files of one shard lie: all that the shard's stages depend on."""
    return cohort_folder / "shards" / str(shard)


def masks_slice(cohort_folder: Path, shard: int) -> Path:
    """Where the cohort's masks of one shard's series lie: apart, for only preprocessing depends on them."""
    return cohort_folder / "masks" / str(shard)


def run_stage(
    stage: str,
    description: str,
    function: Callable[[str], None] | None,
    *,
    sharded: Callable[[str, int], None] | None = None,
    by_task: Callable[[str, str], None] | None = None,
) -> None:
    """Parse the arguments and run one stage.

    Args:
        stage: its name, before its messages.
        description: what it does, shown by ``--help``.
        function: called with the line; or None where one of the others is given.
        sharded: called with line and shard.
        by_task: called with line and task.

    Exits with one line on stderr, and with 75 for a PassingError or with 1 for any other UserError (ParamsError among
    them), a full disk, and an input missing below ``data/``; anything else is a defect of ours and keeps its traceback.
    SIGTERM ends it in an orderly way.
    """
    started = getattr(sys.modules["__main__"], "__spec__", None)
    module = started.name.removesuffix(".__main__") if started else f"components.{stage}"
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--line", required=True, help="model line: a block of params.yaml")
    if sharded is not None:
        parser.add_argument("--shard", required=True, type=int, help="shard number, one of params.yaml's `shards`")
    if by_task is not None:
        parser.add_argument("--task", required=True, help="a block of the line's `tasks`")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # temporary files and clusters go with it
    logging.basicConfig(level=logging.INFO, format=f"{stage}: %(message)s", stream=sys.stderr)
    try:
        arithmetic.enter(reproducible(require_line(arguments.line)))
        short_socket_paths()
        if sharded is not None:
            if arguments.shard not in shards():
                raise UserError(f"--shard {arguments.shard} is not allowed: one of {', '.join(map(str, shards()))}")
            sharded(arguments.line, arguments.shard)
        elif by_task is not None:
            known = list(block_of(arguments.line, "tasks"))
            if arguments.task not in known:
                raise UserError(f"--task {arguments.task!r} is not allowed: one of {', '.join(map(str, known))}")
            by_task(arguments.line, arguments.task)
        elif function is not None:
            function(arguments.line)
    except UserError as error:
        print(f"{stage}: {error}", file=sys.stderr)
        sys.exit(EXIT_PASSING if isinstance(error, PassingError) else 1)
    except OSError as error:
        missing = Path(error.filename) if isinstance(error.filename, str) else Path()
        if isinstance(error, FileNotFoundError) and missing.parts[:1] == DATA.parts:
            print(f"{stage}: {missing}: missing; run `dvc repro` so that the earlier stages make it", file=sys.stderr)
            sys.exit(1)
        full = disk_full(error, Path(error.filename if isinstance(error.filename, str) else tempfile.gettempdir()))
        if full is None:
            raise
        print(f"{stage}: {full}", file=sys.stderr)
        sys.exit(1)
