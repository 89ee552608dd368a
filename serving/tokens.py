"""Bearer tokens (RFC 6750): who may use the service, from a file that may change while it runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from pathlib import Path

from components.errors import UserError

log = logging.getLogger("bentoml.service.ctfoundry")

VARIABLE = "CTFOUNDRY_TOKENS_FILE"
MIN_CHARACTERS = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEME = re.compile(rb"bearer +([^ ]+) *", re.IGNORECASE)


class Tokens:
    """The tokens of a file, read again whenever it changes.

    A line holds ``name:token``, or a token alone, whose name is then ``token-`` and 8 digits of its SHA-256; empty
    lines and those that begin with ``#`` say nothing. A name may have several tokens, so that one can follow another.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file cannot be read, holds no token or a line that is none."""
        self._path = path
        self._state: object = None
        self._digests = self._read()

    @classmethod
    def from_environment(cls) -> Tokens | None:
        """Those of the file that the environment names; None where it names none. Raises as the constructor."""
        name = os.environ.get(VARIABLE, "").strip()
        return cls(Path(name)) if name else None

    def who(self, header: bytes | None) -> str | None:
        """Name of the one who sends this Authorization header, None for nobody known; takes equally long for all."""
        self._renew()
        given = _SCHEME.fullmatch(header or b"")
        digest = hashlib.sha256(given[1] if given else b"").digest()
        found = None
        for name, known in self._digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _renew(self) -> None:
        """Read a file that has changed; one that is not allowed any more lets nobody in."""
        if self._seen() == self._state:
            return
        try:
            self._digests = self._read()
        except UserError as error:
            self._digests = []
            log.error("nobody is let in: %s", error)
        else:
            log.info("%s has changed: %d tokens", VARIABLE, len(self._digests))

    def _seen(self) -> object:
        try:
            told = self._path.stat()
        except OSError as error:
            return error.errno
        return told.st_mtime_ns, told.st_size, told.st_ino

    def _read(self) -> list[tuple[str, bytes]]:
        self._state = self._seen()
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"{VARIABLE}: {self._path}: {(error.strerror or str(error)).lower()}") from None
        except UnicodeDecodeError:
            raise UserError(f"{VARIABLE}: {self._path}: not text in UTF-8") from None
        told = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
        found = [self._parsed(number, line) for number, line in told if line and not line.startswith("#")]
        if not found:
            raise UserError(f"{VARIABLE}: {self._path}: no token in it; write one a line, or name:token")
        return found

    def _parsed(self, number: int, line: str) -> tuple[str, bytes]:
        """Name and digest of a line's token. The message quotes nothing: it goes to a log."""
        name, separator, token = line.rpartition(":")
        where = f"{VARIABLE}: {self._path}: line {number}"
        if separator and not _NAME.fullmatch(name):
            raise UserError(f"{where}: the name is not allowed: 1 to 64 letters, digits, dots, hyphens or underscores")
        if len(token) < MIN_CHARACTERS or not _TOKEN.fullmatch(token):
            what = "letters, digits and -._~+/, with = at the end"
            raise UserError(f"{where}: the token is not allowed: at least {MIN_CHARACTERS} characters, {what}")
        digest = hashlib.sha256(token.encode()).digest()
        return name or f"token-{digest.hex()[:8]}", digest
