"""The encoder with its pooling as one ONNX graph: windows in, vectors out."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.bundle.exports.release import Release
from components.errors import UserError
from components.files import write_json, write_text
from components.models.config import SegResConfig
from components.models.embed import Embedder

OPSET = 18
CROPS = 256  # at once, at most; of whole scans one
TOLERANCE = 1e-5  # of a vector's largest number: seen 1e-6
INPUT, OUTPUT = "windows", "vectors"


class _Vectors(nn.Module):
    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.encoder = embedder.encoder
        self._vectors = embedder.vectors

    def forward(self, windows: Tensor) -> Tensor:
        return self._vectors(windows)


def write_onnx(release: Release, output: Path) -> None:
    """Fill an empty folder. Raises UserError where onnx or onnxscript is not installed."""
    embedder = Embedder.load(release.folder)
    (output / "model.onnx").write_bytes(exported(embedder).SerializeToString(deterministic=True))
    seen = release.config.input
    told = {
        "input": {"name": INPUT, "shape": [_batch(embedder), len(seen.windows), *seen.size_vox], "dtype": "float32",
                  "windows": [list(window) for window in seen.windows], "spacing_mm": list(seen.spacing_mm),
                  "orientation": seen.orientation, "sees": seen.sees},
        "output": {"name": OUTPUT, "shape": [_batch(embedder), embedder.dim], "dtype": "float32"},
        "opset": OPSET, "tolerance": TOLERANCE, "release": release.manifest.digest,
    }  # fmt: skip
    write_json(output / "config.json", told)
    release.carry(output)
    write_text(output / "README.md", release.rendered("onnx.md.j2", tolerance=TOLERANCE, crops=CROPS))


def exported(embedder: Embedder) -> Any:
    """The graph of an encoder, an ``onnx.ModelProto`` without paths or stack traces."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch writes its graph with it
    except ModuleNotFoundError as error:
        raise UserError(f"--to onnx needs {error.name}; install it: pip install 'ctfoundry[export]'") from None
    many, seen = _batch(embedder) == "batch", embedder.config.input
    for module in embedder.encoder.modules():
        if isinstance(module, nn.Conv3d):
            module.__class__ = nn.Conv3d  # ours asks for the number of crops, which is to stay open
    example = torch.rand(1 + many, len(seen.windows), *seen.size_vox, generator=torch.Generator().manual_seed(0))
    dynamic = {"windows": {0: torch.export.Dim("batch", min=1, max=CROPS)}} if many else None
    with _quiet():
        program = torch.onnx.export(
            _Vectors(embedder).eval(), (example,), dynamo=True, opset_version=OPSET, external_data=False,
            dynamic_shapes=dynamic, input_names=[INPUT], output_names=[OUTPUT], verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _batch(embedder: Embedder) -> str | int:
    """What the first axis of input and output is: open where crops are seen, one where a whole scan is."""
    return "batch" if isinstance(embedder.config.encoder, SegResConfig) else 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own account of the export, and of packages that it does not need."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _strip(model: Any) -> None:
    """Take away where each node came from: lines of code, and the paths of this machine."""
    del model.metadata_props[:]
    model.doc_string, model.graph.doc_string = "", ""
    del model.graph.metadata_props[:]
    for node in [*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input,
                 *model.graph.output]:  # fmt: skip
        node.doc_string = ""
        del node.metadata_props[:]
