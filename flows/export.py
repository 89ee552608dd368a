"""``ctfoundry export``: a release as others load it: a Hugging Face folder, a MONAI bundle, ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.lines import add_line

KINDS = ("huggingface", "monai", "onnx")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry export``."""
    parser.set_defaults(run=run)
    add_line(parser)
    parser.add_argument(
        "--to", choices=KINDS, required=True, help="what loads it: lighter_zoo, MONAI, or an ONNX runtime"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")


def run(arguments: argparse.Namespace) -> int:
    """Write it and say how it is loaded."""
    from components.bundle.exports.write import export

    release = export(Path("releases") / arguments.line, arguments.to, arguments.output)
    page = "docs/README.md" if arguments.to == "monai" else "README.md"
    print(f"{arguments.output}: release {release.manifest.digest[:12]} for {arguments.to}; {page} says how to load it")
    return 0
