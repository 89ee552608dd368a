"""Parameters of the phantom source: how many patients are scanned, and how many scans go wrong."""

from __future__ import annotations

from pydantic import Field

from components.params import StageConfig


class PhantomConfig(StageConfig):
    """Block ``<line>.cohort.phantom``.

    Attributes:
        pretrain_patients: patients scanned once for pretraining.
        evaluation_patients: other patients, half of them to train probes, half to test them.
        retest_patients: how many of the test half are scanned a second time.
        fault_share: at least this share of all series carries a fault; those are additional series of further
            pretraining patients.
        seed: everything else follows from it.
    """

    pretrain_patients: int = Field(ge=1, le=9999)
    evaluation_patients: int = Field(ge=4, le=9999)
    retest_patients: int = Field(ge=0, le=4999)
    fault_share: float = Field(ge=0.0, le=0.5)
    seed: int = Field(ge=0)
