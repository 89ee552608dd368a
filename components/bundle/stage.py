"""Stage ``bundle``: the deterministic release folder of a line that passed its gates."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.bundle.card import CardFacts, model_card
from components.bundle.config import BundleConfig
from components.bundle.inputs import code_hash, data_hashes, parameters_hash, start_hashes
from components.bundle.licences import licence_table
from components.bundle.manifest import Manifest, write_manifest
from components.errors import UserError
from components.files import read_json, replacing, sha256_tree, write_json, write_text
from components.models.heads import HEADS, load_heads
from components.models.segment_head import load_segment_heads
from components.tables import read_table

log = logging.getLogger(__name__)

PINS = "infra/pins"  # the versions that each stage and the service depend on
OF_A_TASK = "head"  # where a task's folder holds its heads
ENCODER_FILES = ("encoder.safetensors", "encoder.json")


@dataclass(frozen=True)
class Sources:
    """Where a bundle's parts lie, relative to the project's root.

    Attributes:
        cohort: ``cohort.parquet``.
        attribution: ``attribution.parquet`` of the cohort.
        receipts: shard to its ``receipt.parquet``.
        curated: ``curated.parquet``.
        funnel: ``funnel.json`` of curation.
        profile: ``profile.json`` of curation; a later release is held beside it.
        encoder: folder with ``encoder.safetensors`` and ``encoder.json``, of the encoder that was evaluated.
        metrics, figures, report: ``metrics.json``, ``figures.csv`` and ``report.html`` of evaluation.
        tasks: folder with what each task found, and the heads of those that are served.
        decision: the gate's ``decision.json``.
        champion: the verdict of the comparison with the champion; of it nothing goes into the bundle.
    """

    cohort: Path
    attribution: Path
    receipts: dict[int, Path]
    curated: Path
    funnel: Path
    profile: Path
    encoder: Path
    metrics: Path
    figures: Path
    report: Path
    tasks: Path
    decision: Path
    champion: Path

    @classmethod
    def of_line(cls, data: Path, shards: tuple[int, ...]) -> Sources:
        """The layout of ``data/<line>``."""
        return cls(
            cohort=data / "cohort" / "cohort.parquet",
            attribution=data / "cohort" / "attribution.parquet",
            receipts={shard: data / "acquire" / str(shard) / "receipt.parquet" for shard in shards},
            curated=data / "curate" / "curated.parquet",
            funnel=data / "curate" / "funnel.json",
            profile=data / "curate" / "profile.json",
            encoder=data / "features" / "encoder",
            metrics=data / "evaluate" / "metrics.json",
            figures=data / "evaluate" / "plots" / "figures.csv",
            report=data / "evaluate" / "report.html",
            tasks=data / "tasks",
            decision=data / "gate" / "decision.json",
            champion=data / "champion" / "verdict.json",
        )

    def missing(self) -> list[Path]:
        """Parts that are not there."""
        files = [
            self.cohort,
            self.attribution,
            *self.receipts.values(),
            self.curated,
            self.funnel,
            self.metrics,
            self.figures,
        ]
        files += [self.profile, self.report, self.decision, self.champion]
        files += [self.encoder / name for name in ENCODER_FILES]
        return [path for path in files if not path.is_file()]


def make_bundle(
    line: str, config: BundleConfig, parameters: dict[str, Any], sources: Sources, folder: Path, root: Path = Path()
) -> Manifest:
    """Write the release folder, whole or not at all.

    Args:
        line: the model line.
        config: its ``bundle`` block.
        parameters: the line's block of ``params.yaml``, as far as outputs depend on it.
        sources: what the bundle is made from.
        folder: ``releases/<line>``; an earlier release there stays untouched until the new one is complete.
        root: the project, for the hashes of code and pinned versions.

    Returns:
        The manifest written into it.

    Raises:
        UserError: a part is missing, a gate failed, or the champion is better: then nothing is written.
    """
    missing = sources.missing()
    if missing:
        raise UserError(f"{missing[0]}: missing; run `dvc repro` so that the earlier stages make it")
    decision = read_json(sources.decision)
    _require_pass(decision)
    if read_json(sources.champion)["verdict"] != "pass":
        raise UserError(f"no release: worse than the champion; see {sources.champion.parent}")
    lock = root / PINS
    if not lock.is_dir():
        raise UserError(f"{PINS}: not found; run from the project's root")
    inputs = {
        "code": code_hash(root),
        "parameters": parameters_hash(parameters),
        "lock": sha256_tree(lock),
        **start_hashes(parameters),
        **data_hashes(sources.cohort, sources.receipts, sources.curated),
    }
    with replacing(folder) as temporary:
        temporary.mkdir()
        _copy_parts(temporary, sources, parameters)
        cohort, curated = read_table(sources.cohort), read_table(sources.curated)
        licences = licence_table(cohort, curated, read_table(sources.attribution))
        heads, segmenters = load_heads(temporary), load_segment_heads(temporary)
        write_text(temporary / "licences.csv", licences.to_csv(index=False, lineterminator="\n"))
        facts = CardFacts(
            line=line,
            config=config,
            parameters=parameters,
            funnel=read_json(sources.funnel),
            metrics=read_json(sources.metrics),
            figures=pd.read_csv(sources.figures),
            decision=decision,
            licences=licences,
            inputs=inputs,
            heads=[head.description for head in heads.values()],
            segmenters=[head.description for head in segmenters.values()],
        )
        write_text(temporary / "MODEL_CARD.md", model_card(facts))
        manifest = write_manifest(temporary, line, config.name, inputs)
    log.info("release %s: %d files, digest %s", folder.name, len(manifest.files), manifest.digest)
    return manifest


def _copy_parts(folder: Path, sources: Sources, parameters: dict[str, Any]) -> None:
    for name in ENCODER_FILES:
        shutil.copyfile(sources.encoder / name, folder / name)
    for heads in sorted(sources.tasks.glob(f"*/{OF_A_TASK}")):
        shutil.copytree(heads, folder / HEADS / heads.parent.name)
    for path in (sources.metrics, sources.figures, sources.decision, sources.report, sources.profile):
        shutil.copyfile(path, folder / path.name)
    write_json(folder / "funnel.json", _without_names(read_json(sources.funnel)))
    if (start := parameters["pretrain"].get("start")) is not None:
        write_json(folder / "start.json", {**start, "steps": parameters["pretrain"]["steps"]})
    # The service preprocesses and judges with the very parameters of training.
    write_json(folder / "preprocess.json", parameters["preprocess"])
    judged = {"headers": parameters["screen"], "volumes": parameters["curate"]}
    write_json(folder / "acceptance.json", {**judged, "mixed_series": parameters["acquire"]["mixed_series"]})


def _without_names(funnel: dict[str, Any]) -> dict[str, Any]:
    """The funnel as it may leave the house: names of a site's files and what was found in them stay here."""
    kept = ("series", "source", "role", "status", "reason")
    return {**funnel, "series": [{key: row[key] for key in kept} for row in funnel["series"]]}


def _require_pass(decision: dict[str, Any]) -> None:
    """Raise UserError naming the failed gates unless the decision's verdict is ``pass``."""
    if decision.get("verdict") == "pass":
        return
    failed = [str(gate["gate"]) for gate in decision.get("gates", []) if gate.get("verdict") == "fail"]
    raise UserError(f"no release: gate failed: {', '.join(failed) or 'no gate is named in decision.json'}")
