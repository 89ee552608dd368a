"""Pin where a line's CT comes from: a kind of ``components/sources/kinds.py``, and its folder where it has one.

A folder goes to this machine's own configuration; ``params.yaml`` gets the kind and the digest of the data, so that
the parameters say what a release was made from and hold no path. What is taken from the IDC or a PACS stands in
``params.yaml``, ``<line>.cohort.idc`` and ``<line>.cohort.dicomweb``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.ct.keys import require_secret
from components.errors import UserError
from components.files import sha256_file
from components.settings import block_of
from components.sources import lidc
from components.sources.kinds import KINDS, spelled
from components.sources.nifti import patient_missing
from components.sources.roots import record_root
from components.sources.tree import names, tree_digest
from flows.parameters import pin

GATED = ("calcification", "texture")  # malignancy a nodule's diameter tells


def pin_source(line: str, source: str | None, evaluation: str | None) -> None:
    """Write the source into ``params.yaml`` where it differs from what stands there.

    Args:
        line: model line.
        source: as above; None leaves it as it is.
        evaluation: ``lidc_nodules:<dir>`` or ``none``; None looks for a folder ``lidc_nodules`` beside the source's.

    Raises:
        UserError: an unknown kind, a folder that is not there, no secret for the pseudonyms of a site's data, or
            nothing that tells whose NIfTI volumes are where patients are held out.
    """
    if source is None:
        if evaluation is not None:
            _pin_nodules(line, _nodules(line, "", evaluation))
        return
    kind, _, folder = source.partition(":")
    if kind not in KINDS or KINDS[kind].folder != (folder != ""):
        raise UserError(f"source {source!r} is not allowed: {spelled('<folder>')}")
    if KINDS[kind].site:
        require_secret(kind)
    if folder:
        check_tree(kind, Path(folder))
    nodules = _nodules(line, folder, evaluation)
    if kind == "nifti":
        _check_patient(line, None if nodules is None else nodules.digest)
    digest = tree_digest(Path(folder)) if folder else None
    if folder:  # nothing is written before all is checked
        record_root(kind, Path(folder), line)
    pin(line, "cohort", {"source": kind, "source_digest": digest})
    _pin_nodules(line, nodules)


def _pin_nodules(line: str, nodules: _Nodules | None) -> None:
    """A release that is judged on real nodules must tell them better than untrained encoders: with the pin come the
    gates, which are the user's from then on, and with it they go."""
    before = block_of(line, "evaluate")["lidc_nodules"]
    if nodules is not None:
        record_root(lidc.ROOT, nodules.root)
    pin(line, "evaluate", {"lidc_nodules": None if nodules is None else nodules.digest})
    if (before is None) == (nodules is None):
        return
    ours = [
        {"task": f"{task}/{rating}", "figure": "linear_auc", "minimum_gain": 0.0}
        for task in _of_nodules(line)
        for rating in GATED
    ]
    kept = [gate for gate in block_of(line, "gate")["better_than_random"] if gate not in ours]
    pin(line, "gate", {"better_than_random": kept + (ours if nodules is not None else [])})


def _check_patient(line: str, nodules: str | None) -> None:
    """Of NIfTI volumes nobody knows the patient but by ``cohort.nifti.patient``."""
    if block_of(line, "cohort")["nifti"]["patient"] is not None:
        return
    if nodules is not None:
        raise UserError(patient_missing(f"{line}.cohort"))
    print(f"{line}.cohort.nifti.patient is null: every volume counts as a patient of its own")


def check_tree(kind: str, folder: Path) -> None:
    """Raise UserError where there is no file below the folder, or no folder."""
    if not folder.is_dir():
        hint = "; put the zip into a folder" if folder.suffix == ".zip" else ""
        raise UserError(f"source {kind}:{folder}: not a folder{hint}")
    if not any(found.status == "" for found in names(folder)):  # which follows links, as archives are often made of
        raise UserError(f"source {kind}:{folder}: no file in it that can be read")


@dataclass(frozen=True)
class _Nodules:
    root: Path
    digest: str


def _nodules(line: str, folder: str, evaluation: str | None) -> _Nodules | None:
    if evaluation is None:
        beside = Path(folder).resolve().parent / "lidc_nodules" if folder else None
        if not _of_nodules(line) or beside is None or not (beside / "labels.csv").is_file():
            return None
        print("evaluation set lidc_nodules found beside the source")
        evaluation = f"lidc_nodules:{beside}"
    if evaluation == "none":
        return None
    name, _, root = evaluation.partition(":")
    if name != "lidc_nodules" or not (Path(root) / "labels.csv").is_file():
        raise UserError(f"evaluation {evaluation!r} is not allowed: none, or lidc_nodules:<folder with labels.csv>")
    if not _of_nodules(line):
        raise UserError(
            f"evaluation {evaluation!r} is not allowed with line {line}: no task of {line}.tasks is of set {lidc.ROOT}"
        )
    found = _Nodules(Path(root), sha256_file(Path(root) / lidc.LABELS))
    lidc.read_ratings(found.root, found.digest)
    return found


def _of_nodules(line: str) -> list[str]:
    """The tasks whose cases are the nodules."""
    tasks = block_of(line, "tasks").items()
    return [name for name, task in tasks if isinstance(task, dict) and task.get("set") == lidc.ROOT]
