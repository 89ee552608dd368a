"""``ctfoundry releases``: what was published, as tags, commits and DVC's outputs say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.table import Table

from components.errors import UserError
from components.progress import wide_console
from components.settings import require_line
from flows.promotion.champions import champion
from flows.promotion.reports import (
    beside,
    facts,
    figures_beside,
    funnel,
    gates_and_figures,
    licence_counts,
    parameters_that_differ,
)
from flows.promotion.tags import assignments, fetch, find_version, versions
from flows.repository import git


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry releases``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    offline = "as this clone knows it, without asking the remote"
    listed = actions.add_parser("list", help="published versions of a line: digest, date, gates, champion or not")
    listed.set_defaults(run=_list)
    shown = actions.add_parser("show", help="one version: figures, gates, and what differs from the champion's")
    shown.set_defaults(run=_show)
    compared = actions.add_parser("diff", help="two versions: parameters, code, data, licences, figures")
    compared.set_defaults(run=_diff)
    for sub, names in ((listed, ()), (shown, ("version",)), (compared, ("first", "second"))):
        sub.add_argument("of", metavar="LINE")
        for name in names:
            sub.add_argument(name, metavar="VERSION" if name == "version" else name.upper())
        sub.add_argument("--offline", action="store_true", help=offline)


def _line(arguments: argparse.Namespace) -> str:
    line = require_line(arguments.of)
    if not arguments.offline:
        fetch(line)
    return line


def _list(arguments: argparse.Namespace) -> int:
    line = _line(arguments)
    published = versions(line)
    if not published:
        raise UserError(f"line {line}: nothing is published yet: no tag {line}@v<number> with an annotation")
    stages = assignments(line)
    rows = []
    for version in reversed(published):
        was = [assignment for assignment in stages if assignment.version == version]
        now = bool(stages) and stages[-1].version == version
        since = f"{'champion since' if now else 'was champion from'} {was[-1].tag.date:%Y-%m-%d}" if was else ""
        date = f"{version.tag.date:%Y-%m-%d %H:%M}"
        rows.append((version.version, version.digest[:16], date, since, version.gates, version.commit[:12]))
    print_table(f"Releases of line {line}", ("version", "digest", "published", "stage", "gates", "commit"), rows)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    line = _line(arguments)
    version, now = find_version(line, arguments.version), champion(line)
    for name, value in facts(version):
        print(f"{name}: {value}")
    gates, figures = gates_and_figures(version)
    print_table("Gates", ("gate", "figure", "bound", "verdict"), gates)
    print_table("Figures", ("task", "figure", "value", "95 % interval", "patients"), figures)
    if now is None or now.version is None or now.version == version:
        print("champion: " + ("this version" if now and now.version == version else "none"))
        return 0
    rows = parameters_that_differ(now.version, version)
    print_table(f"Parameters beside the champion's, {now.version.name}", ("parameter", "champion", "this"), rows)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    line = _line(arguments)
    first, second = (find_version(line, wanted) for wanted in (arguments.first, arguments.second))
    names = (first.version, second.version)
    print_table("Parameters", ("parameter", *names), parameters_that_differ(first, second))
    changed = git("diff", "--shortstat", first.commit, second.commit, "--", "components", "serving", "constraints.txt")
    files = git("diff", "--name-only", first.commit, second.commit, "--", "components", "serving", "constraints.txt")
    print(f"Code: {changed.strip() or 'the same'}")
    print("".join(f"  {name}\n" for name in files.splitlines()), end="")
    print_table("Data", ("series", *names), beside(funnel(first), funnel(second)))
    print_table(
        "Licences (pretraining series)", ("collection", *names), beside(licence_counts(first), licence_counts(second))
    )
    print_table("Figures [95 % interval]", ("task", "figure", *names, "difference"), figures_beside(first, second))
    return 0


def print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table for people; ``none`` where it has no rows."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows or [("none", *[""] * (len(columns) - 1))]:
        table.add_row(*row)
    wide_console().print(table)
