"""The source of a name. What a new one needs: components/README.md."""

from __future__ import annotations

from components.sources.config import SourceConfig
from components.sources.dicom import DicomSource
from components.sources.dicomweb import DicomwebSource
from components.sources.idc import IdcSource
from components.sources.interface import Source
from components.sources.nifti import NiftiSource
from components.sources.phantom.source import PhantomSource


def source_of(name: str, place: str, config: SourceConfig) -> Source:
    """The source called ``name``, a value of ``config.source``, of a line or of one of its labelled sets (see
    ``roots.place_of``); the block says what it needs."""
    match name:
        case "phantom":
            return PhantomSource(config.phantom, pretrain=config.source == "phantom")
        case "dicom":
            return DicomSource(config, place)
        case "idc":
            return IdcSource(config.idc)
        case "dicomweb":
            return DicomwebSource(config, place)
        case "nifti":
            return NiftiSource(config, place)
        case _:
            raise ValueError(f"source {name!r} is not known here; sources/kinds.py and SourceConfig may name it")
