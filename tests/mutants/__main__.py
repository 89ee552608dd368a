"""``python -m tests.mutants``: apply each mistake in a copy of this tree, run its tests, print a table.

A mutant is killed where its tests fail, and only counts where the same tests pass on the code as it is. Exits with the
number of mutants that survived or do not apply.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

from components.progress import track, wide_console

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = Path(__file__).resolve().parent
TIMEOUT_S = 900  # a mutant that hangs its tests is noticed, too
PASSED, FAILED = 0, 1  # pytest's exit codes; others mean that the tests did not run as they should
KILLED, SURVIVED, BROKEN = "killed", "survived", "does not apply"


@dataclass(frozen=True)
class Mutant:
    """One deliberate mistake: ``old``, once in ``file``, becomes ``new``, and one of ``tests`` must fail."""

    part: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    promise: str

    def applied(self, source: str) -> str:
        """The file's text with the mistake in it. Raises ValueError where ``old`` does not stand in it exactly once."""
        if source.count(self.old) != 1:
            raise ValueError(f"its text stands {source.count(self.old)} times in {self.file}, not once")
        return source.replace(self.old, self.new)


def read_catalogue(folder: Path = CATALOGUE) -> list[Mutant]:
    """Every mutant of every part, sorted. Raises ValueError where a name is there twice."""
    found = [
        Mutant(path.stem, **{**entry, "tests": tuple(entry["tests"])})
        for path in sorted(folder.glob("*.yaml"))
        for entry in yaml.safe_load(path.read_text())
    ]
    names = [mutant.name for mutant in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"mutants: {', '.join(twice)}: named more than once")
    return found


@contextmanager
def copies(number: int) -> Iterator[SimpleQueue[Path]]:
    """``number`` copies of this tree's files, without outputs; handed out and given back through a queue."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    with tempfile.TemporaryDirectory(prefix="ctfoundry-mutants-") as temporary:
        Path(temporary).chmod(0o755)  # a test runs as another user
        free: SimpleQueue[Path] = SimpleQueue()
        for index in range(number):
            copy = Path(temporary) / str(index) / "ctfoundry"
            for name in listed.stdout.splitlines():
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / name, copy / name)
            subprocess.run(["git", "init", "--quiet", str(copy)], check=True)  # DVC's graph is that of a checkout
            shared = ROOT.parent / "shared"
            if shared.is_dir():
                (copy.parent / "shared").symlink_to(shared)
            free.put(copy)
        yield free


def run_tests(copy: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit code for what `make test` runs of them, FAILED where it takes too long, and its last lines."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-m", "not slow", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return FAILED, "timed out"
    return done.returncode, " | ".join(done.stdout.splitlines()[-3:])


def judge(mutant: Mutant, free: SimpleQueue[Path]) -> tuple[str, str]:
    """What became of a mutant, and why."""
    copy = free.get()
    path = copy / mutant.file
    source = path.read_text()
    try:
        path.write_text(mutant.applied(source))
        code, tail = run_tests(copy, mutant.tests)
    except ValueError as error:
        return BROKEN, str(error)
    finally:
        path.write_text(source)
        free.put(copy)
    if code == FAILED:
        return KILLED, ""
    return (SURVIVED, "") if code == PASSED else (BROKEN, f"pytest ended with {code}: {tail}")


def unharmed(sets: list[tuple[str, ...]], free: SimpleQueue[Path]) -> set[tuple[str, ...]]:
    """Those of the ``sets`` of tests that pass on the code as it is."""
    copy = free.get()
    passing = set()
    for tests in track(sets, [1] * len(sets), "tests as they are"):
        code, tail = run_tests(copy, tests)
        if code == PASSED:
            passing.add(tests)
        else:
            print(f"{' '.join(tests)}: fails without a mutant: {tail}", file=sys.stderr)
    free.put(copy)
    return passing


def main() -> None:
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[2].strip())
    parser.add_argument("--part", help="of one file of the catalogue")
    parser.add_argument("--only", help="mutants whose name holds this")
    parser.add_argument("--jobs", type=int, default=1, help="copies that run at a time (default 1)")
    arguments = parser.parse_args()
    mutants = [
        mutant
        for mutant in read_catalogue()
        if arguments.part in (None, mutant.part) and (arguments.only or "") in mutant.name
    ]
    if not mutants:
        parser.error("no such mutant in the catalogue")
    start = time.monotonic()
    with copies(arguments.jobs) as free, ThreadPoolExecutor(arguments.jobs) as pool:
        sound = unharmed(sorted({mutant.tests for mutant in mutants}), free)
        fates = list(track(pool.map(lambda m: judge(m, free), mutants), [1] * len(mutants), "mutants"))
    fates = [
        fate if mutant.tests in sound else (BROKEN, "its tests fail without it")
        for mutant, fate in zip(mutants, fates, strict=True)
    ]
    table = Table("part", "mutant", "promise", "fate")
    for mutant, (fate, why) in zip(mutants, fates, strict=True):
        table.add_row(mutant.part, mutant.name, mutant.promise, f"{fate} {why}".strip())
    wide_console().print(table)
    killed = sum(fate == KILLED for fate, _ in fates)
    print(f"{killed} of {len(mutants)} mutants killed in {time.monotonic() - start:.0f} s")
    sys.exit(min(100, len(mutants) - killed))


if __name__ == "__main__":
    main()
