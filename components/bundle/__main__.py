"""``python -m components.bundle --line <line>``: write ``releases/<line>`` for a line that passed its gates."""

from __future__ import annotations

from pathlib import Path

from components.bundle.config import BundleConfig
from components.bundle.stage import Sources, make_bundle
from components.command import run_stage
from components.settings import decisive, load_stage, read_yaml, shards


def main(line: str) -> None:
    """Run the stage with the paths of the project."""
    config = load_stage(BundleConfig, line, "bundle")
    sources = Sources.of_line(Path("data") / line, shards())
    make_bundle(line, config, decisive(read_yaml()[line]), sources, Path("releases") / line)


if __name__ == "__main__":
    run_stage("bundle", "Write the release folder of a line that passed its gates.", main)
