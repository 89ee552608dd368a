"""``<line>.pretrain.start``: the weights that a run begins with, where they are found, and by which digest."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from components.settings import StageConfig

ROOT = "weights"  # the machine's folder below which files and releases lie, see components/sources/roots.py
SPDX = r"^[A-Za-z0-9.+-]+$"


def _below(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or {"..", "."} & set(path.split("/")):
        raise ValueError("a path such as ct_fm/model.safetensors, neither absolute nor with ..")
    return path


Below = Annotated[str, AfterValidator(_below)]


class _Weights(StageConfig):
    """What is said of any weights.

    Attributes:
        sha256: of the file with the weights: a release is made again from the same bytes, or not at all.
        licence: of the weights, as SPDX names it; NOASSERTION where it is not known. The model card tells it.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    licence: Annotated[str, Field(pattern=SPDX)]


class FileStart(_Weights):
    """A safetensors file below this machine's root ``weights`` (``CTFOUNDRY_ROOT_WEIGHTS``): an encoder's tensors by
    name, or those of all that a run trained."""

    kind: Literal["file"]
    file: Below

    @property
    def told(self) -> str:
        """Where they are from, in words."""
        return f"file {self.file}"


class ReleaseStart(_Weights):
    """The folder of a release, below the same root; ``sha256`` is that of its ``encoder.safetensors``. What it says of
    the encoder and its input is held against this block's."""

    kind: Literal["release"]
    release: Below

    @property
    def told(self) -> str:
        return f"release {self.release}"


class HubStart(_Weights):
    """A file of the Hugging Face hub; ``HF_ENDPOINT`` names a mirror, ``HF_HOME`` the cache.

    Attributes:
        revision: a commit, branch or tag; a commit cannot move.
    """

    kind: Literal["hub"]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(min_length=1)]
    file: Below

    @property
    def told(self) -> str:
        return f"{self.file} of hub repository {self.repository} at {self.revision}"


StartConfig = Annotated[FileStart | ReleaseStart | HubStart, Field(discriminator="kind")]
