"""What becomes of a request, told by those who handle it, and its line in the audit log."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.types import Scope

KEY = "ctfoundry.account"  # in an ASGI scope
audit_log = logging.getLogger("ctfoundry.audit")


@dataclass
class Account:
    """One request.

    Attributes:
        who: name of its token, or the subject of its certificate where it has none; None where it has neither.
        outcome: one of ``serving.metrics.OUTCOMES``; empty while it is open.
        series: pseudonym of the series that was in its file, where that is known.
    """

    who: str | None = None
    outcome: str = ""
    series: str = ""


def account_of(scope: Scope) -> Account:
    """The account of a request, begun where nobody has."""
    account: Account = scope.setdefault(KEY, Account())
    return account


def write_audit_lines() -> None:
    """Send the audit log to standard output, one JSON object a line and nothing else on it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    audit_log.handlers = [handler]
    audit_log.setLevel(logging.INFO)
    audit_log.propagate = False


def audit(account: Account, route: str, digest: str, seconds: float) -> None:
    """One line for one request to a route that takes scans.

    It names neither file nor UID nor header nor address: who asked is the name of a token, whose scan it was a
    pseudonym.
    """
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "who": account.who,
        "series": account.series or None,
        "digest": digest,
        "route": route,
        "outcome": account.outcome,
        "seconds": round(seconds, 3),
    }
    audit_log.info(json.dumps(line))
