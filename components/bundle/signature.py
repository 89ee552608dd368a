"""A release is verified here before anything of it is loaded: its manifest, its signature, that nothing in it runs.

A signature is model-signing's (OpenSSF Model Signing, v1.0): a Sigstore bundle with a DSSE envelope round an in-toto
statement, which names the SHA-256 of every file, the manifest's too. It lies beside the release, ``<release>.sig``, or
in a Bento's ``signature/bundle.sig``: ECDSA draws a number for each, so equal releases have other signatures.
:mod:`components.bundle.signing` makes it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from components.bundle.inert import require_inert
from components.bundle.manifest import MANIFEST_FILE, Manifest, read_manifest, verify_bundle
from components.bundle.trust import TrustedKey, trusted_keys
from components.errors import UserError
from components.files import sha256_file

IN_BENTO = "signature"  # its folder beside the bundle
SUFFIX = ".sig"
MAX_BYTES = 16 * 1024**2  # some 50,000 files
KINDS = ("application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.in-toto+json")
STATEMENT_KINDS = ("https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0")
# Every file, each whole, no links. Ignored paths would be files that anybody may put there.
SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Verified:
    """A release that may be loaded; ``key`` signed it, None where no signature was asked for."""

    manifest: Manifest
    key: TrustedKey | None


@dataclass(frozen=True)
class Envelope:
    """A signature file, taken apart and not yet believed: ``key`` is the fingerprint that it names."""

    payload: bytes
    signature: bytes
    key: str


@dataclass(frozen=True)
class Statement:
    """What was signed: the folder's name then, and relative POSIX path to hex SHA-256 of every file."""

    name: str
    files: dict[str, str]


def verify_release(folder: Path, keys: tuple[TrustedKey, ...] | None = None) -> Verified:
    """Whether a release may be loaded, by the policy of this machine.

    Where keys are trusted, a signature of one of them must be there and cover just the files that are there. Where
    none are, a signature says nothing, and the manifest alone is compared.

    Args:
        folder: the release folder.
        keys: whose signature is asked for; those of the environment where None.

    Raises:
        UserError: a file is missing, changed, added or no plain data; the signature is missing, damaged, of a key that
            is not trusted or of other files; or as :func:`components.bundle.trust.trusted_keys`.
    """
    keys = trusted_keys() if keys is None else keys
    if not keys:
        manifest = verify_bundle(folder)
        require_inert(folder, manifest.files)
        return Verified(manifest, None)
    read_manifest(folder)  # a folder that is no release is told as such
    path = signature_file(folder)
    # First what costs nothing: the hashes take a second for each GiB.
    statement, key = _believed(path, keys)
    manifest = verify_bundle(folder)
    _require_same(folder, manifest, statement, key)
    require_inert(folder, manifest.files)
    return Verified(manifest, key)


def signature_file(folder: Path) -> Path:
    """Where the signature of a release folder lies, whether it is there or not."""
    folder = folder.absolute()
    beside, in_bento = folder.parent / f"{folder.name}{SUFFIX}", folder.parent / IN_BENTO / f"{folder.name}{SUFFIX}"
    return in_bento if in_bento.is_file() and not beside.exists() else beside


def is_of(path: Path, folder: Path) -> bool:
    """Whether a signature names just the files of a release folder. Whose it is, is not asked."""
    try:
        return _statement(path.name, _envelope(path).payload).files == _files(folder, verify_bundle(folder))
    except UserError:
        return False


def _believed(path: Path, keys: tuple[TrustedKey, ...]) -> tuple[Statement, TrustedKey]:
    """The statement of a signature by one of ``keys``, and that key."""
    envelope = _envelope(path)
    names = ", ".join(key.name for key in keys)
    key = next((key for key in keys if key.fingerprint == envelope.key), None)
    if key is None:
        raise UserError(
            f"signature {path.name}: by the key {envelope.key[:12]!r}, which is not trusted here; trusted are: {names}"
        )
    try:
        key.key.verify(envelope.signature, _encoded(envelope.payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise UserError(
            f"signature {path.name}: damaged or forged: the key {key.name} has not signed this; bring it anew"
        ) from None
    return _statement(path.name, envelope.payload), key


def _encoded(payload: bytes) -> bytes:
    """What is signed of a payload (DSSE v1, pre-authentication encoding)."""
    kind = KINDS[1].encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _envelope(path: Path) -> Envelope:
    if not path.is_file():
        raise UserError(f"signature {path.name}: missing beside the bundle; sign it with `ctfoundry sign`, or bring it")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"signature {path.name}: {path.stat().st_size} bytes; allowed: at most {MAX_BYTES}")
    try:
        content = json.loads(path.read_bytes())
        envelope, material = content["dsseEnvelope"], content["verificationMaterial"]
        (signature,) = envelope["signatures"]
        payload, signed = (base64.b64decode(text, validate=True) for text in (envelope["payload"], signature["sig"]))
        kinds, key = (content["mediaType"], envelope["payloadType"]), str(material["publicKey"]["hint"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"signature {path.name}: no signature of model-signing by a key; bring it anew") from None
    if kinds != KINDS:
        raise UserError(f"signature {path.name}: of the kinds {list(kinds)}; allowed: {', '.join(KINDS)}")
    return Envelope(payload, signed, key)


def _statement(name: str, payload: bytes) -> Statement:
    """Take a payload apart; ``name`` is the signature's, for the messages."""
    try:
        content = json.loads(payload)
        kinds, predicate = (content["_type"], content["predicateType"]), content["predicate"]
        (subject,) = content["subject"]
        root, signed_as = subject["digest"]["sha256"], str(subject["name"])
        serialization = predicate["serialization"]
        resources = [(str(entry["name"]), entry["algorithm"], str(entry["digest"])) for entry in predicate["resources"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"signature {name}: its statement is none of model-signing's; sign the release again") from None
    if kinds != STATEMENT_KINDS:
        raise UserError(f"signature {name}: its statement is of the kinds {list(kinds)}; allowed: {STATEMENT_KINDS}")
    if serialization != SERIALIZATION:
        raise UserError(
            f"signature {name}: made over {json.dumps(serialization)[:200]}; allowed: {json.dumps(SERIALIZATION)}, "
            "so that no file goes unsigned"
        )
    for path, algorithm, digest in resources:
        if algorithm != "sha256" or not _SHA256.fullmatch(digest):
            raise UserError(f"signature {name}: {path}: signed by {algorithm!r} {digest[:12]!r}; allowed: a SHA-256")
    files = {path: digest for path, _, digest in resources}
    if len(files) != len(resources):
        raise UserError(f"signature {name}: names a file twice; sign the release again")
    if hashlib.sha256(b"".join(bytes.fromhex(digest) for _, _, digest in resources)).hexdigest() != root:
        raise UserError(f"signature {name}: its files do not add up to its own digest; sign the release again")
    return Statement(signed_as, files)


def _require_same(folder: Path, manifest: Manifest, statement: Statement, key: TrustedKey) -> None:
    """Raise UserError naming the first file that is not as it was signed."""
    found = _files(folder, manifest)
    for path in sorted(found.keys() | statement.files.keys()):
        here, signed = found.get(path, "missing"), statement.files.get(path, "no such file")
        if here != signed:
            raise UserError(
                f"bundle {folder.name}: {path}: not as {key.name} signed it as {statement.name!r} (here {here[:12]}, "
                f"signed {signed[:12]}); bring the release and its own signature together"
            )


def _files(folder: Path, manifest: Manifest) -> dict[str, str]:
    """What a signature of a verified release names: the files of its manifest, and the manifest."""
    return {**manifest.files, MANIFEST_FILE: sha256_file(folder / MANIFEST_FILE)}
