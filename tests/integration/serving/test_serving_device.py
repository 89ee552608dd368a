"""The device that answers: asked for and not there, or there, with children that wait on it.

No GPU is needed: the program is told that there is one, and that it is the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import torch
from released import ROOT, free_port

from components.confined import Bounds
from serving import worker
from serving.forks import Forks
from tests.served import served

NO_GPU = "CTFOUNDRY_DEVICE cuda: device 'cuda': there is no GPU here; allow device auto or cpu"
AS_A_GPU = """
import components.models.embed, serving.device, serving.program, serving.worker
components.models.embed.device_of = lambda wanted: "cpu"
serving.device.chosen_device = lambda asked: "cuda"
serving.worker.main()
"""


@pytest.fixture
def scan(good: bytes, tmp_path: Path) -> Path:
    (path := tmp_path / "scan.zip").write_bytes(good)
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_gpu_that_is_not_there_is_one_line(bundle: Path, scan: Path, tmp_path: Path, command: str) -> None:
    (folder := tmp_path / "scans").mkdir()
    scan.rename(folder / scan.name)
    of = {"serve": ["--host", "127.0.0.1", "--port", str(free_port())],
          "run": [str(folder), "--output", str(tmp_path / "out")]}  # fmt: skip
    environment = {**os.environ, "CTFOUNDRY_BUNDLE": str(bundle), "CTFOUNDRY_DEVICE": "cuda"}
    done = subprocess.run(
        [sys.executable, "-m", "serving", command, *of[command]],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"ctfoundry: {NO_GPU}\n")


def test_model_and_figures_say_which_device_answers(bundle: Path) -> None:
    with served(bundle, CTFOUNDRY_DEVICE="cpu") as service:
        assert httpx.get(f"{service.url}/model", timeout=30).json()["device"] == "cpu"
        assert service.figures()['ctfoundry_device{device="cpu"}'] == 1


def test_children_that_wait_on_a_device_answer_as_others_do(bundle: Path, scan: Path, tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    request = {"ask": "embed", "paths": {"scan": str(scan)}, "scratch": str(scratch)}

    def asked(command: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        forks = Forks(command, worker.environment(), Bounds())
        model, answers = forks.start(), []

        async def work() -> None:
            for _ in range(3):
                reply = await forks.run(request)
                assert reply.result is not None, reply
                answers.append(reply.result.content)

        try:
            anyio.run(work)
        finally:
            forks.close()
        return model, answers

    told, answers = asked([sys.executable, "-c", AS_A_GPU, str(bundle)])
    model, others = asked(worker.command(bundle))
    assert (told.pop("device"), model.pop("device")) == ("cuda", "cpu")
    assert told == model
    assert answers == others
