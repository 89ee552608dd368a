"""Figures that others have published, shown beside ours: block ``<line>.published`` of the parameters."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.settings import StageConfig

Text = Annotated[str, Field(min_length=1, max_length=300)]


class PublishedFigure(StageConfig):
    """A figure that somebody else's model reached, on their patients.

    Attributes:
        task: of the line, or a part of it (``findings/ich``).
        figure: of the task's kind, as in ``metrics.json``: what ours is compared by.
        value: theirs, in the same unit.
        model: whose it is, as ``CT-FM, fine-tuned``.
        source: where it is published, and how it differs from ours where it does: another cut-off, test set, averaging.
    """

    task: Text
    figure: Text
    value: Annotated[float, Field(allow_inf_nan=False)]
    model: Text
    source: Text


class PublishedConfig(StageConfig):
    """Attributes:
    figures: in the order in which the report shows them.
    """

    figures: tuple[PublishedFigure, ...]
