"""Sign a release folder with the team's key, by model-signing; :mod:`components.bundle.signature` verifies."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from components.bundle.signature import SUFFIX, verify_release
from components.bundle.trust import TrustedKey, fingerprint
from components.errors import UserError
from components.files import replacing

KEY_VARIABLE, KEY_FILE_VARIABLE = "CTFOUNDRY_SIGNING_KEY", "CTFOUNDRY_SIGNING_KEY_FILE"
PASSWORD_VARIABLE = "CTFOUNDRY_SIGNING_KEY_PASSWORD"
ALLOWED = "a PEM private key on the curve P-256, as `openssl ecparam -name prime256v1 -genkey -noout` writes it"


def signing_key() -> ec.EllipticCurvePrivateKey | None:
    """The key that the environment holds or names; None where it does neither.

    Raises:
        UserError: it holds and names one, the file cannot be read, or it is no private key on P-256 that the password
            opens. What the variables hold is not told.
    """
    text, file = os.environ.get(KEY_VARIABLE, "").strip(), os.environ.get(KEY_FILE_VARIABLE, "").strip()
    if text and file:
        raise UserError(f"{KEY_VARIABLE} and {KEY_FILE_VARIABLE} are both set; allowed: one of them")
    if not text and not file:
        return None
    try:
        content = text.encode() if text else Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{KEY_FILE_VARIABLE}: {file}: {str(error.strerror).lower()}") from None
    says = KEY_VARIABLE if text else f"{KEY_FILE_VARIABLE}: {file}"
    password = os.environ.get(PASSWORD_VARIABLE, "").encode() or None
    try:
        key = load_pem_private_key(content, password)
    except TypeError:  # a password that is missing, or that is not needed
        raise UserError(
            f"{says}: {'has no password' if password else 'has a password'}; {PASSWORD_VARIABLE} must "
            f"{'not be set' if password else 'hold it'}"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = f"; or {PASSWORD_VARIABLE} is wrong" if password else ""
        raise UserError(f"{says}: no private key; allowed: {ALLOWED}{wrong}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UserError(f"{says}: a key of another kind; allowed: {ALLOWED}")
    return key


def sign_release(folder: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """Sign a release folder; a signature of it by this key that is there already is left as it is.

    Args:
        folder: the release folder; DVC's links to its cache are signed as the files that they stand for.
        key: on P-256.

    Returns:
        The signature's file, beside the folder.

    Raises:
        UserError: the release does not verify.
    """
    public = key.public_key()
    ours = (TrustedKey("this key", fingerprint(public), public),)
    verify_release(folder, ())
    path = folder.with_name(f"{folder.name}{SUFFIX}")
    try:
        verify_release(folder, ours)
        return path
    except UserError:
        pass  # none yet, or that of another release or key
    with replacing(path) as temporary:
        if any(file.is_symlink() for file in folder.rglob("*")):
            with tempfile.TemporaryDirectory(prefix="ctfoundry-sign-") as copies:
                copy = Path(copies) / folder.name
                _write_signature(Path(shutil.copytree(folder, copy)), key, temporary)
        else:
            _write_signature(folder, key, temporary)
    verify_release(folder, ours)
    return path


def _write_signature(folder: Path, key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    from model_signing import hashing, signing  # 0.6 s to import

    descriptor = os.memfd_create("signing-key")  # it takes a file's name, and the key is never on a disk
    try:
        os.write(descriptor, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        # By default it ignores git's files, which anybody could then add.
        every_file = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
        signer = signing.Config().use_elliptic_key_signer(private_key=f"/proc/self/fd/{descriptor}")
        signer.set_hashing_config(every_file).sign(folder, path)
    finally:
        os.close(descriptor)
