"""What the service answers."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from client import PATIENT, ct_series, ct_slice, nifti, post, zipped
from conftest import started
from released import ROOT, free_port

from components.bundle.manifest import write_manifest
from components.files import read_json, write_json
from components.models.embed import Embedder
from components.settings import read_yaml
from serving.embedding import embed_file, open_release
from serving.limits import Limits


def test_a_zipped_series_gives_the_offline_vector_and_says_what_was_found(
    url: str, bundle: Path, good: bytes, tmp_path: Path
) -> None:
    answer = post(url, good).json()
    (tmp_path / "anything.bin").write_bytes(good)
    offline = embed_file(tmp_path / "anything.bin", open_release(bundle), Limits())
    np.testing.assert_allclose(answer["embedding"], offline.embedding, atol=1e-5)
    assert answer["dim"] == len(answer["embedding"]) == offline.embedding.size > 0
    assert answer["model"] == {"name": "ctfoundry-wholebody", "digest": open_release(bundle).manifest.digest}
    found = answer["found"]
    assert (found["kind"], found["instances"]) == ("dicom", 26)
    assert found["ignored"] == {"archive_within_archive": 1, "not_dicom": 1}
    assert found["as_sent"] == {"shape": [26, 128, 128], "spacing_mm": [3.0, 2.5, 2.5], "orientation": "SPL"}
    assert found["standardised"]["spacing_mm"] == [3.0, 1.0, 1.0]
    assert found["warnings"] == []
    assert 0.1 < found["body_fraction"] < 1
    assert PATIENT not in str(answer)


def test_the_offline_vector_is_that_of_the_training_code(bundle: Path, tmp_path: Path) -> None:
    from components.ct.dicom import read_series
    from components.ct.standardise import standardise
    from components.preprocess.config import PreprocessConfig
    from components.settings import parse

    paths = []
    for name, content in ct_series().items():
        paths.append(tmp_path / name.replace("/", "-"))
        paths[-1].write_bytes(content)
    config = parse(PreprocessConfig, read_yaml(ROOT / "params.yaml")["wholebody"]["preprocess"], "preprocess")
    trained = Embedder.load(bundle).embed_volume(standardise(read_series(paths), config))
    (tmp_path / "scan.zip").write_bytes(zipped(ct_series()))
    served = embed_file(tmp_path / "scan.zip", open_release(bundle), Limits()).embedding
    np.testing.assert_array_equal(served, trained)


def test_a_release_that_does_not_load_ends_the_service_with_one_line(bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "releases" / "wholebody")
    write_json(other / "preprocess.json", {**read_json(other / "preprocess.json"), "orientaton": "SPL"})
    write_manifest(other, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    server = started(other, tmp_path, free_port())
    try:
        assert server.wait(timeout=120) == 1
    finally:
        server.kill()
    log = (tmp_path / "log").read_text()
    assert log.count("not served: ") == 1, log
    assert f"{other / 'preprocess.json'}: orientaton: unknown key" in log
    assert "params.yaml" not in log
    assert "Traceback" not in log


def test_a_form_with_one_file_is_the_same_as_the_raw_body_whatever_type_it_declares(url: str, good: bytes) -> None:
    raw = post(url, good, **{"content-type": "text/plain"}).json()
    form = httpx.post(f"{url}/embed", files={"scan": ("x.exe", good, "image/png")}, timeout=60).json()
    assert form == raw


@pytest.mark.parametrize("compress", [True, False])
def test_a_nifti_is_embedded(url: str, compress: bool) -> None:
    found = post(url, nifti(compress)).json()["found"]
    assert (found["kind"], found["as_sent"]["orientation"], found["series"]) == ("nifti", "SAR", "")


def test_what_training_would_reject_comes_back_as_a_warning(url: str) -> None:
    tilted = {f"{i:03d}": ct_slice(i, "9.9", ImagePositionPatient=[-160, -160 + i, 3 * i]) for i in range(26)}
    warnings = post(url, zipped(tilted)).json()["found"]["warnings"]
    assert [w.partition(":")[0] for w in warnings] == ["gantry_tilt"]
    assert "found 18.4" in warnings[0]


def test_health_answers_while_a_series_is_processed(url: str, good: bytes) -> None:
    many = zipped({f"{i:04d}": ct_slice(i, "5.5") for i in range(150)})
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.append(post(url, many).status_code))
    sender.start()
    slowest = 0.0
    while sender.is_alive():
        begin = time.monotonic()
        assert httpx.get(f"{url}/healthz", timeout=10).status_code == 200
        slowest = max(slowest, time.monotonic() - begin)
        time.sleep(0.05)
    sender.join()
    assert statuses == [200]
    assert slowest < 2


def test_metrics_count_requests_by_outcome(url: str, good: bytes) -> None:
    assert post(url, good).status_code == 200
    assert post(url, b"no").status_code == 415
    text = httpx.get(f"{url}/metrics", timeout=10).text
    for outcome in ("embedded", "refused_415"):
        assert f'ctfoundry_requests_total{{outcome="{outcome}",route="embed"}}' in text
    for step in ("upload", "wait", "work"):
        assert f'ctfoundry_step_seconds_bucket{{le="300.0",step="{step}"}}' in text
    assert "ctfoundry_model{" in text


def test_the_model_says_what_it_is(url: str, bundle: Path) -> None:
    told = httpx.get(f"{url}/model", timeout=10).json()
    assert told["digest"] == open_release(bundle).manifest.digest


def test_a_real_chest_ct_is_embedded_as_offline(url: str, bundle: Path, ct_root: Path) -> None:
    path = ct_root / "dicom" / "lidc_idri_0314.zip"
    answer = post(url, path.read_bytes()).json()
    offline = embed_file(path, open_release(bundle), Limits())
    np.testing.assert_allclose(answer["embedding"], offline.embedding, atol=1e-5)
    assert answer["found"]["instances"] == 275
    assert answer["found"]["warnings"] == []
