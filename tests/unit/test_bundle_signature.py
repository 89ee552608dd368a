"""Whose a release is, is known before anything of it is loaded: what is not as a trusted key signed it is one line."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, verifying
from picklescan.scanner import scan_directory_path
from released import write_release
from safetensors.numpy import save_file
from team_keys import public_pem

from components.bundle.manifest import write_manifest
from components.bundle.signature import is_of, signature_file, verify_release
from components.bundle.signing import sign_release
from components.bundle.trust import TrustedKey, trusted_keys
from components.code import ROOT, closure
from components.errors import UserError
from flows.pins import foreign

INPUTS = {"code": "a" * 64}
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def manifested(folder: Path) -> Path:
    write_manifest(folder, folder.name, f"ctfoundry-{folder.name}", INPUTS)
    return folder


def made(folder: Path, value: float) -> Path:
    (folder / "heads" / "ich").mkdir(parents=True)
    for name in ("encoder.safetensors", "heads/ich/head.safetensors"):
        save_file({"weight": np.full(4, value, np.float32)}, folder / name)
    (folder / "metrics.json").write_text("{}\n")
    (folder / "MODEL_CARD.md").write_text("# A card\n")
    return manifested(folder)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGNING_KEY", "SIGNING_KEY_FILE", "SIGNING_KEY_PASSWORD", "TRUSTED_KEYS", "REQUIRE_SIGNATURE"):
        monkeypatch.delenv(f"CTFOUNDRY_{name}", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A signed release."""
    release = made(tmp_path / "wholebody", 1.0)
    sign_release(release, KEY)
    return release


@pytest.fixture
def keys(tmp_path: Path) -> tuple[TrustedKey, ...]:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "team.pub").write_bytes(public_pem(KEY))
    return trusted_keys(tmp_path / "keys")


def refused(folder: Path, keys: tuple[TrustedKey, ...] | None, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        verify_release(folder, keys)
    assert "\n" not in str(raised.value)


def by_model_signing(folder: Path, tmp_path: Path, key: Any = KEY) -> None:
    """model-signing's own verifier; raises where it refuses."""
    (tmp_path / "theirs.pub").write_bytes(public_pem(key))
    every_file = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "theirs.pub")
    verifier.set_hashing_config(every_file).verify(folder, signature_file(folder))


def test_a_signed_release_is_known_by_its_key_and_model_signing_says_so_too(
    folder: Path, keys: tuple[TrustedKey, ...], tmp_path: Path
) -> None:
    verified = verify_release(folder, keys)
    assert verified.key is not None
    assert (verified.key.name, verified.manifest.line) == ("team", "wholebody")
    by_model_signing(folder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "theirs.pub", "wholebody", "wholebody.sig"]


def changed(folder: Path) -> None:
    content = bytearray((folder / "encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "encoder.safetensors").write_bytes(content)


def added(folder: Path) -> None:
    (folder / "heads" / "more.json").write_text("{}\n")


def git_added(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "hooks.txt").write_text("curl\n")


def missing(folder: Path) -> None:
    (folder / "MODEL_CARD.md").unlink()


def swapped(folder: Path) -> None:
    one, other = folder / "encoder.safetensors", folder / "heads" / "ich" / "head.safetensors"
    save_file({"weight": np.zeros(4, np.float32)}, other)
    one.rename(folder / "aside"), other.rename(one), (folder / "aside").rename(other)


TAMPERED = [
    (changed, r"encoder\.safetensors"),
    (added, r"heads/more\.json"),
    (git_added, r"\.git/hooks\.txt"),
    (missing, r"MODEL_CARD\.md"),
    (swapped, r"encoder\.safetensors"),
]


@pytest.mark.parametrize(("tamper", "names"), TAMPERED)
def test_what_was_tampered_with_is_named_and_model_signing_refuses_it_too(
    folder: Path, keys: tuple[TrustedKey, ...], tmp_path: Path, tamper: Callable[[Path], None], names: str
) -> None:
    tamper(folder)
    refused(folder, keys, rf"^bundle wholebody: {names}: ")
    with pytest.raises(ValueError, match="mismatch"):
        by_model_signing(folder, tmp_path)


@pytest.mark.parametrize(("tamper", "names"), TAMPERED)
def test_a_manifest_that_was_made_to_fit_does_not_help(
    folder: Path, keys: tuple[TrustedKey, ...], tmp_path: Path, tamper: Callable[[Path], None], names: str
) -> None:
    tamper(folder)
    manifested(folder)
    verify_release(folder, ())
    refused(folder, keys, rf"^bundle wholebody: {names}: not as team signed it as 'wholebody' \(here ")
    with pytest.raises(ValueError, match="mismatch"):
        by_model_signing(folder, tmp_path)


def test_a_manifest_alone_is_signed_too(folder: Path, keys: tuple[TrustedKey, ...]) -> None:
    write_manifest(folder, "head", "ctfoundry-head", INPUTS)
    refused(folder, keys, r"^bundle wholebody: manifest\.json: not as team signed it")


def test_another_key_a_missing_signature_and_that_of_another_release_are_refused(
    folder: Path, keys: tuple[TrustedKey, ...], tmp_path: Path
) -> None:
    signature = signature_file(folder)
    other = made(tmp_path / "head", 2.0)
    shutil.copyfile(sign_release(other, KEY), signature)
    refused(folder, keys, r"^bundle wholebody: MODEL_CARD.md: .*|encoder\.safetensors: not as team signed it as 'head'")
    assert (is_of(signature, other), is_of(signature, folder)) == (True, False)
    sign_release(folder, OTHER)
    refused(folder, keys, r"^signature wholebody\.sig: by the key '[0-9a-f]{12}', which is not trusted here; .*: team$")
    signature.unlink()
    refused(folder, keys, r"^signature wholebody\.sig: missing beside the bundle; sign it with `ctfoundry sign`")


def test_a_forged_name_of_a_trusted_key_does_not_help(folder: Path, keys: tuple[TrustedKey, ...]) -> None:
    signature = signature_file(folder)
    hint = json.loads(signature.read_text())["verificationMaterial"]
    sign_release(folder, OTHER)
    signature.write_text(json.dumps({**json.loads(signature.read_text()), "verificationMaterial": hint}))
    refused(folder, keys, r"^signature wholebody\.sig: damaged or forged: the key team has not signed this")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04K\x01.", b"{}", b"[]", b"7", b"[" * 200_000, b"\xff\xfe", b'{"dsseEnvelope": {"signatures": 5}}'],
)
def test_a_signature_file_that_is_none_is_one_line(folder: Path, keys: tuple[TrustedKey, ...], content: bytes) -> None:
    signature_file(folder).write_bytes(content)
    refused(folder, keys, r"^signature wholebody\.sig: no signature of model-signing by a key; bring it anew$")
    assert not is_of(signature_file(folder), folder)


def test_a_signature_file_that_would_fill_the_memory_is_not_read(folder: Path, keys: tuple[TrustedKey, ...]) -> None:
    with signature_file(folder).open("wb") as stream:
        stream.truncate(2**40)
    refused(folder, keys, r"^signature wholebody\.sig: 1099511627776 bytes; allowed: at most 16777216$")


@pytest.mark.parametrize("part", ["mediaType", "payloadType"])
def test_a_signature_of_another_format_is_refused(folder: Path, keys: tuple[TrustedKey, ...], part: str) -> None:
    content = json.loads(signature_file(folder).read_text())
    (content if part == "mediaType" else content["dsseEnvelope"])[part] = "application/of-another-kind"
    signature_file(folder).write_text(json.dumps(content))
    refused(folder, keys, r"^signature wholebody\.sig: of the kinds .*of-another-kind.*; allowed: application")


def resigned(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Sign another statement, in good form, with the trusted key: it is the statement that must be refused."""
    content = json.loads(signature_file(folder).read_text())
    envelope = content["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload, kind = json.dumps(statement).encode(), envelope["payloadType"].encode()
    encoded = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(KEY.sign(encoded, ec.ECDSA(hashes.SHA256()))).decode()
    signature_file(folder).write_text(json.dumps(content))


def serialized(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda statement: statement["predicate"]["serialization"].update(changes)


def resource(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda statement: statement["predicate"]["resources"][0].update(changes)


def twice(statement: dict[str, Any]) -> None:
    resources = statement["predicate"]["resources"]
    resources.append(resources[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (serialized(ignore_paths=[".git"]), r'made over .*"ignore_paths": \["\.git"\]'),
        (serialized(allow_symlinks=True), r'made over .*"allow_symlinks": true'),
        (serialized(hash_type="blake2b"), r'made over .*"hash_type": "blake2b"'),
        (serialized(method="shards", shard_size=1000), r'made over .*"method": "shards"'),
        (resource(algorithm="blake2b"), r"MODEL_CARD.md: signed by 'blake2b'"),
        (resource(digest="0" * 40), r"MODEL_CARD.md: signed by 'sha256' '000000000000'"),
        (resource(digest="f" * 64), r"its files do not add up to its own digest"),
        (twice, r"names a file twice"),
        (lambda statement: statement.update(predicateType="https://model_signing/Digests/v0.1"), r"is of the kinds"),
        (lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"), r"is of the kinds"),
        (lambda statement: statement["subject"].append(statement["subject"][0]), r"statement is none of model-signing"),
        (lambda statement: statement["predicate"].pop("resources"), r"statement is none of model-signing"),
    ],
)
def test_a_statement_under_which_files_could_pass_unsigned_is_refused(
    folder: Path, keys: tuple[TrustedKey, ...], change: Callable[[dict[str, Any]], None], says: str
) -> None:
    resigned(folder, lambda statement: None)
    verify_release(folder, keys)
    resigned(folder, change)
    refused(folder, keys, rf"^signature wholebody\.sig: .*{says}")


def test_a_file_that_the_statement_does_not_name_is_unsigned(folder: Path, keys: tuple[TrustedKey, ...]) -> None:
    def left_out(statement: dict[str, Any]) -> None:
        entries = statement["predicate"]["resources"]
        del entries[1]
        root = hashlib.sha256(b"".join(bytes.fromhex(entry["digest"]) for entry in entries)).hexdigest()
        statement["subject"][0]["digest"]["sha256"] = root

    resigned(folder, left_out)
    refused(folder, keys, r"encoder\.safetensors: not as team signed it .*, signed no such file\)")


def test_the_policy_is_the_environments(
    folder: Path, tmp_path: Path, keys: tuple[TrustedKey, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys a signature must be there; without, an unsigned release is served and a signature says nothing."""
    signature = signature_file(folder)
    content = signature.read_bytes()
    for here in (b"garbage", None):
        signature.unlink() if here is None else signature.write_bytes(here)
        assert verify_release(folder).key is None
    monkeypatch.setenv("CTFOUNDRY_REQUIRE_SIGNATURE", "1")
    refused(folder, None, r"^CTFOUNDRY_REQUIRE_SIGNATURE: 1, but CTFOUNDRY_TRUSTED_KEYS names no keys")
    monkeypatch.setenv("CTFOUNDRY_TRUSTED_KEYS", str(tmp_path / "keys"))
    for required in ("1", "0", ""):
        monkeypatch.setenv("CTFOUNDRY_REQUIRE_SIGNATURE", required)
        refused(folder, None, r"^signature wholebody\.sig: missing")
    signature.write_bytes(content)
    assert verify_release(folder).key == keys[0]
    monkeypatch.setenv("CTFOUNDRY_REQUIRE_SIGNATURE", "yes")
    refused(folder, None, r"^CTFOUNDRY_REQUIRE_SIGNATURE: 'yes' is not allowed: 0 or 1$")


def test_any_of_several_keys_and_one_file_will_do(folder: Path, tmp_path: Path, keys: tuple[TrustedKey, ...]) -> None:
    (tmp_path / "keys" / "a-colleague.pub").write_bytes(public_pem(OTHER))
    (tmp_path / "keys" / "README").write_text("not a key")
    both = trusted_keys(tmp_path / "keys")
    assert [key.name for key in both] == ["a-colleague", "team"]
    assert verify_release(folder, both).key == verify_release(folder, keys).key
    sign_release(folder, OTHER)
    told = verify_release(folder, trusted_keys(tmp_path / "keys" / "a-colleague.pub")).key
    assert told is not None
    assert told.name == "a-colleague"


def test_a_release_is_signed_once_and_a_damaged_one_not_at_all(
    folder: Path, tmp_path: Path, keys: tuple[TrustedKey, ...]
) -> None:
    signature = signature_file(folder)
    before = signature.read_bytes()
    assert sign_release(folder, KEY) == signature
    assert signature.read_bytes() == before
    changed(folder)
    with pytest.raises(UserError, match=r"encoder\.safetensors: differs from the manifest"):
        sign_release(folder, OTHER)
    assert signature.read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_links_into_dvcs_cache_are_signed_as_the_files_that_they_stand_for(
    folder: Path, tmp_path: Path, keys: tuple[TrustedKey, ...]
) -> None:
    signature_file(folder).unlink()
    plain = shutil.copytree(folder, tmp_path / "plain" / "wholebody")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        cached = tmp_path / "cache" / "files" / "md5" / digest[:2] / digest[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        path.rename(cached)
        path.symlink_to(cached)
    shutil.copyfile(sign_release(folder, KEY), signature_file(plain))
    assert verify_release(folder, keys).manifest == verify_release(plain, keys).manifest
    by_model_signing(plain, tmp_path)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Runs()], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("head.pkl", pickle.dumps(Runs())),
        ("head.pt", b"PK\x03\x04"),
        ("head.npy", npy()),
        ("setup.py", b"print()\n"),
        ("Makefile", b"all:\n"),
        ("head.safetensors", pickle.dumps(Runs())),
        ("head.safetensors", b"PK\x03\x04" + b"\0" * 100),
        ("head.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"),
        ("notes.txt", pickle.dumps(Runs())),
        ("table.csv", b"\x7fELF\0\0"),
        ("more.json", pickle.dumps(Runs(), protocol=0)),
    ],
)
def test_what_could_run_is_refused_even_where_a_trusted_key_signed_it(
    tmp_path: Path, keys: tuple[TrustedKey, ...], name: str, content: bytes
) -> None:
    release = made(tmp_path / "wholebody", 1.0)
    verify_release(release, ())
    (release / "heads" / name).write_bytes(content)
    manifested(release)
    refused(release, (), rf"^bundle wholebody: heads/{name}: .*; allowed: ")
    with pytest.raises(UserError, match=name):
        sign_release(release, KEY)
    assert not signature_file(release).exists()


def test_a_scanner_for_pickles_finds_none_in_a_release_and_finds_one_that_is_there(tmp_path: Path) -> None:
    write_release(tmp_path / "wholebody")
    manifested(tmp_path / "wholebody")
    verify_release(tmp_path / "wholebody", ())
    assert scan_directory_path(tmp_path / "wholebody").issues_count == 0
    (tmp_path / "wholebody" / "head.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert scan_directory_path(tmp_path / "wholebody").issues_count == 1


def test_whatever_loads_a_release_verifies_it_here() -> None:
    """A new command gets its release from ``open_release``, and that from here. A Bento is built and nothing loaded."""
    loads: set[str] = set()
    verifies: set[str] = set()
    for path in [*(ROOT / "serving").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        text, name = path.read_text(), path.relative_to(ROOT).as_posix()
        if any(word in text for word in ("Embedder.load(", "load_heads(", "load_segment_heads(")):
            loads.add(name)
        if "verify_bundle(" in text:
            verifies.add(name)
    assert loads == {"serving/embedding.py"}
    assert verifies == {"serving/build.py"}


def test_whoever_verifies_needs_cryptography_alone() -> None:
    """In the service nothing of model-signing and the 16 packages below it is there; import-linter holds that, too."""
    names = set().union(*(foreign(ROOT / module) for module in closure(["components/bundle/signature.py"])))
    assert names == {"cryptography"}
