"""Parameters of the cohort: which series a line is made from, and who is held back for evaluation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.settings import Apart, StageConfig
from components.sources.config import AtLeastOne, Name, SourceConfig


class CohortQuality(StageConfig):
    """Thresholds of the suite *cohort*.

    Attributes:
        licences: allowed besides those of ``idc.licences``.
        file_kb: allowed mean size of a series' DICOM files.
        max_series_mb: larger series are no single scan.
        min_pretrain_series: fewer, and the run stops.
        max_shard_load: series or bytes of a shard over its even share, less what dealing by key leaves to chance, which
            in a small cohort is much (warning).
        max_collection_share, max_patient_share: of the series to pretrain on, where there are several (warning).
        min_accepted_rate: below this share of accepted series the suite warns.
        max_unreadable_share: of a tree's DICOM or NIfTI files; with more that cannot be read, and more than ten, the
            run stops. What is plainly something else does not count.
    """

    licences: tuple[Name, ...]
    file_kb: Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], Apart]
    max_series_mb: Annotated[float, Field(gt=0)]
    min_pretrain_series: AtLeastOne
    max_shard_load: Annotated[float, Field(ge=1)]
    max_collection_share: Annotated[float, Field(gt=0, le=1)]
    max_patient_share: Annotated[float, Field(gt=0, le=1)]
    min_accepted_rate: Annotated[float, Field(ge=0, le=1)]
    max_unreadable_share: Annotated[float, Field(ge=0, le=1)]


class CohortConfig(SourceConfig):
    """The source, and ``quality``: thresholds of the suite *cohort*."""

    quality: CohortQuality
