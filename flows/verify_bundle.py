"""``ctfoundry verify-bundle``: whether a release may be loaded here, and who vouches for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.lines import add_line


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry verify-bundle``."""
    parser.set_defaults(run=run)
    add_line(parser, "model line, whose present release is verified")
    parser.add_argument("folder", type=Path, nargs="?", help="another release folder, its signature beside it")
    told = "folder of trusted *.pub files, or one (default: what CTFOUNDRY_TRUSTED_KEYS says)"
    parser.add_argument("--keys", type=Path, help=told)


def run(arguments: argparse.Namespace) -> int:
    """Print digest and key; what is wrong is the command's error."""
    from components.bundle.signature import verify_release
    from components.bundle.trust import trusted_keys

    folder = arguments.folder or Path("releases") / arguments.line
    verified = verify_release(folder, trusted_keys(arguments.keys))
    manifest, key = verified.manifest, verified.key
    told = "not asked for: no keys are trusted here" if key is None else f"by {key.name}, the key {key.fingerprint}"
    print(f"bundle {folder.absolute().name}: {len(manifest.files)} files as in the manifest, digest {manifest.digest}")
    print(f"signature: {told}")
    return 0
