"""``ctfoundry image``: an OCI image of a line's present release, tested as it will run, with its bills of materials."""

from __future__ import annotations

import argparse
import os

from components.errors import UserError
from flows.lines import add_line
from flows.lock import checkout_lock
from flows.processes import ending_with_us


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry image``."""
    parser.set_defaults(run=run)
    add_line(parser)
    cuda = "whose torch: for the CPU (default), or cuda, which needs an index of such wheels"
    parser.add_argument("--variant", default="cpu", metavar="cpu|cuda", help=cuda)
    parser.add_argument("--index", metavar="URL", help="a package index more, of torch for this variant")
    parser.add_argument("--renew", action="store_true", help="take Debian's present packages, also where some are kept")


def run(arguments: argparse.Namespace) -> int:
    """Build, test, tag, describe and sign; say what it is and what it took."""
    from flows.image.make import IMAGES, Wanted, make_image
    from flows.image.parts import VARIANTS

    if arguments.variant not in VARIANTS:
        raise UserError(f"--variant {arguments.variant!r} is not allowed: {' or '.join(VARIANTS)}")
    if os.geteuid() != 0:
        raise UserError("an image is built and started by root; run this with sudo, or in a container of your CI")
    with checkout_lock(f"image --line {arguments.line}"), ending_with_us():
        made = make_image(Wanted(arguments.line, arguments.variant, arguments.index, arguments.renew))
    print(f"image {made.tag}: {made.digest}")
    print(f"layers: {', '.join(f'{size / 1e6:.1f}' for size in made.layers)} MB compressed, {made.megabytes:.1f} MB")
    print(f"self-test: {', '.join(made.tested.asked)}: as the release answers here")
    print(f"ready {made.tested.ready_seconds:.0f} s after its start")
    print("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in made.seconds.items()))
    print(f"{IMAGES / arguments.line}: {'signed' if made.signed else 'not signed: no key is at hand'}")
    return 0
