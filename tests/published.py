"""A team: a bare repository, a DVC remote, clones of people with keys of their own, and small published releases."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pandas as pd
import yaml

from components.bundle.manifest import Manifest, write_manifest
from components.ct.keys import patient_key, series_key, uid_key
from components.files import write_json, write_text
from components.tables import write_table

LINE = "head"
ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "cohort": "data/${item}/cohort",
    "curate": "data/${item}/curate",
    "bundle": "releases/${item}",
}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bundle(folder: Path, score: float, start: str | None = None, inputs: dict[str, str] | None = None) -> Manifest:
    """A release folder that verifies; ``score`` makes its weights and figures. What it holds beside is left there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "encoder.safetensors").exists():
        header = json.dumps({"__metadata__": {"score": str(score)}}).encode()
        (folder / "encoder.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        write_json(folder / "encoder.json", {})
    tasks = {"organs": {"linear_auc": score}}
    metrics = {"evaluation_data": "same", "primary": {"organs": "linear_auc"}, "tasks": tasks}
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "profile.json", {"score": score})
    gate = {"gate": "floor organs linear_auc", "figure": score, "bound": 0.5, "verdict": "pass", "detail": ""}
    write_json(folder / "decision.json", {"verdict": "pass", "gates": [gate]})
    rows = [("organs", "encoder", "linear_auc", score, score - 0.1, score + 0.1, 20, 10),
            ("organs", "hu_statistics", "linear_auc", 0.5, 0.4, 0.6, 20, 10)]  # fmt: skip
    columns = ["task", "method", "figure", "value", "low", "high", "n_cases", "n_patients"]
    write_text(folder / "figures.csv", pd.DataFrame(rows, columns=columns).to_csv(index=False))
    funnel = {"in": 3, "accepted": 2, "not_ct": 0, "rejected": {"no_body": 1}, "accepted_by_role": {"pretrain": 2}}
    write_json(folder / "funnel.json", funnel)
    licences = "collection,licence,doi,pretraining_series,pretraining_patients,evaluation_series,citation\n"
    write_text(folder / "licences.csv", f"{licences}nlst,CC-BY-4.0,10.1/x,2,2,0,\n")
    write_text(folder / "MODEL_CARD.md", f"# Card\n\nAUC {score}\n")
    if start is not None:
        write_json(folder / "start.json", {"sha256": start, "steps": 10})
    (folder / "manifest.json").unlink(missing_ok=True)
    made_from = {**(inputs or {"code": "0" * 64}), **({"start": start} if start else {})}
    return write_manifest(folder, LINE, f"ctfoundry-{LINE}", made_from)


def tables(data: Path, patients: dict[str, str]) -> None:
    """``cohort`` and ``curate`` of patients (PatientID to role), a series each, whose UID is ``1.2.<PatientID>``."""
    rows: list[dict[str, Any]] = []
    for patient, role in patients.items():
        key, uid = series_key(f"1.2.{patient}"), uid_key(f"1.2.{patient}")
        rows.append({"series": key, "patient": patient_key(patient), "uid": uid, "collection": "nlst",
                     "licence": "CC-BY-4.0", "doi": "10.1/x", "role": role, "status": "accepted"})  # fmt: skip
    table = pd.DataFrame(rows)
    training = table[table["role"] == "pretrain"][["series"]]
    write_table(data / "cohort" / "cohort.parquet", table.drop(columns="status"))
    write_table(data / "cohort" / "labelled.parquet", pd.DataFrame({"set": [""][:0], "patient": [""][:0]}))
    write_table(data / "curate" / "curated.parquet", table[["series", "patient", "role", "status"]])
    write_table(data / "curate" / "training.parquet", training)


class Team:
    """Everything of a team below one folder."""

    def __init__(self, folder: Path, signed: bool = True, code: tuple[str, ...] = ()) -> None:
        """``code``: folders of this project that are in its repository."""
        self.folder = folder
        self.origin, self.remote = folder / "origin.git", folder / "remote"
        git(folder, "init", "-q", "--bare", "-b", "main", str(self.origin))
        first = self.clone("publisher")
        (first / "infra" / "champions").mkdir(parents=True)
        write_json(first / "infra" / "champions" / f"{LINE}.json", {"champion": None})
        stages = {name: {"foreach": [LINE], "do": {"cmd": "true", "outs": [out]}} for name, out in STAGES.items()}
        (first / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
        (first / "params.yaml").write_text(yaml.safe_dump({"lines": [LINE], LINE: {"pretrain": {"steps": 1}}}))
        (first / ".gitignore").write_text("/releases/\n/data/\n.ctfoundry/\n")
        (first / "infra" / "promotion.yaml").write_text(f"signed: {str(signed).lower()}\n")
        (first / "infra" / "allowed_signers").write_text("# nobody yet\n")
        self.dvc(first, "init", "-q")
        self.dvc(first, "config", "core.autostage", "false")
        self.dvc(first, "remote", "add", "-d", "store", "../remote")
        for name in code:
            shutil.copytree(ROOT / name, first / name, ignore=shutil.ignore_patterns("__pycache__"))
        git(first, "add", "-A")
        git(first, "commit", "-qm", "first")
        git(first, "push", "-q", "origin", "HEAD:main")
        git(first, "branch", "-q", "--set-upstream-to", "origin/main")
        self.publisher = first

    def copied(self, folder: Path) -> Self:
        """The same team at the same point, elsewhere: to make one takes a while."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        team = copy.copy(self)
        team.folder, team.origin, team.remote = folder, folder / "origin.git", folder / "remote"
        team.publisher = folder / "publisher"
        git(team.publisher, "remote", "set-url", "origin", str(team.origin))
        return team

    def clone(self, name: str) -> Path:
        """A clone of somebody who cannot sign."""
        clone = self.folder / name
        git(self.folder, "clone", "-q", str(self.origin), str(clone))
        git(clone, "config", "user.name", name)
        git(clone, "config", "user.email", f"{name}@localhost")
        git(clone, "checkout", "-q", "-B", "main")
        return clone

    def signer(self, name: str, allowed: bool = True) -> Path:
        """A clone of somebody with a key, who may promote, or not."""
        key = self.folder / f"{name}.key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        if allowed:
            git(self.publisher, "pull", "-q", "origin", "main")
            signers = self.publisher / "infra" / "allowed_signers"
            public = key.with_suffix(".key.pub").read_text()
            signers.write_text(signers.read_text() + f'{name}@localhost namespaces="git" {public}')
            git(self.publisher, "commit", "-qam", f"{name} may promote")
            git(self.publisher, "push", "-q", "origin", "HEAD:main")
        clone = self.clone(name)
        git(clone, "config", "gpg.format", "ssh")
        git(clone, "config", "user.signingkey", str(key))
        return clone

    def dvc(self, folder: Path, *words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def publish(
        self, version: str, score: float, patients: dict[str, str] | None = None, *, steps: int = 1, tag: bool = True,
        start: str | None = None, made: Path | None = None, inputs: dict[str, str] | None = None,
    ) -> Manifest:  # fmt: skip
        """Publish a release as the flow does: outputs to the DVC remote, a branch of its own, a version's tag."""
        clone = self.publisher
        git(clone, "checkout", "-q", "-B", f"release/{LINE}/{version}", "origin/main")
        for out in (clone / "releases", clone / "data"):
            shutil.rmtree(out, ignore_errors=True)
        if made is not None:
            shutil.copytree(made, clone / "releases" / LINE)
        manifest = bundle(clone / "releases" / LINE, score, start, inputs)
        tables(clone / "data" / LINE, patients or {"anna": "pretrain", "ben": "pretrain"})
        (clone / "params.yaml").write_text(yaml.safe_dump({"lines": [LINE], LINE: {"pretrain": {"steps": steps}}}))
        self.dvc(clone, "commit", "-q", "--force")
        self.dvc(clone, "push", "-q")
        git(clone, "add", "-A")
        git(clone, "commit", "-qm", f"{LINE}@{version}")
        if tag:
            message = f"{LINE} {version}\n\nbundle {manifest.digest}\ngates pass\n"
            git(clone, "tag", "-a", "-m", message, f"{LINE}@{version}")
        git(clone, "push", "-q", "--tags", "origin", "HEAD")
        git(clone, "checkout", "-q", "-f", "main")
        return manifest

    def champion(self) -> dict[str, Any]:
        """The champion's file on the remote's branch."""
        content = git(self.origin, "show", f"main:infra/champions/{LINE}.json")
        return dict(json.loads(content)["champion"] or {})

    def tags(self) -> list[str]:
        return git(self.origin, "tag", "--list", f"{LINE}#*").split()


def forget_cache(clone: Path) -> None:
    """As on a machine that made none of it."""
    shutil.rmtree(clone / ".dvc" / "cache", ignore_errors=True)
