"""``ctfoundry sign``: the team's signature on a release, and in its Bento."""

from __future__ import annotations

import argparse
from pathlib import Path

from components.errors import UserError
from flows.lines import add_line
from flows.lock import checkout_lock


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry sign``."""
    parser.set_defaults(run=run)
    add_line(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sign, and say where the signature lies."""
    from components.bundle.manifest import read_manifest
    from components.bundle.signing import KEY_FILE_VARIABLE, KEY_VARIABLE, sign_release, signing_key
    from components.bundle.trust import fingerprint
    from serving.build import bento_path, bento_tag, carry_signature

    key = signing_key()
    if key is None:
        raise UserError(f"no key: set {KEY_FILE_VARIABLE} to a PEM file, or {KEY_VARIABLE} to its text")
    folder = Path("releases") / arguments.line
    with checkout_lock(f"sign --line {arguments.line}"):
        signature = sign_release(folder, key)
        bento = bento_path(tag := bento_tag(read_manifest(folder)))
        if bento is not None:
            carry_signature(folder, bento / "src")
    print(f"{signature}: signed by the key {fingerprint(key.public_key())}")
    print(f"bento {tag}: {'has the signature' if bento else 'not in the local store'}")
    return 0
