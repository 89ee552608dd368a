"""``ctfoundry gateway``, and ``python -m serving.gateway`` in the image: its options, and what they ask for."""

from __future__ import annotations

import argparse
import logging
import os
import re
import ssl
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from components.ct.keys import study_key
from components.errors import UserError

if TYPE_CHECKING:
    from serving.gateway.listener import Door
    from serving.gateway.queue import Queue

STUDY = re.compile(r"e[0-9a-f]{16}")  # a pseudonym
TITLE = re.compile(r"[^\\\s]([^\\]{0,14}[^\\\s])?", re.ASCII)  # PS3.5, VR AE
PLACE = re.compile(r"(?P<host>[^\s]+):(?P<port>\d{1,5})")
LONGEST_SECONDS = 7 * 24 * 3600
CERTIFICATE, KEY, CALLERS = "CTFOUNDRY_GATEWAY_CERTFILE", "CTFOUNDRY_GATEWAY_KEYFILE", "CTFOUNDRY_GATEWAY_CALLER_CERTS"
TEXT = """\
what to do (default: run):
  run              receive studies, have the service answer, deliver the answers into the same study
  list             studies of the queue, with what became of them
  complete STUDY   a study that is being received is complete: do not wait for more of it
  retry STUDY      ask again what failed of a study, while its images are here

STUDY is a StudyInstanceUID, or a pseudonym as `list` shows it.

in the environment:
  CTFOUNDRY_GATEWAY_QUEUE         database in place of a file in the folder: postgresql+pg8000://user@host/database
  CTFOUNDRY_SERVICE_TOKEN_FILE    file with the token that the service wants
  CTFOUNDRY_SERVICE_CA            PEM file of the authorities of the service's certificate
  CTFOUNDRY_DICOMWEB_URL, ...     the PACS, for --poll and --results dicomweb; see components/sources/pacs.py
  CTFOUNDRY_GATEWAY_CERTFILE, _KEYFILE, _CALLER_CERTS   DICOM over TLS: PEM files; the last lets in only such callers
  CTFOUNDRY_PSEUDONYM_KEY         names studies in the log and the queue
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.set_defaults(run=run)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = TEXT
    parser.add_argument("do", nargs="?", default="run", metavar="WHAT", help="run, list, complete or retry")
    parser.add_argument("study", nargs="?", metavar="STUDY", help="for complete and retry")
    parser.add_argument(
        "--state", type=Path, required=True, metavar="FOLDER", help="queue and images; on a disk that stays"
    )
    service = "address of the service (default: http://127.0.0.1:3000)"
    parser.add_argument("--service", default="http://127.0.0.1:3000", metavar="URL", help=service)
    results = "where answers go: dicomweb (STOW-RS to the PACS), or TITLE@HOST:PORT (C-STORE)"
    parser.add_argument("--results", metavar="WHERE", help=results)
    parser.add_argument("--listen", metavar="HOST:PORT", help="receive images by C-STORE here, such as 127.0.0.1:11112")
    parser.add_argument("--title", default="CTFOUNDRY", metavar="AET", help="own AE title (default: CTFOUNDRY)")
    parser.add_argument("--callers", metavar="AET,...", help="AE titles that may call (default: all)")
    poll = "ask the PACS for new studies so often (DICOMweb), in place of, or beside, --listen"
    parser.add_argument("--poll", metavar="SECONDS", help=poll)
    days = "study dates to ask for, today's and those before (default: 2)"
    parser.add_argument("--poll-days", default="2", metavar="N", help=days)
    quiet = "without an image, after which a study is complete (default: 30)"
    parser.add_argument("--quiet", default="30", metavar="SECONDS", help=quiet)
    patience = "the same, where the sender's association broke off (default: 300)"
    parser.add_argument("--patience", default="300", metavar="SECONDS", help=patience)
    keep = "for which the images of an answered study stay, for images that come late (default: 3600)"
    parser.add_argument("--keep", default="3600", metavar="SECONDS", help=keep)
    confirm = "after a delivery, when the answer is looked for where it went (default: 30; 0: never)"
    parser.add_argument("--confirm", default="30", metavar="SECONDS", help=confirm)
    parser.add_argument("--metrics", metavar="HOST:PORT", help="figures for Prometheus, such as 127.0.0.1:9102")


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked. Raises UserError for what is not allowed."""
    does = {"run": _run, "list": _list, "complete": _complete, "retry": _retry}
    if arguments.do not in does:
        raise UserError(f"gateway {arguments.do!r} is not allowed: {', '.join(does)}")
    if (arguments.study is None) == (arguments.do in ("complete", "retry")):
        raise UserError(f"gateway {arguments.do}: {'names a STUDY' if arguments.study is None else 'takes no STUDY'}")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("serving.gateway").setLevel(logging.INFO)
    return does[arguments.do](arguments)


def _run(arguments: argparse.Namespace) -> int:
    from serving.gateway.running import Options
    from serving.gateway.running import run as run_gateway
    from serving.gateway.working import Times

    if arguments.results is None:
        raise UserError("--results is missing: dicomweb, or TITLE@HOST:PORT of a DICOM node")
    if arguments.listen is None and arguments.poll is None:
        raise UserError("--listen HOST:PORT or --poll SECONDS is missing: no study would come in")
    options = Options(
        state=arguments.state,
        service=arguments.service,
        results=arguments.results,
        door=None if arguments.listen is None else _door(arguments),
        poll_seconds=None if arguments.poll is None else _number("--poll", arguments.poll, 1),
        poll_days=int(_number("--poll-days", arguments.poll_days, 1, 366)),
        quiet_seconds=_number("--quiet", arguments.quiet, 1),
        patience_seconds=_number("--patience", arguments.patience, 1),
        times=Times(_number("--keep", arguments.keep, 0), _number("--confirm", arguments.confirm, 0)),
        metrics=None if arguments.metrics is None else _place("--metrics", arguments.metrics),
    )

    def ready(port: int) -> None:
        where = f"{options.door.title} listens on {options.door.host}:{port}" if options.door else "polling the PACS"
        logging.getLogger("serving.gateway").info("gateway: %s; service %s", where, options.service)

    return run_gateway(options, ready)


def _door(arguments: argparse.Namespace) -> Door:
    from serving.gateway.listener import Door

    host, port = _place("--listen", arguments.listen)
    callers = tuple(filter(None, (arguments.callers or "").split(",")))
    for name, title in (("--title", arguments.title), *(("--callers", caller) for caller in callers)):
        if not TITLE.fullmatch(title):
            raise UserError(f"{name} {title!r} is not allowed: an AE title of 1 to 16 characters")
    return Door(host, port, arguments.title, callers, _tls())


def _tls() -> ssl.SSLContext | None:
    certificate, key, callers = (os.environ.get(name) for name in (CERTIFICATE, KEY, CALLERS))
    if not certificate:
        if key or callers:
            raise UserError(f"{CERTIFICATE}: not set, but {KEY if key else CALLERS} is")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key or None)
        if callers:
            context.load_verify_locations(callers)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError among them
        raise UserError(f"{CERTIFICATE}, {KEY}, {CALLERS}: not PEM files that fit ({type(error).__name__})") from None
    return context


def _list(arguments: argparse.Namespace) -> int:
    from serving.gateway.spool import SPOOL

    queue = _queue(arguments.state)
    rows: list[tuple[str, ...]] = [
        ("study", "state", "sender", "series", "images", "answered", "nothing", "failed", "reason")
    ]
    for study in queue.studies():
        answers = queue.answers(study.study)
        here = [path.parent.name for path in (arguments.state / SPOOL / study.study).glob("*/*.dcm")]
        images = {answer.series: answer.images for answer in answers} | Counter(here)
        states = [answer.state for answer in answers]
        counts = [str(states.count(state)) for state in ("answered", "nothing", "failed")]
        reason = next((answer.reason for answer in answers if answer.reason), "")
        sizes = (str(len(images)), str(sum(images.values())))
        rows.append((study.study, study.state, study.sender or "-", *sizes, *counts, reason))
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _complete(arguments: argparse.Namespace) -> int:
    study = _pseudonym(arguments.study)
    if not _queue(arguments.state).request(study):
        raise UserError(f"study {study}: is not being received; see `gateway list`")
    print(f"study {study}: complete")
    return 0


def _retry(arguments: argparse.Namespace) -> int:
    from serving.gateway.spool import SPOOL

    study = _pseudonym(arguments.study)
    if not (arguments.state / SPOOL / study).is_dir():
        raise UserError(f"study {study}: its images are not here (any more); send it again")
    if not _queue(arguments.state).again(study):
        raise UserError(f"study {study}: has not ended; see `gateway list`")
    print(f"study {study}: is asked again")
    return 0


def _queue(state: Path) -> Queue:
    from serving.gateway.running import PLACE, open_queue

    if not (state / PLACE).is_file():
        raise UserError(f"--state {state}: no gateway has run with this folder")
    return open_queue(state)


def _pseudonym(text: str) -> str:
    return text if STUDY.fullmatch(text) else study_key(text.strip())


def _place(name: str, text: str) -> tuple[str, int]:
    found = PLACE.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise UserError(f"{name} {text!r} is not allowed: host:port")
    return found["host"].strip("[]"), int(found["port"])


def _number(name: str, text: str, least: float, most: float = LONGEST_SECONDS) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise UserError(f"{name} {text!r} is not allowed: a number from {least:g} to {most:g}")
    return number
