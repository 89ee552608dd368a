"""Parameters of the `bundle` stage: what only a person can say about a release."""

from __future__ import annotations

from pydantic import Field

from components.settings import StageConfig


class BundleConfig(StageConfig):
    """Words on the model card and the licence of the weights; every figure on the card is read from the run.

    Attributes:
        name: short name of the model, also that of its Bento; lower case letters, digits and hyphens.
        title: the card's heading.
        description: what the model is, one paragraph.
        licence: SPDX identifier of the weights' licence.
        contact: whom to write to.
        intended_use: what the embedding is for, one sentence each.
        not_for: what it must not be used for, one sentence each.
        limits: what is known to be weak or unproven, one sentence each.
        references: papers of the recipe.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{2,39}$")
    title: str = Field(min_length=3, max_length=120)
    description: str = Field(min_length=10)
    licence: str = Field(pattern=r"^[A-Za-z0-9.+-]+$")
    contact: str = Field(min_length=3)
    intended_use: tuple[str, ...] = Field(min_length=1)
    not_for: tuple[str, ...] = Field(min_length=1)
    limits: tuple[str, ...] = Field(min_length=1)
    references: tuple[str, ...]
