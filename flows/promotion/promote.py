"""``ctfoundry promote`` and ``ctfoundry rollback``."""

from __future__ import annotations

import argparse

from components.errors import UserError
from components.settings import require_line
from flows import champion
from flows.lines import add_line
from flows.lock import checkout_lock
from flows.processes import ending_with_us
from flows.promotion.champions import Promoted, promote, roll_back
from flows.promotion.tags import REMOTE, branch


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry promote``, and of ``rollback``, which is the same way back."""
    back = parser.prog.endswith("rollback")
    if back:
        parser.set_defaults(run=_roll_back)
        parser.add_argument("of", metavar="LINE")
        parser.add_argument("version", metavar="VERSION", nargs="?", help="default: the champion before the present")
        parser.add_argument("--reason", default="", help="why, for the tag")
        return
    parser.set_defaults(run=_promote)
    parser.add_argument("of", metavar="LINE", nargs="?")
    parser.add_argument("version", metavar="VERSION", nargs="?", help="a published version, such as v1.2.0")
    parser.add_argument("--reason", help="why, for the tag")
    parser.add_argument("--judged", metavar="DIGEST", help="of the bundle that was judged: another one is refused")
    add_line(parser, "without a version: the line whose present release this checkout's files are to name as champion")
    parser.add_argument("--none", action="store_true", help="as --line, to unset the champion")


def _promote(arguments: argparse.Namespace) -> int:
    if arguments.of is None:
        return _promote_here(arguments)
    line = require_line(arguments.of)
    if arguments.version is None or arguments.reason is None:
        raise UserError(
            f"promote {line}: name the version and say why: `ctfoundry promote {line} v1.0.0 --reason TEXT`"
        )
    with checkout_lock(f"promote {line}"), ending_with_us():
        told(promote(line, arguments.version, arguments.reason, arguments.judged))
    return 0


def _promote_here(arguments: argparse.Namespace) -> int:
    with checkout_lock(f"promote --line {arguments.line}"):
        print(champion.unset(arguments.line) if arguments.none else champion.promote(arguments.line))
    return 0


def _roll_back(arguments: argparse.Namespace) -> int:
    line = require_line(arguments.of)
    with checkout_lock(f"rollback {line}"), ending_with_us():
        told(roll_back(line, arguments.version, arguments.reason.strip()))
    return 0


def told(promoted: Promoted) -> None:
    """Print what came of it."""
    version, by = promoted.version, promoted.by or "nobody: this team asks for no signature"
    if not promoted.commit:
        print(f"{version.name}: is the champion already, by {promoted.tag}; nothing to do")
        return
    before = promoted.replaced.name if promoted.replaced else "none"
    print(f"{version.name}: champion of {version.line}, bundle {version.digest[:16]}; before: {before}")
    print(f"{promoted.tag}: signed by {by}")
    print(
        f"{REMOTE}/{branch()}: {promoted.commit[:12]} holds its figures and its data's profile; `git pull` brings them"
    )
    print(f"serve it with `ctfoundry serve --line {version.line} --champion`")
