"""The block ``costs`` of ``params.yaml``: what an hour or a gigabyte costs, and what energy is reckoned from.

No stage reads it, and no release depends on it: a changed price makes nothing again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.settings import PARAMS_FILE, StageConfig, parse, read_yaml

COSTS = "costs"  # the key of the file; no line has this name
Price = Annotated[float, Field(ge=0)]


class EnergyConfig(StageConfig):
    """What energy is reckoned from where no meter is read, and what it emits.

    Attributes:
        watts_per_core: of a busy hardware thread: the processor's TDP over its threads.
        watts_per_gib: of memory in use.
        overhead: what the building draws for each unit that the machine draws (PUE).
        grams_per_kwh: CO2 equivalent of the grid's electricity.
    """

    watts_per_core: Price
    watts_per_gib: Price
    overhead: Annotated[float, Field(ge=1)]
    grams_per_kwh: Price


class CostsConfig(StageConfig):
    """Prices, in one currency. Gigabytes are 10^9 bytes, as they are billed; memory is in GiB."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    cpu_hour: Price
    gpu_hour: Price
    memory_gib_hour: Price
    moved_gb: Price
    stored_gb_month: Price
    energy: EnergyConfig


def load_costs(path: Path = PARAMS_FILE) -> CostsConfig | None:
    """The block; None where the file has none: then only hours and bytes are told. Raises ParamsError."""
    content = read_yaml(path)
    return parse(CostsConfig, content[COSTS], COSTS) if COSTS in content else None
