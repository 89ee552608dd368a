"""Received images on this machine's disk, until their study is answered and its time of grace is over.

Folders and files have pseudonyms for names. What lies there is whole: a file gets its name when all of it is on the
disk, so that whatever ends the gateway leaves images, or no images, and never half of one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from components.ct.keys import file_key, study_key, uid_key

SPOOL, INCOMING, RESULTS = "spool", "incoming", "results"
BLOCK = tarfile.BLOCKSIZE
CHUNK = 2**20
STALE_SECONDS = 3600


@dataclass(frozen=True)
class Images:
    """The images of one series that are here.

    Attributes:
        study, series: pseudonyms.
        files: in the order of their names.
    """

    study: str
    series: str
    files: tuple[Path, ...]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over which images they are."""
        return hashlib.sha256("\n".join(path.name for path in self.files).encode()).hexdigest()

    def tar_bytes(self) -> int:
        """Size of :meth:`as_tar`."""
        return sum(BLOCK + _padded(path.stat().st_size) for path in self.files) + 2 * BLOCK

    def as_tar(self) -> Iterator[bytes]:
        """All of them as a tar, piece by piece: nothing is in memory, and nothing is written."""
        for path in self.files:
            size = path.stat().st_size
            member = tarfile.TarInfo(path.name)
            member.size = size
            yield member.tobuf(tarfile.USTAR_FORMAT)
            with path.open("rb") as stream:
                while piece := stream.read(CHUNK):
                    yield piece
            yield bytes(_padded(size) - size)
        yield bytes(2 * BLOCK)


class Spool:
    """The folder in which a gateway keeps what it has received, and what it has not delivered yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (SPOOL, INCOMING, RESULTS):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(folder / INCOMING)  # what an earlier run had not received to its end; its sender was told nothing
        (folder / INCOMING).mkdir(mode=0o700)

    @property
    def incoming(self) -> Path:
        """Where files are written before they are put."""
        return self.folder / INCOMING

    def put(self, file: Path, study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Take over a file that is whole, in place of one of the same UIDs; returns the study's pseudonym."""
        study = study_key(study_uid)
        folder = self.folder / SPOOL / study / uid_key(series_uid)
        new = not folder.is_dir()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync(file)
        file.replace(folder / f"{file_key(instance_uid)}.dcm")
        for changed in (folder, folder.parent, folder.parent.parent) if new else (folder,):
            _sync(changed)
        return study

    def studies(self) -> list[str]:
        """Pseudonyms of those that have images here."""
        return sorted(path.name for path in (self.folder / SPOOL).iterdir())

    def series_of(self, study: str) -> list[Images]:
        """The images of a study, by series."""
        folder = self.folder / SPOOL / study
        folders = sorted(folder.iterdir()) if folder.is_dir() else []
        return [Images(study, each.name, tuple(sorted(each.iterdir()))) for each in folders]

    def remove(self, study: str) -> None:
        """Forget the images of a study."""
        shutil.rmtree(self.folder / SPOOL / study, ignore_errors=True)

    def result(self, images: Images, ask: str) -> Path:
        """Where an answer lies until it is delivered."""
        name = hashlib.sha256("\0".join((images.study, images.series, images.fingerprint, ask)).encode()).hexdigest()
        return self.folder / RESULTS / f"{images.study}-{name[:16]}.dcm"

    def keep_result(self, path: Path, content: bytes) -> None:
        """Write an answer, whole or not at all."""
        temporary = self.incoming / path.name
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)

    def drop_results(self, study: str) -> None:
        """Forget answers to a study that were not delivered: of images of which there are more now."""
        for path in (self.folder / RESULTS).glob(f"{study}-*"):
            path.unlink(missing_ok=True)

    def sweep(self, now: float) -> None:
        """Remove what began to come in long ago: the association that brought it has ended midway."""
        for path in self.incoming.iterdir():
            with suppress(OSError):
                if path.is_file() and now - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def free_bytes(self) -> int:
        """Room on the disk."""
        return shutil.disk_usage(self.folder).free


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _sync(path: Path) -> None:
    """Have the disk hold it, so that what a sender was told stays true when the power goes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
