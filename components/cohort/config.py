"""Parameters of the cohort: which series a line is made from, and who is held back for evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.params import StageConfig
from components.phantom.config import PhantomConfig


class CohortConfig(StageConfig):
    """Attributes:
    source: where the pretraining series come from. The evaluation series are the phantom scanner's for every
        source, so that releases from different data stay comparable.
    source_digest: digest of the source's tree, pinned by ``ctfoundry release --source``; null for the phantom.
    collection, licence, doi: attribution of a dicom or nifti tree, carried into the bundle.
    phantom: the embedded scanner: pretraining patients (when it is the source) and evaluation patients.
    """

    source: Literal["phantom", "dicom", "nifti"]
    source_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    collection: Annotated[str, Field(min_length=1)]
    licence: Annotated[str, Field(min_length=1)]
    doi: str
    phantom: PhantomConfig
