"""What a child of the service does with a request: the same functions that answer offline, by the name of the route."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from components.confined import Result
from serving.asking import ANSWER, FORM, HEAD, NEAREST, OTHER, POINT, SCAN
from serving.batch_scan import answer_all
from serving.classifying import classify_file, report_file
from serving.device import CPU, gpu_told, on_device
from serving.drifting import training_bins
from serving.embedding import ServedBundle, embed_file
from serving.explaining import Wanted, saliency_file
from serving.limits import Limits
from serving.locating import locate_files
from serving.nearest import Index, account_of, retrieve_file
from serving.pacs import FETCH, STORE, Doors, fetch_series, store_object
from serving.previewing import preview_file
from serving.segmenting import segment_file

Request = dict[str, Any]
PROFILE = "profile"  # of what a worker says when it is ready: for the figures, and in no answer


@dataclass(frozen=True)
class Work:
    """A release, the index beside it, and the limits of each request."""

    bundle: ServedBundle
    index: Index | None
    limits: Limits

    def on(self, device: str) -> Work:
        """The same, with the release on a device. Raises as :func:`serving.device.on_device`."""
        return replace(self, bundle=on_device(self.bundle, device))

    def do(self, request: Request) -> Result:
        """What is asked: ``ask``, the route; ``paths``, field to file or folder; ``scratch``, a folder; and the route's
        own parameters, which were looked at when they came."""
        tempfile.tempdir = request["scratch"]
        paths = {field: Path(path) for field, path in request["paths"].items()}
        of_route: dict[str, Callable[[Request, dict[str, Path]], dict[str, Any]]] = {
            "batch": self._all,
            "embed": lambda _, paths: embed_file(paths[SCAN], self.bundle, self.limits).to_json(),
            "classify": self._classify,
            "segment": self._segment,
            "saliency": self._explain,
            "locate": self._locate,
            "retrieve": self._retrieve,
            "preview": self._preview,
            FETCH: lambda asked, _: fetch_series(asked["uids"][0], asked["uids"][1], Path(asked["to"]), self.limits),
            STORE: lambda _, paths: store_object(paths[SCAN]),
        }
        with gpu_told():
            return Result(of_route[request["ask"]](request, paths))

    def _all(self, asked: Request, paths: dict[str, Path]) -> dict[str, Any]:
        return answer_all(paths[SCAN], self.bundle, self.limits, asked["only"], asked[FORM], Path(asked["scratch"]))

    def _classify(self, asked: Request, paths: dict[str, Path]) -> dict[str, Any]:
        if asked[FORM] == "json":
            return classify_file(paths[SCAN], self.bundle, _point(asked), self.limits)
        content, report = report_file(paths[SCAN], self.bundle, _point(asked), self.limits)
        return _written(asked, content, {"dicom": lambda: report})

    def _segment(self, asked: Request, paths: dict[str, Path]) -> dict[str, Any]:
        as_dicom = asked[FORM] == "dicom"
        found = segment_file(paths[SCAN], self.bundle, asked[HEAD], self.limits, with_images=as_dicom)
        return _written(asked, found.content, {"nifti": found.as_nifti, "dicom": found.as_dicom})

    def _explain(self, asked: Request, paths: dict[str, Path]) -> dict[str, Any]:
        wanted = Wanted(**asked["wanted"] | {"point": _point(asked["wanted"], "point")})
        as_dicom = asked[FORM] in ("dicom", "capture")
        found = saliency_file(paths[SCAN], self.bundle, wanted, self.limits, with_images=as_dicom)
        forms = {"nifti": found.as_nifti, "dicom": found.as_dicom, "capture": found.as_capture}
        return _written(asked, found.content, forms)

    def _locate(self, asked: Request, paths: dict[str, Path]) -> dict[str, Any]:
        point = _point(asked)
        assert point is not None
        return locate_files(paths[SCAN], paths[OTHER], self.bundle, point, self.limits)

    def _retrieve(self, asked: Request, paths: dict[str, Path]) -> dict[str, Any]:
        assert self.index is not None
        return retrieve_file(paths[SCAN], self.bundle, self.index, asked[NEAREST], self.limits)

    def _preview(self, asked: Request, paths: dict[str, Path]) -> dict[str, Any]:
        found = preview_file(paths[SCAN], self.bundle, self.limits)
        return _written(asked, found.content, {"nifti": found.as_nifti})


def told_of(bundle: ServedBundle, index: Index | None, doors: Doors, device: str = CPU) -> dict[str, Any]:
    """What ``GET /model`` says: JSON-like."""
    manifest = bundle.manifest
    heads = {part: head.description for part, head in bundle.heads.items()}
    return {
        "name": manifest.name, "digest": manifest.digest, "line": manifest.line, "inputs": manifest.inputs,
        "sees": bundle.embedder.config.input.sees,
        "heads": {part: head.sees for part, head in heads.items()},
        "classes": {part: list(head.classes) for part, head in heads.items()},
        "segments": {part: list(head.description.structures) for part, head in bundle.segmenters.items()},
        "index": None if index is None else account_of(index),
        "pacs": asdict(doors), "device": device, PROFILE: training_bins(bundle.profile),
    }  # fmt: skip


def _point(asked: Request, name: str = POINT) -> tuple[float, float, float] | None:
    point = asked[name]
    return None if point is None else (point[0], point[1], point[2])


def _written(asked: Request, content: dict[str, Any], forms: dict[str, Callable[[], bytes]]) -> dict[str, Any]:
    """The content; and where a file is asked for, it lies in the scratch folder."""
    if asked[FORM] in forms:
        (Path(asked["scratch"]) / ANSWER).write_bytes(forms[asked[FORM]]())
    return content
