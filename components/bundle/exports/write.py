"""``export``: a release in another's format, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from components.bundle.exports.huggingface import write_huggingface
from components.bundle.exports.monai_bundle import write_monai
from components.bundle.exports.onnx_model import write_onnx
from components.bundle.exports.release import Release, read_release
from components.errors import UserError
from components.files import replacing

WRITERS: dict[str, Callable[[Release, Path], None]] = {
    "huggingface": write_huggingface,
    "monai": write_monai,
    "onnx": write_onnx,
}


def export(folder: Path, to: str, output: Path) -> Release:
    """Write a release in another format; equal releases and libraries give equal bytes.

    Args:
        folder: the release folder, which is verified first.
        to: one of :data:`WRITERS`.
        output: a folder that is not there, or empty.

    Raises:
        UserError: a release that does not verify, an encoder that the format has no place for, or a folder that holds
            something. Then nothing is written.
    """
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise UserError(f"{output}: is there; allowed: the name of a new folder, or an empty one")
    release = read_release(folder)
    with replacing(output) as temporary:
        temporary.mkdir()
        WRITERS[to](release, temporary)
    return release
