"""Segmentation of a whole scan window by window, on one core: ours beside MONAI's ``sliding_window_inference``.

The same trained weights, windows and overlap. The peer is MONAI's inferer on MONAI's own encoder, one window at a time
and four: it adds up each window's logits at the input's resolution; the network enlarges its own there, as any network
does whose answer is coarser. All give labels on the volume's grid.

``python -m tests.benchmarks.bench_sliding_window [--window 64 96 96]``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers.utils import sliding_window_inference
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor
from torch.nn import functional

from components.ct.dicom import read_series
from components.ct.labels.onto_grid import label_map
from components.ct.origin import Origin
from components.ct.standardise import standardise
from components.ct.store import Int16Array
from components.models import decoder
from components.models.config import SegResConfig
from components.models.embed import EmbedConfig, untrained_embedder
from components.models.segmenter import Segmenter, image_of
from components.preprocess.config import PreprocessConfig
from components.settings import block_of, load_stage, parse
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan
from components.tasks import dense
from components.tasks.segment_config import DecoderConfig, VariedConfig

LINE = "wholebody"
ORGANS = ("lung_right", "lung_left", "heart", "liver", "spleen", "kidney_right", "kidney_left", "spine", "aorta")
DECODER = DecoderConfig(
    averaged=(1, 2, 2), finest=1, width=128, dropout=0.15, voxels=30_000, batch=2048, steps=1200, crops=1,
    crop_cells=(2, 2, 2), learning_rate=0.01, window_vox=(64, 96, 96), overlap=0.25, one_piece=False,
    varied=VariedConfig(copies=0, zoom=0.0, contrast=0.0, shift_hu=0.0, noise_hu=0.0),
)  # fmt: skip
REPEATS = 3
Classes = npt.NDArray[np.uint8]


def phantom(number: int) -> tuple[Int16Array, Classes]:
    """A scan on the line's grid, and its organs there."""
    config = PhantomConfig(
        anatomy="trunk", pretrain_patients=1, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=77
    )
    plan = [plan for plan in plan_scans(config) if plan.role == "evaluation"][number]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scan(plan, folder)
        volume = standardise(
            read_series(sorted(folder.glob("*.dcm"))), load_stage(PreprocessConfig, LINE, "preprocess")
        )
        found = label_map(folder / "mask.nii.gz", volume, Origin())
    numbers = np.zeros(256, dtype=np.uint8)
    for value, name in found.names.items():
        if name in ORGANS:
            numbers[value] = ORGANS.index(name) + 1
    return volume.hu, numbers[found.values]


def ours(segmenter: Segmenter, hu: Int16Array) -> Classes:
    """The way of kind ``segment`` for a scan that does not fit."""
    return segmenter.label(None, image_of(hu, segmenter.embed, segmenter.grids), hu.shape)


def monais(windows: int, segmenter: Segmenter, hu: Int16Array) -> Classes:
    """MONAI's inferer and encoder on the same input, and its logits enlarged to the volume's grid."""
    image, config = image_of(hu, segmenter.embed, segmenter.grids).values, segmenter.embed.encoder
    assert isinstance(config, SegResConfig)
    encoder = SegResEncoder(3, config.init_filters, image.shape[1], blocks_down=config.blocks_down).eval()
    encoder.load_state_dict(segmenter.encoder.state_dict())

    def network(window: Tensor) -> Tensor:
        logits = segmenter.decoder(encoder(window)[segmenter.config.finest :])
        return functional.interpolate(logits, size=window.shape[2:], mode="trilinear")

    with torch.no_grad():
        logits = sliding_window_inference(
            image, segmenter.config.window_vox, windows, network, overlap=segmenter.config.overlap, mode="gaussian"
        )
        assert isinstance(logits, Tensor)
        at_input = decoder.Grids(segmenter.grids.averaged, 0, segmenter.grids.levels)
        return decoder.enlarged(logits[0], at_input, hu.shape)


def dice(predicted: Classes, truth: Classes) -> float:
    """Mean over organs."""
    codes = range(1, len(ORGANS) + 1)
    both = [int(np.count_nonzero((predicted == code) & (truth == code))) for code in codes]
    sizes = [sum(int(np.count_nonzero(labels == code)) for labels in (predicted, truth)) for code in codes]
    return float(np.mean([2 * of / size for of, size in zip(both, sizes, strict=True)]))


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one core, which others' load does not change much."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, nargs=3, default=DECODER.window_vox, help="after averaging")
    window = parser.parse_args().window
    torch.set_num_threads(1)
    shape = {name: block_of(LINE, "pretrain").get(name) for name in ("encoder", "input")}
    embedder = untrained_embedder(parse(EmbedConfig, shape, f"{LINE}.pretrain"), 1)
    config = DECODER.model_copy(update={"window_vox": (window[0], window[1], window[2])})
    segmenter = dense.Learner(embedder, config, len(ORGANS) + 1, 1)
    hu, truth = phantom(0)
    ready = [dense.labelled(*phantom(number), embedder.config, segmenter.grids) for number in (1, 2, 3)]
    segmenter.fit(ready, [segmenter.levels(scan.image) for scan in ready])
    ways = {"ours": ours} | {f"MONAI, {count} at a time": partial(monais, count) for count in (1, 4)}
    figures = {name: dice(way(segmenter, hu), truth) for name, way in ways.items()}  # warm, too
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):  # by turns, so that both meet the same load
        for name, way in ways.items():
            times[name].append(seconds(lambda way=way: way(segmenter, hu)))  # type: ignore[misc]
    for name in ways:
        print(f"{name}: {statistics.median(times[name]):.2f} s of one core, mean Dice {figures[name]:.4f}")
    print(f"volume {hu.shape}, windows {config.window_vox}, overlap {config.overlap}")
    for name in list(ways)[1:]:
        print(f"ratio to {name}: {statistics.median(times[name]) / statistics.median(times['ours']):.2f}")


if __name__ == "__main__":
    main()
