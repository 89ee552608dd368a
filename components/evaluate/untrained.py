"""``python -m components.evaluate.untrained``, stage ``untrained``: the features that any training has to beat.

They follow from the places, the architecture, the seeds and the peers; another training changes none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from components.command import run_stage
from components.ct.grid import GridConfig
from components.evaluate.layout import Layout, read_places
from components.evaluate.peers import PeersConfig, peer_methods
from components.files import replacing
from components.models.embed import EmbedConfig, Embedder, untrained_embedder
from components.settings import block_of, load_part, load_stage, parse
from components.tasks.config import EvaluateConfig
from components.tasks.features import Method, Volumes, encoder_method, extract
from components.tasks.plain import baselines
from components.tasks.scores import RANDOM


def run(line: str) -> None:
    """Write the features of untrained encoders and of the plain baselines to ``data/<line>/untrained``."""
    layout = Layout.of(line)
    config = load_stage(EvaluateConfig, line, "evaluate")
    pretrain = block_of(line, "pretrain")
    shape = {name: pretrain.get(name) for name in ("encoder", "input")}
    embed = parse(EmbedConfig, shape | {"pooling": config.pooling}, f"{line}.pretrain")
    volumes = Volumes(config, load_part(GridConfig, line, "preprocess"), embed.input.size_vox)
    peers = peer_methods(line, load_stage(PeersConfig, line, "peers"), embed.input, config.device)
    write_untrained(layout.untrained, read_places(layout.cases), embed, config, volumes, peers)


def write_untrained(
    folder: Path, places: pd.DataFrame, embed: EmbedConfig, config: EvaluateConfig, volumes: Volumes,
    peers: Mapping[str, Method] | None = None,
) -> None:  # fmt: skip
    """Extract and write them, and those of ``peers``."""
    methods = {name: encoder_method(make()) for name, make in untrained_encoders(embed, config).items()}
    features = extract(
        places, methods | baselines(config, embed.input) | dict(peers or {}), volumes, embed.input.size_vox
    )
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        features.write(temporary)


def untrained_encoders(embed: EmbedConfig, config: EvaluateConfig) -> dict[str, Callable[[], Embedder]]:
    """Method to untrained encoder, each made when it is asked for."""

    def of_seed(seed: int) -> Callable[[], Embedder]:
        return lambda: untrained_embedder(embed, seed, config.device)

    return {f"{RANDOM}_{seed}": of_seed(seed) for seed in config.random_seeds}


if __name__ == "__main__":
    run_stage("untrained", "Embed the cases by untrained encoders and plain baselines.", run)
