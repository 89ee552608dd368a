"""``ctfoundry segment``: the structures of one scan by the release's decoder, as NIfTI or DICOM SEG."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import UserError
from flows.lines import add_line
from flows.offline import answered

if TYPE_CHECKING:
    from components.confined import Result
    from serving.embedding import ServedBundle
    from serving.limits import Limits


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry segment``."""
    parser.set_defaults(run=run)
    add_line(parser)
    parser.add_argument("file", type=Path, help="one CT series as zip, or a NIfTI volume")
    told = "to write: .nii.gz, a label map on the scan's own grid; or .dcm, a DICOM SEG in the scan's study"
    parser.add_argument("--out", type=Path, required=True, help=told)
    parser.add_argument("--head", default=None, help="task, where the release has several that segment")


def run(arguments: argparse.Namespace) -> int:
    """Write what was found and print what its values are."""
    from components.files import replacing

    as_dicom = arguments.out.suffix == ".dcm"
    if not (as_dicom or arguments.out.name.endswith((".nii", ".nii.gz"))):
        raise UserError(f"--out {arguments.out.name!r} is not allowed: a name that ends in .nii.gz or .dcm")

    def work(bundle: ServedBundle, limits: Limits) -> Result:
        from components.confined import Result
        from serving.segmenting import segment_file

        found = segment_file(arguments.file, bundle, arguments.head, limits, with_images=as_dicom)
        return Result(found.content, memoryview(found.as_dicom() if as_dicom else found.as_nifti()))

    answer = answered(arguments.file, arguments.line, work)
    content = bytes(answer.data)
    if arguments.out.suffix == ".nii":
        content = gzip.decompress(content)
    with replacing(arguments.out) as temporary:
        temporary.write_bytes(content)
    print(json.dumps(answer.content, indent=2))
    return 0
