"""``ctfoundry cost``: what a line's present release took, by the prices of now."""

from __future__ import annotations

import argparse

from components.errors import UserError
from flows.lines import add_line


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry cost``."""
    parser.set_defaults(run=run)
    add_line(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table and write the page; nothing is made again."""
    from rich.table import Table

    from components.progress import wide_console
    from flows.costs.page import remarks, table_rows
    from flows.costs.release import account, write_account

    told = account(arguments.line)
    if not told["stages"]:
        raise UserError(
            f"cost: no stage of line {arguments.line} is in dvc.lock; run `make release LINE={arguments.line}`"
        )
    rows = table_rows(told)
    table = Table(title=f"What line {arguments.line} took", title_justify="left")
    for place, heading in enumerate(rows[0]):
        text = place in (0, len(rows[0]) - 1)
        table.add_column(heading, justify="left" if text else "right", overflow="fold", no_wrap=text)
    for row in rows:
        table.add_row(*row.values(), end_section=row is rows[-2])
    wide_console().print(table)
    for remark in remarks(told):
        print(remark)
    print(write_account(arguments.line, told))
    return 0
