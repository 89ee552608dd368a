"""A folder as the Hugging Face hub has it: ``lighter_zoo.SegResEncoder.from_pretrained(folder)`` loads it."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

from components.bundle.exports.release import Release
from components.files import write_json, write_text
from components.models import pooling


def write_huggingface(release: Release, output: Path) -> None:
    """Fill an empty folder. Raises UserError for an encoder that lighter_zoo has not."""
    write_json(output / "config.json", release.arguments("huggingface"))
    shutil.copyfile(release.weights, output / "model.safetensors")
    write_text(output / "pooling.py", inspect.getsource(pooling))
    release.carry(output)
    write_text(output / "README.md", release.rendered("huggingface.md.j2"))
