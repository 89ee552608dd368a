"""``ctfoundry`` of an image, as ``python -m serving``: serves the release that lies beside this code, or runs it."""

from __future__ import annotations

import argparse
import http.client
import signal
import sys
import tempfile

from components.errors import UserError
from serving import batch_command, tls
from serving.gateway import commands as gateway
from serving.limits import bundle_folder

EVERYWHERE = "0.0.0.0"  # within a container; what reaches it from outside is the container's to say
PORT = 3000
PROBE_SECONDS = 5


def main() -> None:
    """Exits with 1 and one line on stderr for a mistake of the user."""
    arguments = _parser().parse_args()
    code, said = 1, ""
    try:
        _require_scratch()
        code = int(arguments.run(arguments))
    except UserError as error:
        said = str(error)
    except KeyboardInterrupt:
        code, said = 128 + signal.SIGINT, "interrupted"
    except OSError as error:  # of a file that was named, such as an output without room or rights
        if not isinstance(error.filename, str):
            raise
        said = f"{error.filename2 or error.filename}: {str(error.strerror).lower()}"
    print("".join(f"ctfoundry: {text}\n" for text in said.splitlines()), end="", file=sys.stderr, flush=True)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ctfoundry", description="Serve the release of this image, or run it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "Serve the release."
    sub = commands.add_parser("serve", help=text, description=text)
    sub.add_argument("--host", default=EVERYWHERE, help=f"address to bind (default: {EVERYWHERE})")
    sub.add_argument("--port", type=int, default=PORT, help=f"port (default: {PORT})")
    tls.add_options(sub)
    sub.set_defaults(run=_serve)
    text = "Answer for every scan of a folder: a table, segmentations, receipts and a report."
    sub = commands.add_parser("run", help=text, description=text)
    batch_command.add_options(sub)
    sub.set_defaults(run=lambda arguments: batch_command.run(arguments, bundle_folder()))
    text = "At a hospital's door: studies in by DICOM, the service's answers back."
    sub = commands.add_parser("gateway", help=text, description=text)
    gateway.add_options(sub)
    text = "Whether the service of this container lives: exit status 0 or 1."
    sub = commands.add_parser("healthy", help=text, description=text)
    sub.add_argument("--port", type=int, default=PORT, help=f"where it is served without TLS (default: {PORT})")
    sub.set_defaults(run=lambda arguments: _healthy(arguments.port))
    return parser


def _require_scratch() -> None:
    """Raise UserError where nothing can be written: a read-only root needs a tmpfs."""
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError:
        raise UserError("no folder for temporary files; mount one, such as a tmpfs on /tmp") from None


def _serve(arguments: argparse.Namespace) -> int:
    from serving.run import serve_beside  # which reads more than a probe needs

    serve_beside(arguments.host, arguments.port, tls.tls_of(arguments))


def _healthy(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/livez")
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"port {port}: {error}") from None
    finally:
        connection.close()


if __name__ == "__main__":
    main()
