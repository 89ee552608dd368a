"""What comes before the graph: what was asked for goes into ``params.yaml``, and a mistake is told before any work."""

from __future__ import annotations

from collections.abc import Callable

from components.registry import check_file
from flows.parameters import list_tasks, pin
from flows.places import require_pins, require_repository
from flows.sources import pin_source
from flows.start import check_start


def begin(
    line: str,
    source: str | None,
    evaluation: str | None,
    privacy: str | None,
    and_require: Callable[[], None] = lambda: None,
) -> None:
    """Check the place and the parameters of a release, and pin its source.

    Args:
        line: model line.
        source, evaluation: see :func:`flows.sources.pin_source`; None leaves them as they are.
        privacy: what personal data in a header cost; None leaves it as it is.
        and_require: what else the place must have.

    Raises:
        UserError: one line that says what is missing or not allowed. Nothing has been begun.
    """
    list_tasks()
    check_file(nodules_to_come=evaluation not in (None, "none") or bool(source))
    require_repository()
    require_pins()
    and_require()
    if source or evaluation:
        pin_source(line, source, evaluation)
    if privacy:
        pin(line, "screen", {"privacy": privacy})
    check_file()
    check_start(line, fetch=True)
