"""``ctfoundry lineage``: from an answer back to what made it, and from a patient or a series forward to every release.

``ctfoundry withdraw``: the releases that a withdrawal concerns, and what to run.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from components.errors import UserError
from components.files import replacing
from components.settings import lines, require_line
from flows.promotion.champions import champion
from flows.promotion.contents import contents_of
from flows.promotion.releases import print_table
from flows.promotion.reports import facts, licences
from flows.promotion.tags import Version, fetch, versions
from flows.promotion.uses import Use, Wanted, of_patient, of_series, series_of, uses
from flows.promotion.withdrawal import steps

FEWEST_DIGITS = 8
SHOWN = ("series", "patient", "uid", "source", "collection", "licence", "doi", "version", "role", "status", "reason")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry lineage`` and of ``ctfoundry withdraw``."""
    withdraw = parser.prog.endswith("withdraw")
    parser.set_defaults(run=_withdraw if withdraw else _lineage)
    parser.add_argument("of", metavar="LINE", nargs="?", help="default: every line of params.yaml")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--patient", metavar="ID", help="a PatientID, or its pseudonym")
    asked.add_argument("--series", metavar="UID", help="a SeriesInstanceUID, or its pseudonym")
    if not withdraw:
        asked.add_argument("--digest", help=f"of a bundle, as an answer names it: {FEWEST_DIGITS} hex digits or more")
        parser.add_argument("--output", type=Path, help="with --digest: new folder for parameters.yaml, series.csv")
    parser.add_argument("--offline", action="store_true", help="by the tags that this clone knows")


def _published(arguments: argparse.Namespace) -> list[Version]:
    found = []
    for line in lines() if arguments.of is None else [require_line(arguments.of)]:
        if not arguments.offline:
            fetch(line)
        found += versions(line)
    if not found:
        raise UserError("nothing is published yet: no tag <line>@v<number> with an annotation")
    return found


def _lineage(arguments: argparse.Namespace) -> int:
    if arguments.digest is not None:
        return _back(arguments)
    if arguments.output is not None:
        raise UserError("--output is not allowed without --digest")
    published, wanted = _published(arguments), _wanted(arguments)
    found = uses(wanted, published)
    _print_uses(wanted, found, len(published))
    return 0


def _wanted(arguments: argparse.Namespace) -> Wanted:
    return of_series(arguments.series) if arguments.patient is None else of_patient(arguments.patient)


def _print_uses(wanted: Wanted, found: list[Use], published: int) -> None:
    if not found:
        print(f"{wanted.name}: in none of {published} releases, by the pseudonyms that this environment's key makes")
        return
    stages = {line: champion(line) for line in dict.fromkeys(use.version.line for use in found)}
    rows = []
    for use in found:
        now = stages[use.version.line]
        stage = "champion" if now is not None and now.version == use.version else ""
        rows.append((use.version.name, use.how, str(len(use.series)), stage, use.version.digest[:16]))
    title = f"{wanted.name}: in {len(found)} of {published} releases"
    print_table(title, ("release", "used for", "series", "stage", "digest"), rows)


def _back(arguments: argparse.Namespace) -> int:
    digest = arguments.digest.strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{FEWEST_DIGITS},64}}", digest):
        raise UserError(f"--digest {arguments.digest!r} is not allowed: {FEWEST_DIGITS} to 64 hex digits of a bundle's")
    if arguments.output is not None and arguments.output.exists():
        raise UserError(f"--output {arguments.output}: is there already; name a new folder")
    found = [version for version in _published(arguments) if version.digest.startswith(digest)]
    if not found:
        raise UserError(f"digest {digest}: of no published release; it may be of one that was never published")
    for version in found:
        for name, value in facts(version):
            print(f"{name}: {value}")
    version = found[0]
    contents = contents_of(version)
    table = series_of(contents, version.line)
    print(f"parameters: `git show {version.commit[:12]}:params.yaml`, block {version.line}")
    counts = table[table["status"] == "accepted"]["role"].value_counts()
    used = ", ".join(f"{count} for {role}" for role, count in sorted(counts.items()))
    print(f"series: {len(table)} listed, of these used: {used or 'none'}")
    columns = ("collection", "licence", "doi", "pretraining_series", "evaluation_series")
    rows = [tuple(str(row[column]) for column in columns) for row in licences(version)]
    print_table("Licences of what was used", ("collection", "licence", "DOI", "pretraining", "evaluation"), rows)
    if arguments.output is not None:
        with replacing(arguments.output) as folder:
            folder.mkdir(parents=True)
            block = contents.parameters(version.line)
            (folder / "parameters.yaml").write_text(yaml.safe_dump({version.line: block}, sort_keys=False))
            table[[name for name in SHOWN if name in table]].to_csv(folder / "series.csv", index=False)
        print(f"{arguments.output}: parameters.yaml, and series.csv with {len(table)} series and their licences")
    return 0


def _withdraw(arguments: argparse.Namespace) -> int:
    published, wanted = _published(arguments), _wanted(arguments)
    found = uses(wanted, published)
    _print_uses(wanted, found, len(published))
    if found:
        print("\nNothing has been changed. To do, in this order:\n")
        for number, (why, commands) in enumerate(steps(found, published), 1):
            print(f"{number}. {why}")
            print("".join(f"     {command}\n" for command in commands), end="")
    return 0
