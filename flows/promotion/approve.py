"""``ctfoundry approve`` and ``ctfoundry reject``: answer a run that waits for a person."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from components.errors import UserError
from flows.places import SERVER_VARIABLE
from flows.promotion.approval import JUDGED
from flows.repository import git


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both."""
    yes = parser.prog.endswith("approve")
    parser.set_defaults(run=run, yes=yes)
    parser.add_argument("flow_run", metavar="RUN_ID", help="see `prefect flow-run ls --state Suspended`")
    parser.add_argument("--reason", required=True, help="why, for the record")
    parser.add_argument("--by", help="who says so (default: the name and address that git knows)")
    if yes:
        parser.add_argument("--digest", help="of what you judged (a bundle, a plan): another one is not approved")


def run(arguments: argparse.Namespace) -> int:
    """Answer, and say to what."""
    try:
        number = UUID(arguments.flow_run)
    except ValueError:
        raise UserError(f"RUN_ID {arguments.flow_run!r} is not allowed: a flow run's UUID") from None
    if not os.environ.get(SERVER_VARIABLE):
        raise UserError(f"{SERVER_VARIABLE}: not set; it names the Prefect server where the run waits")
    by = arguments.by or f"{git('config', 'user.name')} <{git('config', 'user.email')}>"
    answer = {"approve": arguments.yes, "by": by, "reason": arguments.reason}
    try:
        with get_client(sync_client=True) as client:
            judged = _waiting(client, number)
            _require_same(judged, getattr(arguments, "digest", None))
            result = client.resume_flow_run(number, run_input=answer)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{SERVER_VARIABLE} {os.environ[SERVER_VARIABLE]!r}: does not answer: {said}") from None
    if result.status != SetStateStatus.ACCEPT:
        raise UserError(f"run {number}: the answer was not taken: {getattr(result.details, 'reason', result.status)}")
    print(f"{judged['name']}, digest {judged['digest'][:16]}: {'approved' if arguments.yes else 'rejected'} by {by}")
    return 0


def _waiting(client: SyncPrefectClient, number: UUID) -> dict[str, Any]:
    """What a run that waits was judged by. Raises UserError where none waits."""
    try:
        state = client.read_flow_run(number).state
    except ObjectNotFound:
        raise UserError(f"run {number}: the server knows none of this number") from None
    if state is None or not state.is_paused():
        raise UserError(f"run {number}: waits for nobody; its state is {state.name if state else 'none yet'}")
    try:
        return dict(json.loads(client.read_flow_run_input(number, JUDGED)))
    except PrefectHTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        raise UserError(f"run {number}: asks nobody anything") from None


def _require_same(judged: dict[str, Any], digest: str | None) -> None:
    if digest is not None and (len(digest) < 8 or not judged["digest"].startswith(digest.lower())):
        raise UserError(f"--digest {digest!r}: the run waits with {judged['digest']}; nothing was answered")
