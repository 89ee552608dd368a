"""What a header says of the phantom's patients: it goes with what is painted, and takes no draw from it."""

from __future__ import annotations

from dataclasses import dataclass

from components.sources.phantom.seeds import generator

YOUNGEST, SPAN = 20, 70  # years
AGENT = "IODINE"
NONE = "NONE"


@dataclass(frozen=True)
class Subject:
    """Attributes:
    sex: M or F.
    years: age.
    agent: ContrastBolusAgent.
    """

    sex: str
    years: int
    agent: str


def subject_of(anatomy_seed: int, age: float | None, enhanced: bool) -> Subject:
    """A patient.

    Args:
        anatomy_seed: of the patient.
        age: 0 young to 1 old, where it is painted; None to draw one.
        enhanced: whether the vessels are filled with contrast.
    """
    share = float(generator("age", anatomy_seed).uniform(0, 1)) if age is None else age
    sex = str(generator("sex", anatomy_seed).choice(["F", "M"]))
    return Subject(sex, YOUNGEST + int(SPAN * share), AGENT if enhanced else NONE)
