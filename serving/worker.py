"""The program that reads scans for the service: ``python -m serving.worker <release folder> <socket>``."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from components.confined import Bounds, Result
from components.errors import UserError
from serving.forks import serve_forks
from serving.limits import Limits

ANSWER = "answer"  # a file in the request's scratch folder, where an answer is more than JSON


def command(bundle: Path) -> list[str]:
    """Starts this program, without the socket's number."""
    return [sys.executable, "-m", "serving.worker", str(bundle)]


def environment() -> dict[str, str]:
    """This process's, in which the program finds the code that runs here, and no other."""
    here = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}


def main() -> None:
    """Load the release, say so, and fork a child for each request until the service is gone."""
    control = socket.socket(fileno=int(sys.argv[2]))
    warnings.simplefilter("ignore")  # readers quote header values in them
    try:
        import torch

        torch.set_num_threads(1)  # a pool of threads would not survive the fork; embedding sets its own number
        from serving.classifying import classify_file
        from serving.embedding import embed_file, open_release
        from serving.previewing import preview_file
        from serving.segmenting import segment_file

        bundle, limits, bounds = open_release(Path(sys.argv[1])), Limits.from_environment(), Bounds.from_environment()
    except UserError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        sys.exit(1)

    def work(request: dict[str, Any]) -> Result:
        tempfile.tempdir = request["scratch"]
        path = Path(request["path"])
        if request["ask"] == "classify":
            return Result(classify_file(path, bundle, request["point_mm"] and tuple(request["point_mm"]), limits))
        if request["ask"] == "segment":
            found = segment_file(path, bundle, request["head"], limits, with_images=request["form"] == "dicom")
            write = {"nifti": found.as_nifti, "dicom": found.as_dicom}.get(request["form"])
            if write is not None:
                (Path(request["scratch"]) / ANSWER).write_bytes(write())
            return Result(found.content)
        if request["ask"] == "preview":
            preview = preview_file(path, bundle, limits)
            (Path(request["scratch"]) / ANSWER).write_bytes(preview.as_nifti())
            return Result(preview.content)
        return Result(embed_file(path, bundle, limits).to_json())

    manifest = bundle.manifest
    said = {"name": manifest.name, "digest": manifest.digest, "line": manifest.line, "inputs": manifest.inputs}
    said |= {"heads": {part: head.description.sees for part, head in bundle.heads.items()}}
    said |= {"segments": {part: list(head.description.structures) for part, head in bundle.segmenters.items()}}
    if bundle.segmenters:
        import serving.dicom_seg  # noqa: F401  # once here, and not in each child
    gc.collect()
    gc.freeze()  # or the collector would touch, and so copy, in each child what it shares with this process
    control.send(json.dumps({"ready": said}).encode())
    serve_forks(control, work, bounds)


if __name__ == "__main__":
    main()
