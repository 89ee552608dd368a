"""``python -m serving.gateway``: as ``ctfoundry gateway``, where there is no checkout."""

from __future__ import annotations

import argparse
import sys

from components.errors import UserError
from serving.gateway.commands import add_options


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.gateway", description="Answer what a hospital sends.")
    add_options(parser)
    arguments = parser.parse_args()
    try:
        sys.exit(arguments.run(arguments))
    except UserError as error:
        sys.exit(f"gateway: {error}")


if __name__ == "__main__":
    main()
