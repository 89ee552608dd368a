"""The program that reads scans for the service: ``python -m serving.worker <release folder> <socket>``."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import warnings
from pathlib import Path

from components.confined import Bounds
from components.errors import UserError
from serving.limits import Limits, device_asked
from serving.program import COLD, Warm, serve_forks

WARM = 2  # children that wait on a GPU: one is made while another is asked


def command(bundle: Path) -> list[str]:
    """Starts this program, without the socket's number."""
    return [sys.executable, "-m", "serving.worker", str(bundle)]


def environment() -> dict[str, str]:
    """This process's, in which the program finds the code that runs here, and no other."""
    here = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Where a library asks torch for a GPU, it is told by NVML: CUDA's own answer would leave no child able to use it.
    return {**os.environ, "PYTHONPATH": path, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def main() -> None:
    """Load the release, say so, and fork a child for each request until the service is gone."""
    control = socket.socket(fileno=int(sys.argv[2]))
    warnings.simplefilter("ignore")  # readers quote header values in them
    try:
        import torch

        torch.set_num_threads(1)  # a pool of threads would not survive the fork; embedding sets its own number
        from serving.device import CPU, chosen_device
        from serving.embedding import open_release
        from serving.nearest import Index
        from serving.pacs import Doors
        from serving.working import Work, told_of

        bundle, limits, bounds = open_release(Path(sys.argv[1])), Limits.from_environment(), Bounds.from_environment()
        index, doors = Index.from_environment(bundle.manifest.digest), Doors.from_environment()
        device = chosen_device(device_asked())
    except UserError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        sys.exit(1)
    import serving.dicom_map  # once here, and not in each child
    import serving.dicom_sr  # noqa: F401

    if doors.reads or doors.stores:
        import components.sources.dicomweb  # noqa: F401

    said, work = told_of(bundle, index, doors, device), Work(bundle, index, limits)
    gc.collect()
    gc.freeze()  # or the collector would touch, and so copy, in each child what it shares with this process
    control.send(json.dumps({"ready": said}).encode())
    if device == CPU:
        serve_forks(control, lambda: work.do, bounds, COLD)
    serve_forks(control, lambda: work.on(device).do, bounds, Warm(WARM, limits.warm_seconds))


if __name__ == "__main__":
    main()
