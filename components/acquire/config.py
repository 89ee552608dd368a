"""Parameters of acquisition."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.params import StageConfig


class AcquireConfig(StageConfig):
    """Attributes:
    retries: further attempts at a series whose transfer failed.
    """

    retries: Annotated[int, Field(ge=0, le=20)]
