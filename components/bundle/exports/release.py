"""A release as exports need it: verified, described, with its card and its licence."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import jinja2

from components.bundle.manifest import Manifest
from components.bundle.signature import verify_release
from components.code import ROOT
from components.errors import UserError
from components.files import write_text
from components.models.config import SegResConfig
from components.models.embed import WEIGHTS, EmbedConfig, described

CARD = "MODEL_CARD.md"
# Beside the model in every export: what it was made from, how a scan is prepared, who must be named.
KEPT = (CARD, "encoder.json", "preprocess.json", "licences.csv", "start.json")
OUR_LICENCE = "Apache-2.0"  # whose text lies in the project's root


@dataclass(frozen=True)
class Release:
    """A verified release.

    Attributes:
        folder: where it lies.
        manifest: of it.
        config: encoder, input, pooling.
        title: the heading of its card.
        licence: SPDX identifier of the weights' licence.
    """

    folder: Path
    manifest: Manifest
    config: EmbedConfig
    title: str
    licence: str

    @property
    def weights(self) -> Path:
        """The encoder's safetensors."""
        return self.folder / WEIGHTS

    def segres(self, to: str) -> SegResConfig:
        """The encoder where it is one that others know. Raises UserError for any other."""
        if not isinstance(self.config.encoder, SegResConfig):
            raise UserError(
                f"release {self.manifest.name}: encoder {self.config.encoder.kind!r} is not allowed with --to {to}: no "
                "library there has it; allowed: segres, or --to onnx"
            )
        return self.config.encoder

    def arguments(self, to: str) -> dict[str, object]:
        """What MONAI's ``SegResEncoder`` is built with, to be the release's. Raises UserError as :meth:`segres`."""
        encoder = self.segres(to)
        return {
            "spatial_dims": 3,
            "init_filters": encoder.init_filters,
            "in_channels": len(self.config.input.windows),
            "act": "relu",
            "norm": "batch",
            "blocks_down": list(encoder.blocks_down),
        }

    def carry(self, output: Path) -> None:
        """Copy :data:`KEPT` and the licence into an export's folder."""
        for name in KEPT:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, output / name)
        text = f"SPDX-License-Identifier: {self.licence}\n"
        if self.licence == OUR_LICENCE:
            text = (ROOT / "LICENSE").read_text(encoding="utf-8")
        write_text(output / "LICENSE", text)

    def rendered(self, template: str, **values: object) -> str:
        """A page of an export, from a template beside this module."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("components.bundle.exports", ""),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # Markdown, read as text
        )
        return environment.get_template(template).render(release=self, input=self.config.input, **values)


def read_release(folder: Path) -> Release:
    """Verify a release folder and read what exports tell of it.

    Raises:
        UserError: as :func:`components.bundle.signature.verify_release`; or it has no card that says its licence.
    """
    manifest = verify_release(folder).manifest
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    title = re.search(r"^# (.+)$", card, re.MULTILINE)
    licence = re.search(r"^\| Licence of the weights \| (\S+) \|$", card, re.MULTILINE)
    if title is None or licence is None:
        raise UserError(f"release {manifest.name}: {CARD} does not say its licence; allowed: a card of stage bundle")
    return Release(folder, manifest, described(folder), title[1], licence[1])
