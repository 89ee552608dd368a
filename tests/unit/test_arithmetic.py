"""Numbers do not depend on what a processor happens to offer: the libraries' kernels are chosen by us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import arithmetic
from components.errors import UserError
from components.settings import ParamsError, reproducible
from flows.verify import MADE_ON, expectation, note_machine

ROOT = Path(__file__).resolve().parents[2]
FLAGS = frozenset({"avx2", "fma"})
KERNELS = """
import numpy, scipy.linalg, threadpoolctl
libraries = threadpoolctl.threadpool_info()
print(*sorted({library["architecture"] for library in libraries if library["internal_api"] == "openblas"}))
"""


def _has(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str], vendor: str = "GenuineIntel") -> None:
    monkeypatch.setattr(arithmetic, "_processor", lambda: (vendor, flags))
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "x86_64")


def _run(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not arithmetic._holds_avx2(), reason="this processor has no AVX2")
@pytest.mark.parametrize("core", ["Nehalem", "Zen"])
def test_one_openblas_kernel_whatever_the_user_has_set(core: str) -> None:
    assert _run("import components\n" + KERNELS, OPENBLAS_CORETYPE=core) == "Haswell"


@pytest.mark.skipif(not arithmetic._holds_avx2(), reason="this processor has no AVX2")
def test_portable_holds_torch_to_avx2_too(tmp_path: Path) -> None:
    code = "import components, torch; print(torch.backends.cpu.get_cpu_capability())"
    assert _run(code, CTFOUNDRY_REPRODUCIBLE="portable", ATEN_CPU_CAPABILITY="default") == "AVX2"
    assert _run(code, CTFOUNDRY_REPRODUCIBLE="machine", ATEN_CPU_CAPABILITY="default") == "DEFAULT"


@pytest.mark.skipif(not arithmetic._holds_avx2(), reason="this processor has no AVX2")
def test_a_command_begins_again_in_the_mode_of_its_line() -> None:
    code = """
import os, sys
from components import arithmetic
if "again" in os.environ:
    print(os.environ["MKL_CBWR"], *sys.argv[1:])
else:
    os.environ["again"] = "1"
    arithmetic.enter("portable")
"""
    assert _run(code) == "COMPATIBLE"


def test_what_is_beyond_avx2_is_disabled_by_name_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    _has(monkeypatch, FLAGS)
    assert "OPENCV_CPU_DISABLE" not in arithmetic.variables("portable")
    _has(monkeypatch, FLAGS | {"avx512f", "avx512dq"})
    assert arithmetic.variables("portable")["OPENCV_CPU_DISABLE"] == "AVX512F,AVX512-SKX"
    assert arithmetic.variables("machine") == {"OPENBLAS_CORETYPE": "Haswell"}


def test_without_avx2_nothing_is_pinned_and_portable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _has(monkeypatch, frozenset({"sse4_2"}))
    assert arithmetic.variables("machine") == {}
    monkeypatch.delenv(arithmetic.VARIABLE, raising=False)
    with pytest.raises(UserError, match="needs x86-64 with AVX2 and FMA"):
        arithmetic.enter("portable")


def test_the_kind_of_a_processor_names_vendor_and_widest_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    _has(monkeypatch, FLAGS | {"avx512f", "avx512_bf16"}, "AuthenticAMD")
    assert arithmetic.kind() == "x86_64 AuthenticAMD avx512_bf16"


def test_a_line_says_on_which_machines_it_is_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"

    def write(mode: object, precision: str = "float32", device: str = "auto") -> None:
        block = {"reproducible": mode, "pretrain": {"precision": precision}, "evaluate": {"device": device}}
        path.write_text(yaml.safe_dump({"wholebody": block}))

    write("portable")
    assert reproducible("wholebody", path) == "portable"
    write("machine", "bfloat16")
    assert reproducible("wholebody", path) == "machine"
    write("portable", "bfloat16")
    with pytest.raises(ParamsError, match="'bfloat16' is not allowed with reproducible: portable"):
        reproducible("wholebody", path)
    write("portable", device="cuda")
    with pytest.raises(ParamsError, match=r"evaluate.device: 'cuda' is not allowed with reproducible: portable"):
        reproducible("wholebody", path)
    write("everywhere")
    with pytest.raises(ParamsError, match=r"wholebody.reproducible: 'everywhere' is not allowed: machine .* portable"):
        reproducible("wholebody", path)


def test_a_release_says_where_it_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _has(monkeypatch, FLAGS, "AuthenticAMD")

    def line(mode: str) -> None:
        Path("params.yaml").write_text(yaml.safe_dump({"wholebody": {"reproducible": mode}}))

    line("machine")
    assert "does not say on which processor" in expectation("wholebody")
    note_machine("wholebody")
    assert "every output is to be identical" in expectation("wholebody")
    _has(monkeypatch, FLAGS | {"avx512f"})
    said = expectation("wholebody")
    assert "made on machine: x86_64 AuthenticAMD avx2; this is x86_64 GenuineIntel avx512f" in said
    assert "outputs may differ in their last digits" in said
    line("portable")
    note_machine("wholebody")
    noted = MADE_ON.read_bytes()
    _has(monkeypatch, FLAGS, "AuthenticAMD")
    note_machine("wholebody")
    assert MADE_ON.read_bytes() == noted, "a release on another machine leaves no difference"
    assert "every output is to be identical" in expectation("wholebody")
