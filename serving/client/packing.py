"""What is sent of a path: a file as it is, a folder of DICOM as a zip without the names of its files."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def packed(path: Path) -> Iterator[IO[bytes]]:
    """An open file to send, at its beginning.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: a folder without files.
    """
    if not path.is_dir():
        with path.open("rb") as stream:
            yield stream
        return
    files = sorted(found for found in path.rglob("*") if found.is_file())
    if not files:
        raise ValueError(f"{path.name}: an empty folder is no scan; allowed: a file, or a folder of DICOM files")
    with tempfile.TemporaryFile(prefix="ctfoundry-client-") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number, file in enumerate(files):  # their names may hold a patient's
                with file.open("rb") as source, archive.open(f"{number:06d}", "w", force_zip64=True) as target:
                    while chunk := source.read(1 << 20):
                        target.write(chunk)
        stream.seek(0)
        yield stream
