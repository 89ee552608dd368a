"""``ctfoundry cohort``: look at a selection before it is transferred, compare two, fetch the index's large tables."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import UserError
from flows.lines import add_line

if TYPE_CHECKING:  # what takes long to import is imported where it is used
    import pandas as pd

    from components.sources.config import IdcConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry cohort`` and what follows it."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    preview = actions.add_parser(
        "preview", help="the funnel and breakdowns of a selection, without any transfer",
        description="The funnel and breakdowns of a selection, from the index on this machine; nothing is transferred. "
        "Options stand in params.yaml, <line>.cohort.idc; those given here take their place for this preview.",
    )  # fmt: skip
    preview.set_defaults(run=_preview)
    add_line(preview)
    preview.add_argument("--query", help="a file of components/sources/queries, without .sql")
    preview.add_argument("--idc-version", type=int, help="newest IDC version whose series are taken")
    preview.add_argument("--licence", action="append", help="allow this licence (again for more)")
    preview.add_argument("--collection", action="append", help="take only this collection (again for more)")
    preview.add_argument("--sample", type=int, help="at most so many series")
    preview.add_argument("--output", type=Path, help="write the table, attribution, funnel and receipt to this folder")

    diff = actions.add_parser(
        "diff", help="what two selections, releases or IDC versions have in common, and what not",
        description="Compare two selections by series and patient. Each is an IDC version such as v14, a table "
        "(selection.parquet, cohort.parquet), or a git revision, whose cohort is taken from DVC's cache.",
    )  # fmt: skip
    diff.set_defaults(run=_diff)
    diff.add_argument("before", help="v<IDC version>, a .parquet file, or a git revision")
    diff.add_argument("after", help="likewise")
    add_line(diff)

    fetch = actions.add_parser("fetch-index", help="fetch ct_index and volume_geometry_index through idc-index")
    fetch.set_defaults(run=_fetch_index)


def _preview(arguments: argparse.Namespace) -> int:
    from components.progress import wide_console
    from components.sources.idc_index import select
    from components.sources.idc_preview import print_preview, write_selection

    changes = {
        "query": arguments.query,
        "idc_version": arguments.idc_version,
        "licences": arguments.licence,
        "collections": arguments.collection,
        "sample": arguments.sample,
    }
    selection = select(_config(arguments.line, {k: v for k, v in changes.items() if v is not None}))
    print_preview(selection, wide_console())
    if arguments.output:
        write_selection(selection, arguments.output)
        print(f"written to {arguments.output}: selection.parquet, attribution.parquet, selection.json")
    return 0


def _config(line: str, changes: dict[str, object]) -> IdcConfig:
    from components.settings import block_of, parse, shown
    from components.sources.config import IdcConfig

    stated = block_of(line, "cohort").get("idc")
    if not isinstance(stated, dict):
        raise UserError(f"params.yaml: {line}.cohort.idc: {shown(stated)} is not allowed: a block of settings")
    return parse(IdcConfig, {**stated, **changes}, f"{line}.cohort.idc")


def _diff(arguments: argparse.Namespace) -> int:
    from components.cohort.diff import compare, print_diff
    from components.progress import wide_console

    tables = [_table(text, arguments.line) for text in (arguments.before, arguments.after)]
    print_diff(compare(*tables), arguments.before, arguments.after, wide_console())
    return 0


def _table(text: str, line: str) -> pd.DataFrame:
    """A selection as a table with columns series, patient, collection, licence, bytes."""
    from components.cohort.diff import of_cohort, of_selection
    from components.sources.idc_index import select
    from components.tables import read_table

    if text[:1] == "v" and text[1:].isdigit():
        return of_selection(select(_config(line, {"idc_version": int(text[1:])})).series)
    path = Path(text)
    if path.suffix == ".parquet":
        if not path.is_file():
            raise UserError(f"cohort {text!r}: no such file")
        try:
            return of_cohort(read_table(path))
        except (ValueError, KeyError, OSError) as error:  # pyarrow's own are ValueErrors
            raise UserError(
                f"cohort {text!r}: not a cohort.parquet or selection.parquet ({type(error).__name__})"
            ) from None
    from dvc.api import DVCFileSystem

    try:
        with DVCFileSystem(".", rev=text).open(f"data/{line}/cohort/cohort.parquet", "rb") as stream:
            import pandas as pd

            return of_cohort(pd.read_parquet(stream))
    except Exception as error:  # DVC, git and its cache each raise their own kinds
        raise UserError(
            f"cohort {text!r}: no IDC version, .parquet file or git revision with a cohort in DVC's cache "
            f"({type(error).__name__}); `dvc fetch` may help"
        ) from None


def _fetch_index(arguments: argparse.Namespace) -> int:
    from components.sources.idc_index import FETCHED, table_path

    for name in FETCHED:
        if table_path(name) is None:
            from idc_index.index import IDCClient

            logging.getLogger("idc_index").setLevel(logging.CRITICAL)  # it logs a whole traceback
            with contextlib.suppress(OSError):  # what requests raises; it may also fail without raising
                IDCClient.client().fetch_index(name)
        if table_path(name) is None:
            raise UserError(f"{name}: could not be fetched from the release of idc-index-data; is the network up?")
        print(f"{name}: {table_path(name)}")
    return 0
