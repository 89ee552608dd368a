"""Whether a line's source holds something else than its last release was made from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import dvc.api
import httpx
import pandas as pd
import yaml

from components.cohort.config import CohortConfig
from components.errors import UserError
from components.settings import block_of, load_stage
from components.sources.dicomweb import DicomwebSource
from components.sources.kinds import KINDS
from components.sources.roots import root_of
from components.sources.tree import tree_digest
from flows.publish import fetch_versions, newest
from flows.repository import git

INDEX = "idc-index-data"
NEW_INDEX, CHANGED, DRIFTED = "idc.version.released", "source.changed", "ctfoundry.service.drifted"
PROMETHEUS = "CTFOUNDRY_PROMETHEUS"  # its address
# In Prometheus: whether the alarm of infra/monitoring/rules.yml rings at an instance that serves this model.
RINGS = (
    'ALERTS{{alertname="ScansUnlikeTraining",alertstate="firing"}} and on (instance) ctfoundry_model{{name="{model}"}}'
)
ANSWER_SECONDS = 30.0
PIP_SECONDS = 120


@dataclass(frozen=True)
class Change:
    """An event, what it carries (plain values), and a line for people."""

    event: str
    payload: dict[str, Any]
    told: str


def changes(line: str, minimum: int = 1) -> Change | None:
    """What has changed in a line's source since its newest published version, or since the parameters of this checkout
    where there is none; None where nothing has.

    Args:
        line: model line.
        minimum: studies that must have come to a PACS.

    Raises:
        UserError: the source or the package index does not answer.
    """
    fetch_versions(line)
    tag = newest(line)
    config = load_stage(CohortConfig, line, "cohort")
    used = _cohort_block(line, tag) if tag else config.model_dump()
    if config.source == "idc":
        return _of_idc(config.idc.idc_version, used["idc"]["idc_version"])
    if config.source == "dicomweb":
        return _of_pacs(line, config, tag, minimum)
    if KINDS[config.source].folder:
        root = root_of(config.source, line)
        if tree_digest(root) == used["source_digest"]:
            return None
        payload = {"line": line, "source": f"{config.source}:{root}"}
        return Change(CHANGED, payload, f"line {line}: its {config.source} tree has changed")
    return None  # the phantom scanner's are what its parameters say


def drifted(line: str) -> Change | None:
    """Whether the alarm rings that the scans sent to the line's service are unlike those that it was trained on.

    Raises:
        UserError: a Prometheus is named, and does not answer.
    """
    address = os.environ.get(PROMETHEUS)
    if not address:
        return None
    query = {"query": RINGS.format(model=block_of(line, "bundle")["name"])}
    try:
        answer = httpx.get(f"{address.rstrip('/')}/api/v1/query", params=query, timeout=ANSWER_SECONDS)
        rings = answer.raise_for_status().json()["data"]["result"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise UserError(f"{PROMETHEUS} {address!r}: no Prometheus answers: {type(error).__name__}") from None
    features = sorted({ring["metric"]["feature"] for ring in rings})
    if not features:
        return None
    told = f"line {line}: its service is sent other scans than it was trained on: {', '.join(features)}"
    return Change(DRIFTED, {"line": line, "features": features}, told)


def installed() -> int:
    """The version of the Imaging Data Commons that the installed index knows."""
    return int(metadata.version(INDEX).partition(".")[0])


def _of_idc(asked: int | None, used: int | None) -> Change | None:
    """``asked``, ``used``: the versions that the parameters and the last release choose from; None: all there is."""
    released = int(_newest_index().partition(".")[0])
    known = installed() if asked is None or used is None else used
    if released <= known:
        return None
    told = f"version {released} of the Imaging Data Commons is out, the last release chose from {known}"
    if released > installed():
        told += f"; it wants {INDEX} {released}, installed is {metadata.version(INDEX)}: raise its pin first"
    return Change(NEW_INDEX, {"version": released, "installed": installed()}, told)


def _newest_index() -> str:
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", INDEX]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"{INDEX}: the package index did not answer within {PIP_SECONDS} s") from None
    match = re.match(rf"{INDEX} \((\S+)\)", done.stdout)
    if done.returncode != 0 or match is None:
        said = (done.stderr.strip() or done.stdout.strip() or "no answer").splitlines()[-1]
        raise UserError(f"{INDEX}: its newest version is not known: {said[:200]}")
    return match[1]


def _of_pacs(line: str, config: CohortConfig, tag: str | None, minimum: int) -> Change | None:
    there = {listed.study for listed in DicomwebSource(config, line).list_series(frozenset()).series}
    came = len(there - (set(released_cohort(line, tag)["study"]) if tag else set()))
    if came < minimum:
        return None
    payload = {"line": line, "source": "dicomweb", "studies": came}
    return Change(CHANGED, payload, f"line {line}: {came} studies have come to the PACS")


def released_cohort(line: str, tag: str) -> pd.DataFrame:
    """The cohort of a published release; from DVC's cache, or its remote. Raises UserError where neither has it."""
    from dvc.exceptions import DvcException

    try:
        with dvc.api.open(f"data/{line}/cohort/cohort.parquet", rev=tag, mode="rb") as stream:
            return pd.read_parquet(stream)
    except (DvcException, OSError) as error:
        raise UserError(f"{tag}: its cohort is neither in DVC's cache nor in its remote: {error}") from None


def _cohort_block(line: str, tag: str) -> dict[str, Any]:
    block: dict[str, Any] = yaml.safe_load(git("show", f"{tag}:params.yaml"))[line]["cohort"]
    return block
