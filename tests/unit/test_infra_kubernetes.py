"""The manifests: valid, confined, and of ports, paths and settings that the product has."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from pathlib import Path
from unittest.mock import Mock

import kubernetes_validate
import pytest
from prefect.settings import Settings
from prefect.settings.legacy import _get_settings_fields
from prefect.workers.base import BaseJobConfiguration

import serving.__main__ as image_command
from flows.shards.children import COMMIT
from serving.draining import LAST_SECONDS
from serving.limits import VARIABLES, Limits
from serving.routes import ROUTES
from tests.released import ROOT
from tests.unit.kubernetes_objects import (
    BUILT,
    KUBERNETES,
    NO_KUBECTL,
    Objects,
    Pod,
    built,
    bytes_of,
    job,
    kustomize_is_there,
    named,
    pods,
    secrets_used,
    settings_of,
    written,
)  # fmt: skip

CONTAINERFILE = (ROOT / "infra" / "image" / "Containerfile").read_text()
VERSION = "1.37"
CONFINED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}  # of Pod Security's restricted
# KubeRay v1.7, API reference of ray.io/v1: what a RayJob and its cluster may say.
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
HEAD = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKERS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas",
    "scaleStrategy", "suspend", "template",
}  # fmt: skip


def check_all(objects: Objects) -> int:
    """Validate strictly; a RayJob, of which Kubernetes knows nothing, by its pods. Returns how many there were."""
    for one in objects:
        if one["kind"] != "RayJob":
            kubernetes_validate.validate(one, VERSION, strict=True)
    for pod in pods(objects):
        alone = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": pod.labels}, "spec": pod.spec}
        kubernetes_validate.validate(alone, VERSION, strict=True)
    return len(objects)


def service() -> tuple[Pod, dict[str, str]]:
    """The service's pod, and what its container is told."""
    (pod,) = (pod for pod in pods(written()) if pod.owner == "Deployment service")
    return pod, {one["name"]: one.get("value", "") for one in pod.spec["containers"][0]["env"]}


def test_what_is_written_is_valid() -> None:
    assert check_all(written()) > 25


def test_a_misspelt_key_and_a_wrong_type_are_found() -> None:
    for key, value in (("readOnlyRootFileSystem", True), ("runAsUser", "10001")):
        wrong = copy.deepcopy(named(written(), "Deployment", "service"))
        wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"][key] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            check_all([wrong])


@pytest.mark.skipif(not kustomize_is_there(), reason=NO_KUBECTL)
@pytest.mark.parametrize("folder", BUILT)
def test_what_kustomize_builds_is_valid_and_every_image_is_named_by_its_digest(folder: str) -> None:
    objects = built(folder)
    check_all(objects)
    assert {one["metadata"].get("namespace", "ctfoundry") for one in objects} == {"ctfoundry"}
    images = [container["image"] for pod in pods(objects) for container in pod.containers()]
    assert images
    for image in images:
        assert re.fullmatch(r"[a-z0-9./-]+@sha256:[0-9a-f]{64}", image), image
    if folder != "training":
        (worker,) = (pod for pod in pods(objects) if pod.owner == "Deployment worker")
        told = {one["name"]: one.get("value") for one in worker.spec["initContainers"][0]["env"]}
        assert told["JOB_IMAGE"] == worker.spec["containers"][0]["image"]
        claims = {one["metadata"]["name"] for one in objects if one["kind"] == "PersistentVolumeClaim"}
        assert {"dvc-cache", "state"} <= claims
        kinds = [(one["kind"], one["metadata"]["name"]) for one in objects]
        assert ("NetworkPolicy", "to-database") in kinds


def test_the_rayjob_says_what_kuberay_knows() -> None:
    spec = named(written(), "RayJob", "training")["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD
    assert all(set(group) <= WORKERS for group in cluster["workerGroupSpecs"])
    assert cluster["authOptions"]["mode"] == "token"
    assert spec["shutdownAfterJobFinishes"]
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_no_pod_is_root_or_may_become_it() -> None:
    """Pod Security's restricted, and a root that is read-only."""
    found = list(pods(written()))
    assert len(found) == 8
    for pod in found:
        said = pod.spec["securityContext"]
        assert (said["runAsNonRoot"], said["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), pod.owner
        assert said["runAsUser"] > 0, pod.owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec), pod.owner
        assert pod.spec.get("automountServiceAccountToken") is False or pod.owner == "Deployment worker", pod.owner
        assert {kind for one in pod.spec.get("volumes", []) for kind in one if kind != "name"} <= VOLUMES, pod.owner
        for container in pod.containers():
            confined = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["securityContext"] == confined, (pod.owner, container["name"])
            assert "hostPort" not in str(container.get("ports")), pod.owner
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), (pod.owner, container["name"])
            assert "memory" in container["resources"]["limits"], (pod.owner, container["name"])


def test_nothing_listens_to_the_world() -> None:
    objects = written()
    assert {one["spec"].get("type", "ClusterIP") for one in objects if one["kind"] == "Service"} == {"ClusterIP"}
    assert not [one for one in objects if one["kind"] == "Ingress"]
    deny = named(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for one in objects:
        if one["kind"] == "NetworkPolicy":
            assert all("from" in rule for rule in one["spec"].get("ingress", [])), one["metadata"]["name"]


def test_ports_and_user_are_those_of_the_image() -> None:
    pod, _ = service()
    (port,) = pod.spec["containers"][0]["ports"]
    assert port["containerPort"] == image_command.PORT
    assert f"EXPOSE {image_command.PORT}\n" in CONTAINERFILE
    uid = pod.spec["securityContext"]["runAsUser"]
    assert f"USER {uid}:{uid}\n" in CONTAINERFILE
    allowed = named(written(), "NetworkPolicy", "service")["spec"]["ingress"]
    assert [rule["ports"] for rule in allowed] == [[{"port": image_command.PORT}]]
    arguments = image_command._parser().parse_args(pod.spec["containers"][0]["args"])
    assert arguments.port == image_command.PORT


def test_policies_open_the_ports_that_pods_have() -> None:
    objects = written()
    ports = {
        pod.labels["app"]: {
            one["containerPort"] for container in pod.containers() for one in container.get("ports", [])
        }
        for pod in pods(objects)
        if pod.labels["app"] != "training"
    }
    for name in ("service", "prefect", "postgres"):
        for rule in named(objects, "NetworkPolicy", name)["spec"]["ingress"]:
            assert {one["port"] for one in rule["ports"]} <= ports[name], name
    known = {pod.labels["app"] for pod in pods(objects)} | {"exporter"}
    text = "".join(path.read_text() for path in KUBERNETES.rglob("*.yaml"))
    for listed in re.findall(r"key: app, operator: In, values: \[([^]]*)\]", text):
        assert set(listed.split(", ")) <= known, listed


def test_probes_ask_for_paths_that_there_are() -> None:
    pod, _ = service()
    container = pod.spec["containers"][0]
    asked = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert {*asked.values()} <= {route.path for route in ROUTES if route.probe}


def test_it_drains_before_it_ends() -> None:
    pod, told = service()
    container, limits = pod.spec["containers"][0], Limits()
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    probe = container["readinessProbe"]
    assert int(told[VARIABLES["drain_seconds"]]) > probe["periodSeconds"] * probe["failureThreshold"]
    assert pod.spec["terminationGracePeriodSeconds"] >= pause + limits.grace_seconds + 3 * LAST_SECONDS


def test_the_disk_holds_a_body_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pod, told = service()
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
        if name in told:
            monkeypatch.setenv(name, told[name])
    limits = Limits.from_environment()
    needed = (limits.uploads + limits.queue) * limits.body_bytes + limits.at_once * limits.unpacked_bytes
    (scratch,) = (one["emptyDir"]["sizeLimit"] for one in pod.spec["volumes"] if one["name"] == "tmp")
    assert bytes_of(scratch) >= needed
    assert bytes_of(pod.spec["containers"][0]["resources"]["limits"]["ephemeral-storage"]) > bytes_of(scratch)


def test_every_setting_is_one_of_the_product() -> None:
    code = "".join(
        path.read_text() for name in ("components", "flows", "serving") for path in (ROOT / name).rglob("*.py")
    )
    code += CONTAINERFILE
    ours = {name for name in settings_of(written()) if name.startswith("CTFOUNDRY_")}
    assert len(ours) > 6
    for name in ours:
        assert re.search(rf"\b{name}\b", code), name


def test_every_setting_of_prefect_is_one_of_prefect() -> None:
    known = set(_get_settings_fields(Settings))
    core = {name for name in settings_of(written()) if name.startswith("PREFECT_") and "_INTEGRATIONS_" not in name}
    assert len(core) > 6
    assert core <= known


def test_no_password_stands_in_a_manifest_and_the_readme_makes_every_secret() -> None:
    readme = (KUBERNETES / "README.md").read_text()
    made: dict[str, str] = dict(re.findall(r"create secret (?:generic|tls) (\S+)((?:.*\\\n)*.*)", readme))
    used = {one for pod in pods(written()) for one in secrets_used(pod)}
    used.add(
        (named(written(), "RayJob", "training")["spec"]["rayClusterSpec"]["authOptions"]["secretName"], "auth_token")
    )
    assert {name for name, _ in used} == set(made)
    for name, key in used:
        assert key in made[name], (name, key)
    assert not [one for one in written() if one["kind"] == "Secret"]
    worker = next(pod for pod in pods(written()) if pod.owner == "Deployment worker")
    said = {one["name"]: one.get("value") for one in worker.spec["containers"][0]["env"]}
    # Without these two the worker writes the API's password into every Job.
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    assert (f"{said[f'{prefix}_NAME']}", f"{said[f'{prefix}_KEY']}") in used


def test_a_run_finds_the_cache_where_dvc_looks_for_it() -> None:
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    places = [one["mountPath"] for one in container["volumeMounts"]]
    told = {one["name"]: one["value"] for one in container["env"]}
    text = (KUBERNETES / "base" / "dvc.conf").read_text()
    assert told["CTFOUNDRY_STATE"] in places
    assert told["DVC_GLOBAL_CONFIG_DIR"] in places
    for folder in re.findall(r"dir = (\S+)", text):
        assert str(Path(folder).parent) in places


@pytest.mark.skipif(not (ROOT / "prefect.yaml").is_file(), reason="no prefect.yaml: nothing is deployed")
@pytest.mark.skipif(not kustomize_is_there(), reason=NO_KUBECTL)
def test_runs_find_the_pool_and_the_settings_that_deployments_ask_for() -> None:
    text = (ROOT / "prefect.yaml").read_text()
    objects = built("overlays/in-cluster")
    (run,) = pods([job()])
    told = {one["name"] for one in run.spec["containers"][0]["env"]} | set(named(objects, "ConfigMap", "runs")["data"])
    assert set(re.findall(r"\$(CTFOUNDRY_\w+)", text)) <= told | {COMMIT}, "which a release tells its shards"
    (worker,) = (pod for pod in pods(objects) if pod.owner == "Deployment worker")
    pools = set(re.findall(r"pool: (?:&\w+ )?\{name: ([\w-]+)", text))
    every = [container["args"] for container in worker.spec["containers"]]
    assert pools == {arguments[arguments.index("--pool") + 1] for arguments in every}
    (made,) = re.findall(r"for pool in (.*); do", worker.spec["initContainers"][0]["args"][0])
    assert pools == set(made.split())


def test_a_run_that_is_told_more_keeps_what_every_run_is_told() -> None:
    """A shard's run is told its commit, beside the state folder and the rest."""
    template = json.loads((KUBERNETES / "base" / "job-template.json").read_text())
    every = template["variables"]["properties"]["env"]["default"]
    told = BaseJobConfiguration.from_template_and_values(template, {"env": {COMMIT: "1f0c"}}, client=Mock())
    made = asyncio.run(told)
    assert made.env == {**every, COMMIT: "1f0c"}
