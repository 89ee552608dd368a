"""Parameters of acquisition."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from components.params import StageConfig


class TransferConfig(StageConfig):
    """How long the transfer of one series may take, and how hard it is tried.

    Attributes:
        attempts: in all.
        backoff_s: wait before the second attempt; doubled before each further one.
        stall_s: without a new byte for so long, an attempt is given up.
        slowest_mb_s: the deadline of an attempt is the time that its bytes take at this rate, and twice ``stall_s``.
        connections: objects of one series in flight at a time.
    """

    attempts: Annotated[int, Field(ge=1, le=20)]
    backoff_s: Annotated[float, Field(ge=0)]
    stall_s: Annotated[float, Field(gt=0)]
    slowest_mb_s: Annotated[float, Field(gt=0)]
    connections: Annotated[int, Field(ge=1, le=256)]

    def deadline_s(self, size: int) -> float:
        """Seconds that one attempt at ``size`` bytes may take."""
        return 2 * self.stall_s + size / (self.slowest_mb_s * 1e6)


class AcquireConfig(StageConfig):
    """How the series come in. What :attr:`of_the_machine` names changes no output: no stage and no release depends on
    it.

    Attributes:
        workers: series in transfer at a time; null takes two per core, or one where they are computed, as phantoms are.
        max_memory_gib: what a worker may take to read the headers of one series; one that needs more is lost.
        raw: what becomes of a shard's raw files once it is preprocessed: ``evict`` them, or ``keep`` them until others
            need the room, so that another grid is made without another transfer.
        mixed_series: a series of several stacks (a scout among the slices, two kernels, several points in time) is
            judged as a ``whole``, which the suite *headers* rejects, or by its ``largest_stack``: other images are left
            out.
        max_unexpected: series of a shard that may be lost to an error nobody foresaw, here and in preprocessing; with
            more the stage stops.
        transfer: of one series.
    """

    of_the_machine: ClassVar[tuple[str, ...]] = ("workers", "max_memory_gib", "raw", "transfer")

    workers: Annotated[int, Field(ge=1)] | None
    max_memory_gib: Annotated[float, Field(ge=0.1)]
    raw: Literal["keep", "evict"]
    mixed_series: Literal["whole", "largest_stack"]
    max_unexpected: Annotated[int, Field(ge=0)]
    transfer: TransferConfig

    @property
    def only_largest_stack(self) -> bool:
        return self.mixed_series == "largest_stack"
