"""Nodules of LIDC-IDRI in a folder of this machine: ``labels.csv``, pinned by its digest, and ``image/*.nii.gz``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from components.ct.keys import patient_key
from components.errors import UserError
from components.files import sha256_file
from components.settings import StageConfig

ROOT = "lidc_nodules"
LABELS = "labels.csv"
COLUMNS = ("file", "patient_id", "diameter_mm", "Texture_value", "Calcification_value", "Malignancy_value")


class LidcPin(StageConfig):
    """Which data are used: ``lidc_nodules``, the SHA-256 of the table, or null for none."""

    lidc_nodules: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None


def read_ratings(root: Path, pinned: str) -> pd.DataFrame:
    """The table of nodules with ``patient``, ``case``, ``volume`` and ``diameter_mm``; sorted as in the file.

    A nodule is named by its row, since file names hold patient identifiers.

    Raises:
        UserError: no table, not the pinned one, or one without :data:`COLUMNS`.
    """
    path = root / LABELS
    if not path.is_file():
        raise UserError(f"root {ROOT!r}: {LABELS} is missing; point it at the folder that holds {LABELS} and image/")
    found = sha256_file(path)
    if found != pinned:
        raise UserError(
            f"root {ROOT!r}: {LABELS} has digest {found}, but evaluate.lidc_nodules pins {pinned}; "
            "point the root at the pinned data, or change the parameter"
        )
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own among them
        raise UserError(f"root {ROOT!r}: {LABELS} is no table ({type(error).__name__})") from None
    if missing := [name for name in COLUMNS if name not in table]:
        raise UserError(f"root {ROOT!r}: {LABELS} lacks the columns {', '.join(missing)}")
    row = pd.Series(range(len(table)), index=table.index).map("{:04d}".format)
    return table.assign(patient=table["patient_id"].map(patient_key), case="nodule-" + row, volume=f"{ROOT}:" + row)


def nodule_file(root: Path, name: str) -> Path:
    """Path of a nodule's image."""
    return root / "image" / name
