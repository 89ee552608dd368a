"""``ctfoundry import-weights``: from a file and from a hub, over HTTP on this machine, to a champion."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from dvc.repo import Repo

from components.cohort.labelled import joined
from components.errors import UserError
from components.files import read_json, write_json
from components.gate.champion import read_champion
from components.models.embed import WEIGHTS
from components.settings import read_yaml
from components.tables import write_table
from flows.champion import import_weights
from tests.hub import Hub
from tests.pretrain_project import WHOLEBODY
from tests.unit.test_evaluate_stage import EMBED, EVALUATE, PREPROCESS, tiny_embedder, tiny_line

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "somebody/ct_encoder"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data is made, up to curation; ``public`` holds weights."""
    folder = tmp_path_factory.mktemp("import")
    inputs = tiny_line(folder)
    write_table(folder / "data/wholebody/curate/curated.parquet", inputs.curated)
    write_table(folder / "data/wholebody/curate/annotations.parquet", inputs.annotations)
    write_table(folder / "data/wholebody/cohort/labelled.parquet", joined([]))
    write_json(folder / "data/wholebody/cohort/labelled.json", {})
    write_json(folder / "data/wholebody/curate/labels.json", {})
    receipt = pd.DataFrame({"series": inputs.curated["series"], "manufacturer": "SIEMENS"})
    write_table(folder / "data/wholebody/acquire/0/receipt.parquet", receipt)
    pretrain = WHOLEBODY | {"encoder": EMBED["encoder"], "input": EMBED["input"]}
    shipped = read_yaml(ROOT / "params.yaml")["wholebody"]
    asked = {"sets": {}, "tasks": {name: shipped["tasks"][name] for name in ("organs", "stability")}}
    blocks = {
        "cohort": shipped["cohort"],
        "pretrain": pretrain,
        "evaluate": EVALUATE,
        "preprocess": PREPROCESS,
        "published": shipped["published"],
        **asked,
    }
    content = {"lines": ["wholebody"], "shards": [0], "wholebody": {"reproducible": "machine", **blocks}}
    (folder / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(content))))
    (folder / "dvc.yaml").touch()
    Repo.init(str(folder), no_scm=True)
    (folder / "infra" / "champions").mkdir(parents=True)
    (folder / "components" / "pretrain").mkdir(parents=True)
    (folder / "components" / "pretrain" / "recipes").symlink_to(ROOT / "components/pretrain/recipes")
    tiny_embedder().save(folder / "public")
    return folder


@pytest.fixture(scope="module")
def hub(checkout: Path) -> Iterator[str]:
    """Answers as the hub does for one repository."""
    with Hub(REPOSITORY, {"model.safetensors": (checkout / "public" / WEIGHTS).read_bytes()}) as server:
        yield server.endpoint


def run(checkout: Path, *arguments: str, endpoint: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HOME": str(checkout / "hub")}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "import-weights", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)


def test_weights_of_a_hub_become_the_champion(checkout: Path, hub: str) -> None:
    done = run(checkout, REPOSITORY, endpoint=hub)
    assert done.returncode == 0, done.stderr
    champion = read_champion(checkout / "infra/champions/wholebody.json")
    assert champion is not None
    assert champion["imported"] == REPOSITORY
    assert champion["bundle"] == hashlib.sha256((checkout / "public" / WEIGHTS).read_bytes()).hexdigest()
    assert 0 <= champion["metrics"]["tasks"]["organs"]["retrieval_map"]["value"] <= 1
    assert (checkout / ".ctfoundry/imported/wholebody/evaluate/report.html").is_file()
    kept = safetensors.torch.load_file(checkout / ".ctfoundry/imported/wholebody/features/encoder" / WEIGHTS)
    theirs = safetensors.torch.load_file(checkout / "public" / WEIGHTS)
    assert all(torch.equal(kept[name], value) for name, value in theirs.items())


def test_a_file_with_a_prefix_gives_the_same_figures(checkout: Path, hub: str) -> None:
    before = read_json(checkout / "infra/champions/wholebody.json")["champion"]["metrics"]
    tensors = safetensors.torch.load_file(checkout / "public" / WEIGHTS)
    safetensors.torch.save_file({f"encoder.{k}": v for k, v in tensors.items()}, checkout / "prefixed.safetensors")
    done = run(checkout, "prefixed.safetensors")
    assert done.returncode == 0, done.stderr
    champion = read_json(checkout / "infra/champions/wholebody.json")["champion"]
    assert (champion["metrics"], champion["imported"]) == (before, "prefixed.safetensors")


@pytest.mark.parametrize(
    ("source", "recipe", "said"),
    [
        ("public/encoder.safetensors", "ct_fm", r"do not fit encoder 'segres': \d+ lacking, first layers"),
        ("public/encoder.safetensors", "fm_ct", "recipe 'fm_ct' is not allowed with line 'wholebody'"),
        ("params.yaml", None, "weights params.yaml: not readable as safetensors"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_champion_stays(
    source: str, recipe: str | None, said: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    kept = (checkout / "infra/champions/wholebody.json").read_bytes()
    with pytest.raises(UserError, match=said):
        import_weights("wholebody", source, recipe)
    assert (checkout / "infra/champions/wholebody.json").read_bytes() == kept


def test_a_repository_that_is_not_there_is_one_line(checkout: Path, hub: str) -> None:
    done = run(checkout, "nobody/nothing", endpoint=hub)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("ctfoundry: ")]
    (said,) = lines
    assert "weights 'nobody/nothing': no such file; hub: no model.safetensors of repository 'nobody/nothing'" in said
    assert "Traceback" not in done.stderr
