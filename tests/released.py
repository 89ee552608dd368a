"""A small release to serve, and a server to wait for."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import httpx
import torch

from components.files import sha256_file, write_json
from components.models.build import build_encoder
from components.models.config import InputConfig, SegResConfig
from components.models.embed import WEIGHTS, EmbedConfig, Embedder
from components.models.segment_head import SegmentDescription, SegmentHead
from components.models.segmenter import Segmenter, SegmenterConfig
from components.settings import decisive, read_yaml

ROOT = Path(__file__).resolve().parents[1]
START_S = 600.0  # of a service, on a busy machine


def write_release(folder: Path, line: str = "wholebody") -> None:
    """An untrained encoder, the line's own preprocessing and thresholds; the manifest is the caller's."""
    parameters = decisive(read_yaml(ROOT / "params.yaml")[line])  # as stage ``bundle`` writes them
    orientation, spacing = (parameters["preprocess"][name] for name in ("orientation", "spacing_mm"))
    view = InputConfig(
        sees="crop", orientation=orientation, spacing_mm=tuple(spacing), size_vox=(16, 64, 64), windows=((0.0, 2000.0),)
    )
    config = SegResConfig(kind="segres", init_filters=4, blocks_down=(1, 1, 1))
    encoder = build_encoder(config, view, seed=1)
    Embedder.from_encoder(encoder, EmbedConfig(encoder=config, input=view)).save(folder)
    write_json(folder / "preprocess.json", parameters["preprocess"])
    judged = {"headers": parameters["screen"], "volumes": parameters["curate"]}
    write_json(folder / "acceptance.json", {**judged, "mixed_series": parameters["acquire"]["mixed_series"]})


def write_segmenter(folder: Path, part: str, structures: tuple[str, ...]) -> None:
    """A head that segments, with made-up weights, on the encoder of a release folder; the manifest is the caller's."""
    embedder = Embedder.load(folder)
    config = SegmenterConfig(
        averaged=(1, 4, 4), finest=0, width=8, window_vox=(64, 64, 64), overlap=0.25, one_piece=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(13)
        segmenter = Segmenter(embedder.encoder, embedder.config, config, len(structures) + 1)
        for weights in segmenter.decoder.parameters():  # drawn wider, so that places differ in what is found
            weights.data = torch.randn_like(weights)
    seen = embedder.config.input
    told = SegmentDescription(
        format=1, kind="segment", task=part, part=part, structures=structures, segmenter=config,
        orientation=seen.orientation, spacing_mm=seen.spacing_mm, encoder=sha256_file(folder / WEIGHTS), figures={},
        dice={structures[0]: 0.5}, patients={"train": 1, "test": 1}, limits=("Of a test.",),
    )  # fmt: skip
    SegmentHead.of(segmenter, told).write(folder / "heads" / part)


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_answer(server: subprocess.Popen[bytes], url: str, log: Path) -> httpx.Response:
    """The first 200 at ``url``; fails with the end of ``log`` where the server ends before, or START_S are over."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            response = httpx.get(url, timeout=2)
            if response.status_code == 200:
                return response
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the service did not start:\n{log.read_text()[-4000:]}")
