"""Pin where a line's CT comes from: ``phantom``, ``idc``, ``dicomweb``, ``dicom:<dir>`` or ``nifti:<dir>``.

A folder goes to this machine's own configuration; ``params.yaml`` gets the kind and the digest of the data, so that
the parameters say what a release was made from and hold no path. What is taken from the IDC or a PACS stands in
``params.yaml``, ``<line>.cohort.idc`` and ``<line>.cohort.dicomweb``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.cohort.roots import record_root, tree_digest
from components.files import sha256_file, write_text
from components.params import PARAMS_FILE, UserError, read_yaml

FOLDERS = ("dicom", "nifti")
KINDS = ("phantom", "idc", "dicomweb", *FOLDERS)


def pin_source(line: str, source: str, evaluation: str | None) -> None:
    """Write the source into ``params.yaml`` where it differs from what stands there.

    Args:
        line: model line.
        source: as above.
        evaluation: ``lidc_nodules:<dir>`` or ``none``; None looks for a folder ``lidc_nodules`` beside the source's.

    Raises:
        UserError: an unknown kind, or a folder that is not there.
    """
    kind, _, folder = source.partition(":")
    if kind not in KINDS or (kind in FOLDERS) != (folder != ""):
        raise UserError(f"source {source!r} is not allowed: phantom, idc, dicomweb, dicom:<folder> or nifti:<folder>")
    digest = None
    if folder:
        record_root(kind, Path(folder))
        digest = tree_digest(Path(folder))
    pin(line, "cohort", {"source": kind, "source_digest": digest})
    pin(line, "evaluate", {"lidc_nodules": _nodules(line, folder, evaluation)})


def _nodules(line: str, folder: str, evaluation: str | None) -> str | None:
    if evaluation is None:
        beside = Path(folder).resolve().parent / "lidc_nodules" if folder else None
        if line != "wholebody" or beside is None or not (beside / "labels.csv").is_file():
            return None
        print("evaluation set lidc_nodules found beside the source")
        evaluation = f"lidc_nodules:{beside}"
    if evaluation == "none":
        return None
    name, _, root = evaluation.partition(":")
    if name != "lidc_nodules" or not (Path(root) / "labels.csv").is_file():
        raise UserError(f"evaluation {evaluation!r} is not allowed: none, or lidc_nodules:<folder with labels.csv>")
    record_root(name, Path(root))
    return sha256_file(Path(root) / "labels.csv")


def pin(line: str, stage: str, values: dict[str, Any]) -> None:
    """Change a block of ``params.yaml`` and nothing else in the file: comments, order and layout stay."""
    current = read_yaml()[line][stage]
    if all(current.get(key) == value for key, value in values.items()):
        return
    editor = yaml_editor()
    content = editor.load(PARAMS_FILE.read_text())
    content[line][stage].update(values)
    text = io.StringIO()
    editor.dump(content, text)
    write_text(PARAMS_FILE, text.getvalue())


def yaml_editor() -> YAML:
    """Reads and writes YAML with its comments, order and layout."""
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096  # never fold a line
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return editor
