"""A published recipe in steady state, from the store: volumes/s, share of peak, memory, time without a batch.

    python -m tests.benchmarks.bench_training ct_fm --volumes-per-step 4 --loaders 14 --peak-tflops 989   # one H100
    python -m tests.benchmarks.bench_training fm_ct --volumes-per-step 64 --loaders 14 --peak-tflops 989
    python -m tests.benchmarks.bench_training ct_fm --small                                            # a look on a CPU

Synthetic volumes of real size are written into the store first. The platform's own loop then trains at the recipe's
full size, first from the store, then in a mode without data loading (the first batch again and again); their ratio is
the price of input. Floating-point operations are counted by torch on one step. ``--small`` shrinks encoder, crops and
volumes, for a machine without a GPU. Needs torch, MONAI, blosc2, OpenCV and pydantic, neither Ray nor a cluster.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.ct.store import Volume, write_volume
from components.pretrain.config import PretrainConfig
from components.pretrain.loop import Trainer
from components.pretrain.workers import World
from components.settings import _tuples, parse, read_yaml
from flows.profile import measure, rows

RECIPES = Path("components/pretrain/recipes")
SHAPES = {"ct_fm": (120, 330, 400), "fm_ct": (170, 230, 180)}  # usual for a chest at 3 x 1 x 1 mm, a head at 1 mm
AFFINES = {"ct_fm": [[0, 0, -1], [0, -1, 0], [3, 0, 0]], "fm_ct": np.eye(3).tolist()}
SMALL: dict[str, Any] = {
    "ct_fm": {"size_vox": [8, 32, 32], "encoder": {"init_filters": 8}},
    "fm_ct": {"size_vox": [48, 48, 48], "encoder": {"dim": 96, "depth": 2, "heads": 3}},
}


def synthetic(shape: tuple[int, int, int], recipe: str, seed: int) -> Volume:
    """A body of soft blobs with a scanner's noise, in air: it compresses about as CT does."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes[1:]) + 0 * axes[0] < 0.7
    waves = sum(np.sin(rng.uniform(3, 12) * axis + rng.uniform(0, 6)) for axis in axes)
    hu = np.where(inside, 40 + 60 * waves + rng.normal(0, 12, shape), -1000 + rng.normal(0, 6, shape))
    affine = np.eye(4)
    affine[:3, :3] = AFFINES[recipe]
    return Volume(hu=hu.astype(np.int16), affine=affine)


def write_synthetic(path: Path, shape: tuple[int, int, int], recipe: str, seed: int) -> Path:
    write_volume(path, synthetic(shape, recipe, seed), {})
    return path


def store(folder: Path, recipe: str, count: int, small: bool) -> tuple[Path, ...]:
    """Volumes of real size, or of a third of each side, made on all cores."""
    a, b, c = SHAPES[recipe]
    shape = (a // 3, b // 3, c // 3) if small else (a, b, c)
    paths = [folder / f"{recipe}-{number:04d}.b2nd" for number in range(count)]
    with ProcessPoolExecutor() as pool:
        return tuple(pool.map(write_synthetic, paths, [shape] * count, [recipe] * count, range(count)))


def config_of(arguments: argparse.Namespace) -> PretrainConfig:
    block = read_yaml(RECIPES / f"{arguments.recipe}.yaml")["pretrain"]
    block |= {
        "workers": 0, "loaders": arguments.loaders, "volumes_per_step": arguments.volumes_per_step,
        "log_every": 10**6, "precision": "bfloat16" if torch.cuda.is_available() else "float32",
        "compile": arguments.compile,
    }  # fmt: skip
    if arguments.small:
        small = SMALL[arguments.recipe]
        block["input"] |= {"size_vox": small["size_vox"]}
        block["encoder"] |= small["encoder"]
        if arguments.recipe == "fm_ct":
            block["objective"]["views"] |= {"local_size_vox": [24, 24, 24]}
            block["objective"]["dino"] |= {"prototypes": 1024}
            block["objective"]["mae"] |= {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3}
    return parse(PretrainConfig, _tuples(block), arguments.recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--volumes", type=int, default=64, help="in the store (default: 64)")
    parser.add_argument("--volumes-per-step", type=int, default=4)
    parser.add_argument("--loaders", type=int, default=0)
    parser.add_argument(
        "--peak-tflops", type=float, help="of the device in the precision that is used: prints the share"
    )
    parser.add_argument("--compile", action="store_true", help="blocks through torch.compile")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    config = config_of(arguments)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name() if on_gpu else "CPU, one thread"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        volumes = store(Path(folder), arguments.recipe, arguments.volumes, arguments.small)
        stored = sum(path.stat().st_size for path in volumes) / len(volumes) / 1e6
        speed = measure(Trainer(config, volumes, World(0, 1, device)), arguments.steps)
    share = arguments.volumes_per_step
    print(
        f"{arguments.recipe}{', small' if arguments.small else ''}, {name}, torch {torch.__version__}, "
        f"{config.precision}{', compiled' if config.compile else ''}, {share} volumes ({stored:.1f} MB stored) a step, "
        f"{arguments.loaders} loaders: "
        + "; ".join(f"{label} {value}" for label, value in rows(speed, share, arguments.peak_tflops).items())
        + f"; ratio {speed.step_s_without_data / speed.step_s:.2f}"
    )


if __name__ == "__main__":
    main()
