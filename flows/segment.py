"""``ctfoundry segment``: the structures of one scan by the release's decoder, as NIfTI, without a server."""

from __future__ import annotations

import argparse
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
    parser.add_argument("--out", type=Path, required=True, help="label map to write, on the scan's own grid: .nii.gz")
    parser.add_argument("--head", default=None, help="task, where the release has several that segment")


def run(arguments: argparse.Namespace) -> int:
    """Write the label map and print what its values are."""
    import numpy as np

    from components.looking.volume import write_nifti

    if not arguments.out.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"--out {arguments.out.name!r} is not allowed: a name that ends in .nii.gz")

    def work(bundle: ServedBundle, limits: Limits) -> Result:
        from components.confined import Result
        from serving.segmenting import segment_file

        labels, affine, content = segment_file(arguments.file, bundle, arguments.head, limits)
        grid = {"shape": list(labels.shape), "affine": affine.tolist()}
        return Result(content | {"grid": grid}, np.ascontiguousarray(labels).data.cast("B"))

    answer = answered(arguments.file, arguments.line, work)
    grid = answer.content.pop("grid")
    labels = np.frombuffer(answer.data, dtype=np.uint8).reshape(grid["shape"])
    write_nifti(labels, np.array(grid["affine"]), arguments.out)
    print(json.dumps(answer.content, indent=2))
    return 0
