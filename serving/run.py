"""Serve a Bento on this machine, or the release that lies beside this code in an image."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from components.bundle.manifest import read_manifest
from components.bundle.signature import verify_release
from components.bundle.trust import KEYS_VARIABLE
from components.confined import Bounds
from components.errors import UserError
from serving.asking import INDEX_VARIABLE
from serving.build import BUNDLE, SERVICE, bento_environment, bento_path, bento_tag
from serving.limits import BUNDLE_VARIABLE, Limits, bundle_folder, device_asked
from serving.tls import PLAIN, Tls
from serving.tokens import VARIABLE as TOKENS_VARIABLE
from serving.tokens import Tokens

LOCALHOST = "127.0.0.1"
PORT = 3000


def serve_command(target: str, host: str = LOCALHOST, port: int = PORT, tls: Tls = PLAIN) -> list[str]:
    """The command that serves a release.

    Args:
        target: a model line (its last release) or a Bento's tag, name:version.
        host: IP address to bind; other machines reach the service only where this is not the loopback address.
        port: TCP port.
        tls: certificates.

    Raises:
        UserError: there is no such release or Bento, it is damaged, or not signed as it must be; or host, port, a
            certificate, a limit or the file of tokens is not allowed.
    """
    where = _where(host, port, tls)
    tag = target if ":" in target else bento_tag(read_manifest(Path("releases") / target))
    bento = bento_path(tag)
    if bento is None:
        raise UserError(f"bento {tag}: not in the local store; run `make release` first")
    _check_release(bento / "src" / BUNDLE)
    return [sys.executable, "-m", "bentoml", "serve", tag, *where]


def _where(host: str, port: int, tls: Tls) -> list[str]:
    """Options of ``bentoml serve``. Raises UserError where one is not allowed."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise UserError(f"host {host!r} is not allowed: an IP address, such as {LOCALHOST}") from None
    if not 0 < port < 65536:
        raise UserError(f"port {port} is not allowed: 1 to 65535")
    return ["--host", host, "--port", str(port), *tls.arguments()]


def _check_release(bundle: Path) -> None:
    """Raise UserError where the service would not start: what it says itself comes late, among other lines."""
    digest = verify_release(bundle).manifest.digest
    if os.environ.get(INDEX_VARIABLE, "").strip():
        from serving.nearest import Index  # which imports torch

        Index.from_environment(digest)
    Limits.from_environment(), Bounds.from_environment(), Tokens.from_environment()
    if (device := device_asked()) == "cuda":
        from serving.device import chosen_device  # which imports torch

        chosen_device(device)


def _require_free(host: str, port: int) -> None:
    """Raise UserError where the server could not listen there; what it would say itself is long."""
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise UserError(f"port {port} of {host}: {why}; choose another with --host or --port") from None


def serve(target: str, host: str = LOCALHOST, port: int = PORT, tls: Tls = PLAIN) -> NoReturn:
    """Become the server (this process is replaced). Raises as :func:`serve_command`."""
    command = serve_command(target, host, port, tls)
    _require_free(host, port)
    environment = bento_environment()
    for variable in (TOKENS_VARIABLE, KEYS_VARIABLE, INDEX_VARIABLE):  # the folder changes below
        if environment.get(variable, "").strip():
            environment[variable] = str(Path(environment[variable].strip()).absolute())
    # From the store's folder, so that the Bento's own code is imported and not this checkout's.
    os.chdir(environment["BENTOML_HOME"])
    environment.pop(BUNDLE_VARIABLE, None)
    os.execve(command[0], command, environment)


def serve_beside(host: str, port: int, tls: Tls = PLAIN) -> NoReturn:
    """Become the server of the release beside this code, as in an image. Raises as :func:`serve_command`."""
    where = _where(host, port, tls)
    _check_release(bundle_folder())
    _require_free(host, port)
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, *where]
    os.execve(command[0], command, bento_environment())
