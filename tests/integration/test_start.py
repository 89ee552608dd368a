"""Published weights adopted as a release: evaluated on the line's own data, with heads, past the gates, and served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import yaml
from checkout import Checkout, one_shard

from components.bundle.__main__ import main as make_bundle
from components.bundle.manifest import verify_bundle
from components.cohort.labelled import joined
from components.command import stored_volume
from components.ct.store import StoredVolume
from components.evaluate import cases, features, rival, task, untrained
from components.evaluate import stage as evaluate
from components.files import read_json, sha256_file, write_json, write_text
from components.gate import champion
from components.gate import stage as gate
from components.models.build import build_encoder
from components.models.embed import WEIGHTS, Embedder
from components.pretrain.__main__ import pretrain
from components.pretrain.config import PretrainConfig
from components.registry import check_file
from components.settings import load_stage, read_yaml
from components.sources.roots import record_root
from components.tables import write_table
from components.tasks.kinds import listed_tasks
from flows.lines import unknown_roots
from serving.classifying import classify_file
from serving.embedding import embed_file, open_release
from tests.hub import Hub
from tests.pretrain_project import WHOLEBODY
from tests.unit.gate_blocks import asking
from tests.unit.test_evaluate_stage import EMBED, EVALUATE, PREPROCESS, tiny_embedder, tiny_line

ROOT = Path(__file__).resolve().parents[2]
LINE = "wholebody"
TASKS = ("organs", "stability")


@pytest.fixture
def adopting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line whose data is made, up to curation, and whose parameters start from a file; returns the file."""
    project, public = tmp_path / "project", tmp_path / "public"
    project.mkdir()
    monkeypatch.chdir(project)
    public.mkdir()
    tensors = {name: value.contiguous() for name, value in tiny_embedder().encoder.state_dict().items()}
    safetensors.torch.save_file(tensors, public / WEIGHTS, {"format": "pt"})  # other bytes than our own writer's
    record_root("weights", public, LINE)
    start = {"kind": "file", "file": WEIGHTS, "sha256": sha256_file(public / WEIGHTS), "licence": "CC-BY-4.0"}
    line = read_yaml(ROOT / "params.yaml")[LINE]
    line["pretrain"] = WHOLEBODY | {"encoder": EMBED["encoder"], "input": EMBED["input"], "start": start, "steps": 0}
    line["tasks"] = {name: line["tasks"][name] for name in TASKS}
    line["tasks"]["organs"]["serve"] = True
    line["bundle"]["licence"] = "CC-BY-4.0"
    floor = {"task": "organs", "figure": "linear_auc", "minimum": 0.6}
    line |= {"evaluate": EVALUATE, "preprocess": PREPROCESS, "gate": asking(floors=[floor])}
    content: dict[str, Any] = {"lines": [LINE], "shards": [0], LINE: line}
    content["tasks"] = listed_tasks(content)
    write_text(Path("params.yaml"), yaml.safe_dump(json.loads(json.dumps(content))))
    check_file()
    _data(project)
    return public / WEIGHTS


def _data(project: Path) -> None:
    inputs = tiny_line(project)
    data, curated = Path("data") / LINE, inputs.curated
    curated["same_scan"] = ""
    curated.loc[curated["patient"] == "p11", "role"] = "pretrain"
    training = curated[curated["role"] == "pretrain"]
    training = training.assign(sha256=[sha256_file(Path(path)) for path in training["volume"]])
    write_table(data / "curate" / "training.parquet", training[["series", "sha256"]])
    for series, path in zip(training["series"], training["volume"], strict=True):
        stored = stored_volume(data / "preprocess", series, 1)
        stored.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, stored)
    write_table(data / "curate" / "curated.parquet", curated)
    write_table(data / "curate" / "annotations.parquet", inputs.annotations)
    accepted = curated["role"].value_counts().to_dict()
    funnel = {"in": len(curated), "accepted": len(curated), "not_ct": 0, "rejected": {}, "series": []}
    write_json(data / "curate" / "funnel.json", {**funnel, "accepted_by_role": accepted})
    write_json(data / "curate" / "profile.json", {"series": len(training)})
    cohort = curated[["series"]].assign(collection="phantom", licence="Apache-2.0", doi="")
    write_table(data / "cohort" / "cohort.parquet", cohort)
    attribution = cohort[["collection", "licence", "doi"]].drop_duplicates().assign(citation="")
    write_table(data / "cohort" / "attribution.parquet", attribution)
    write_table(data / "cohort" / "labelled.parquet", joined([]))
    write_json(data / "cohort" / "labelled.json", {})
    write_json(data / "curate" / "labels.json", {})
    receipt = pd.DataFrame({"series": curated["series"], "manufacturer": "SIEMENS"})
    write_table(data / "acquire" / "0" / "receipt.parquet", receipt)
    write_json(Path("infra/champions") / f"{LINE}.json", {"champion": None})
    write_text(Path("infra/pins/pretrain.txt"), "torch\n")


def release() -> Path:
    """Every stage from pretraining on, in the graph's order; returns the release's folder."""
    pretrain(LINE)
    for stage in (cases, untrained, features):
        stage.run(LINE)
    for name in TASKS:
        task.run(LINE, name)
    for last in (evaluate, gate, rival, champion):
        last.run(LINE)
    make_bundle(LINE)
    return Path("releases") / LINE


def test_published_weights_become_a_release_with_heads_that_is_served(adopting: Path, tmp_path: Path) -> None:
    assert unknown_roots(LINE) == []
    folder = release()
    assert (folder / WEIGHTS).read_bytes() == adopting.read_bytes()
    manifest = verify_bundle(folder)
    digest = sha256_file(adopting)
    assert manifest.inputs["start"] == manifest.files[WEIGHTS] == digest
    told = read_json(folder / "start.json")
    assert (told["kind"], told["file"], told["licence"], told["steps"]) == ("file", WEIGHTS, "CC-BY-4.0", 0)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "**The weights were made elsewhere, and are unchanged**" in card
    assert f"| Weights | file {WEIGHTS} |\n| SHA-256 | `{digest}` |\n| Licence | CC-BY-4.0 |\n" in card
    assert "SPL, 3.0 x 1.0 x 1.0 mm, 8 x 16 x 16 voxels, windows (centre, width) in HU [512.0, 3072.0] |" in card
    figures = read_json(folder / "metrics.json")["tasks"]
    assert 0.6 <= figures["organs"]["linear_auc"]["value"] <= 1
    assert read_json(folder / "decision.json")["verdict"] == "pass"

    bundle = open_release(folder)
    scan = StoredVolume(Path("volumes/s000.b2nd")).read()
    ras = nib.as_closest_canonical(nib.Nifti1Image(scan.hu, scan.affine))
    ras.header.set_xyzt_units("mm")
    nib.save(ras, tmp_path / "scan.nii.gz")
    theirs = Embedder.load(folder).encoder.state_dict()
    assert all(np.array_equal(theirs[name], value) for name, value in tiny_embedder().encoder.state_dict().items())
    assert np.isfinite(embed_file(tmp_path / "scan.nii.gz", bundle).embedding).all()
    point = tuple(float(mm) for mm in scan.affine[:3, :3] @ np.array([11, 18, 20]) + scan.affine[:3, 3])
    answer = classify_file(tmp_path / "scan.nii.gz", bundle, (point[0], point[1], point[2]))["answers"]["organs"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["answer"] in answer["probabilities"]


@pytest.mark.slow
def test_a_release_from_weights_is_the_same_again(adopting: Path) -> None:
    first = verify_bundle(release())
    again = verify_bundle(release())
    assert again == first


REPOSITORY = "somebody/ct_encoder"


@pytest.mark.slow
def test_weights_of_the_hub_become_a_release_by_one_command_and_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_stage(PretrainConfig, LINE, "pretrain", ROOT / "params.yaml")
    tensors = build_encoder(shipped.encoder, shipped.input, 5).state_dict()
    plain = {name: value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(plain, tmp_path / "w", {"format": "pt"})  # as the hub's files are
    content, digest = (tmp_path / "w").read_bytes(), sha256_file(tmp_path / "w")
    start = {"kind": "hub", "repository": REPOSITORY, "revision": "main", "file": "model.safetensors"}

    def adopt(parameters: dict[str, Any]) -> None:
        one_shard(parameters)
        block = parameters[LINE]["pretrain"]
        block.update(steps=0, start={**start, "sha256": digest, "licence": parameters[LINE]["bundle"]["licence"]})
        of_line = parameters[LINE]
        of_line["tasks"] = {"organs": of_line["tasks"]["organs"]}
        for gates in ("better_than_random", "floors", "champion"):
            of_line["gate"][gates] = [gate for gate in of_line["gate"][gates] if gate["task"] == "organs"]
        parameters["tasks"] = listed_tasks(parameters)

    checkout = Checkout(tmp_path / "checkout", adopt)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with Hub(REPOSITORY, {"model.safetensors": content}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        told = checkout.run("ctfoundry", "params").stdout
        assert f"{LINE}: model.safetensors of hub repository {REPOSITORY} at main: not here yet" in told
        done = checkout.run("ctfoundry", "release", "--line", LINE, timeout=3000)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert len(hub.asked) == 1
    folder = checkout.folder / "releases" / LINE
    assert (folder / WEIGHTS).read_bytes() == content
    assert verify_bundle(folder).inputs["start"] == digest
    checkout.git("add", "-A")
    checkout.git("commit", "-q", "-m", "adopted")
    verified = checkout.run("ctfoundry", "verify", "--line", LINE, timeout=3000)  # the hub is gone: its cache is not
    assert verified.returncode == 0, verified.stdout[-3000:] + verified.stderr[-3000:]
    checkout.edit(lambda parameters: parameters[LINE]["pretrain"].update(steps=3))
    further = checkout.run("dvc", "repro", f"pretrain@{LINE}")
    assert further.returncode == 0, further.stdout[-3000:] + further.stderr[-3000:]
    history = pd.read_csv(checkout.folder / "data" / LINE / "pretrain" / "history.csv")
    assert history["step"].tolist() == [1, 2, 3]
    trained = (checkout.folder / "data" / LINE / "pretrain" / "encoder" / WEIGHTS).read_bytes()
    assert trained != content, "by two workers of Ray"
