"""A cluster whose nodes share no folder: code, volumes and checkpoints reach them through a bucket.

``CTFOUNDRY_TRAIN_STORAGE`` names it. The driver puts each volume there once, by its digest; a node fetches it when a
sample first wants it, and keeps a copy in a folder of its own. Checkpoints are written by the node of rank 0 and taken
to the bucket by Ray Train, so that a run goes on whichever nodes are left. Credentials are each node's own.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from components.cluster import STORAGE
from components.errors import UserError
from components.files import sha256_file
from components.progress import track

CACHE, CACHE_GB = "CTFOUNDRY_NODE_CACHE", "CTFOUNDRY_NODE_CACHE_GB"
ENDPOINT = "AWS_ENDPOINT_URL"
VOLUMES, RUNS, CANDIDATES, BEGUN_WITH = "volumes", "runs", "candidates", "begun_with"
ALLOWED = "s3://bucket/prefix"
UPLOADS = 8  # at once
RETRIES = 3


@dataclass(frozen=True)
class Bucket:
    """Where a cluster keeps what its nodes share.

    Attributes:
        url: ``s3://bucket/prefix``.
        endpoint: address of an S3 that is not Amazon's; None for Amazon's.
    """

    url: str
    endpoint: str | None = None

    @classmethod
    def from_environment(cls) -> Bucket | None:
        """What ``CTFOUNDRY_TRAIN_STORAGE`` says; None where nodes share this machine's folders. Raises UserError."""
        url = os.environ.get(STORAGE, "").strip().rstrip("/")
        if not url:
            return None
        if not url.startswith("s3://") or not url.removeprefix("s3://").strip("/"):
            raise UserError(f"{STORAGE} {url!r} is not allowed: {ALLOWED}")
        return cls(url, os.environ.get(ENDPOINT) or None)

    @property
    def root(self) -> str:
        """Bucket and prefix, as its file system names them."""
        return self.url.removeprefix("s3://")

    def files(self) -> pa.fs.FileSystem:
        """Its file system, by the credentials of the machine that asks."""
        return pa.fs.S3FileSystem(endpoint_override=self.endpoint, request_timeout=60, connect_timeout=10)

    def check(self) -> None:
        """Raise UserError where it cannot be listed, before anything is sent there."""
        try:
            self.files().get_file_info(pa.fs.FileSelector(self.root, allow_not_found=True))
        except OSError as error:
            raise UserError(f"{STORAGE} {self.url}: {_reason(error)}") from None

    def send(self, path: Path, name: str) -> None:
        """Put a file at ``name``, unless one of its size is there. Raises UserError where it cannot be."""
        files, place = self.files(), f"{self.root}/{name}"
        try:
            known = files.get_file_info(place)
            if known.is_file and known.size == path.stat().st_size:
                return
            pa.fs.copy_files(str(path.absolute()), place, pa.fs.LocalFileSystem(), files)
        except OSError as error:
            raise UserError(f"{STORAGE} {self.url}: {name} cannot be written: {_reason(error)}") from None

    def send_all(self, paths: Sequence[Path], digests: Sequence[str]) -> None:
        """Put volumes there by their digests, with a progress bar. Raises UserError."""
        sizes = [path.stat().st_size for path in paths]
        with ThreadPoolExecutor(UPLOADS) as pool:
            sent = pool.map(lambda pair: self.send(pair[0], f"{VOLUMES}/{pair[1]}"), zip(paths, digests, strict=True))
            for _ in track(sent, sizes, f"volumes to {self.url}"):
                pass

    def fetch(self, name: str, sha256: str, to: Path) -> None:
        """Get a file, whole and of that digest, or none. Raises OSError."""
        temporary = to.with_name(f".{to.name}.{secrets.token_hex(8)}")
        try:
            pa.fs.copy_files(f"{self.root}/{name}", str(temporary), self.files(), pa.fs.LocalFileSystem())
            if sha256_file(temporary) != sha256:
                raise OSError(f"{self.url}/{name}: not the file of that digest")
            temporary.replace(to)
        finally:
            temporary.unlink(missing_ok=True)

    def candidates_to(self, run: Path) -> None:
        """Put the encoders that a run kept on the way into its folder here. Raises UserError."""
        place = f"{self.root}/{RUNS}/{run.name}/{CANDIDATES}"
        try:
            if self.files().get_file_info(place).type == pa.fs.FileType.NotFound:
                return
            (run / CANDIDATES).mkdir(parents=True, exist_ok=True)
            pa.fs.copy_files(place, str((run / CANDIDATES).absolute()), self.files(), pa.fs.LocalFileSystem())
        except OSError as error:
            raise UserError(f"{STORAGE} {self.url}: {place}: {_reason(error)}") from None

    def newest(self, run: str, file: str) -> str:
        """Name of the newest checkpoint of a run that holds ``file``; empty where there is none."""
        selector = pa.fs.FileSelector(f"{self.root}/{RUNS}/{run}", recursive=True, allow_not_found=True)
        found = [Path(info.path) for info in self.files().get_file_info(selector) if Path(info.path).name == file]
        return max((path.parent.name for path in found), default="")

    def forget(self, run: str) -> None:
        """Remove what a run that is over has kept there; volumes stay for the next."""
        with suppress(OSError):  # of a run that never got so far
            self.files().delete_dir(f"{self.root}/{RUNS}/{run}")


@dataclass(frozen=True)
class Distant:
    """A volume in the bucket, of which a node has a copy once it was wanted.

    Attributes:
        name: as a message names it.
    """

    bucket: Bucket
    sha256: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.bucket.url}/{VOLUMES}/{self.sha256})"

    def here(self) -> Path:
        """This node's copy. Raises OSError where it cannot be had."""
        return kept_here(self.bucket, f"{VOLUMES}/{self.sha256}", self.sha256)


Place = Path | Distant


def here(place: Place) -> Path:
    """The file behind a volume, on this machine. Raises OSError where it cannot be fetched."""
    return place.here() if isinstance(place, Distant) else place


def kept_here(bucket: Bucket, name: str, sha256: str) -> Path:
    """This node's copy of a file of the bucket, fetched where there is none. Raises OSError."""
    path = cache_folder() / sha256
    for attempt in range(RETRIES):
        if path.is_file():
            with suppress(OSError):
                os.utime(path)  # what was wanted last goes last
            return path
        try:
            _make_room(path.parent)
            bucket.fetch(name, sha256, path)
        except OSError:
            if attempt + 1 == RETRIES:
                raise
    return path


def cache_folder() -> Path:
    """Where this node keeps copies: ``CTFOUNDRY_NODE_CACHE``, else a folder of this user's among the temporary ones."""
    folder = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"ctfoundry-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


_ROOM = threading.Lock()


def _make_room(folder: Path) -> None:
    """Below ``CTFOUNDRY_NODE_CACHE_GB``, without which the disk is the bound: what was not wanted for longest goes. A
    file that another process reads stays readable for it."""
    bound = _bound()
    if bound is None:
        return
    with _ROOM:
        found = []
        for path in folder.iterdir():
            with suppress(OSError):  # gone meanwhile
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        over = sum(size for _, size, _ in found) - bound * 1e9
        for _, size, path in sorted(found):
            if over <= 0:
                break
            path.unlink(missing_ok=True)
            over -= size


def _bound() -> float | None:
    """What ``CTFOUNDRY_NODE_CACHE_GB`` says, in gigabytes; None where it says nothing. Raises UserError."""
    text = os.environ.get(CACHE_GB, "").strip()
    try:
        bound = float(text or 1)
    except ValueError:
        bound = -1.0
    if not 0 < bound < float("inf"):
        raise UserError(f"{CACHE_GB} {text!r} is not allowed: gigabytes above 0")
    return bound if text else None


def check_cache() -> None:
    """On the node that trains: its own settings, which no driver sees.

    Raises:
        UserError: ``CTFOUNDRY_NODE_CACHE_GB`` is no number above 0, or ``CTFOUNDRY_NODE_CACHE`` no folder to write to.
    """
    try:
        _bound()
        with tempfile.TemporaryFile(dir=cache_folder()):
            pass
    except (UserError, OSError) as error:
        said = error if isinstance(error, UserError) else f"{CACHE}: {error.filename}: {error.strerror}"
        raise UserError(f"RAY_ADDRESS: node {socket.gethostname()}: {said}") from None


def _reason(error: OSError) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:240] + " ..."


def run_place(bucket: Bucket) -> dict[str, Any]:
    """Ray Train's storage: where, and by which file system."""
    return {"storage_path": f"{bucket.root}/{RUNS}", "storage_filesystem": bucket.files()}
