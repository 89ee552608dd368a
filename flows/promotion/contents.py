"""What a commit holds: files of Git, and outputs of DVC by its lock file, from this machine's cache or the remote."""

from __future__ import annotations

import io
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from components.bundle.manifest import Manifest, read_manifest
from components.bundle.signature import Verified, is_of, signature_file, verify_release
from components.errors import UserError
from components.files import STATE, read_json
from flows.promotion.tags import Version
from flows.repository import git
from serving.build import BUNDLE, bento_path, bento_tag


class Contents:
    """Files of one commit, read without a checkout.

    Raises (all methods): UserError naming the file that neither the cache nor the remote has.
    """

    def __init__(self, commit: str, name: str, root: Path) -> None:
        """``name``: what the commit is called in messages, such as ``head@v1.2.0``; ``root``: of the repository."""
        self.commit, self.name, self.root = commit, name, root

    @cached_property
    def _files(self) -> Any:
        from dvc.api import DVCFileSystem  # seconds

        return DVCFileSystem(str(self.root), rev=self.commit)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Path of an output to its MD5, by ``dvc.lock``."""
        content: dict[str, Any] = yaml.load(self.text("dvc.lock"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        stages = content.get("stages") or {}
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}

    def text(self, path: str) -> str:
        """A file that Git tracks."""
        if not git("ls-tree", "--name-only", self.commit, path):
            raise UserError(f"{self.name}: commit {self.commit[:12]} has no {path}")
        return git("show", f"{self.commit}:{path}")

    def parameters(self, line: str) -> dict[str, Any]:
        """The line's block of ``params.yaml``; empty where it had none."""
        block = yaml.safe_load(self.text("params.yaml")).get(line)
        return dict(block) if isinstance(block, dict) else {}

    def bytes_of(self, path: str) -> bytes:
        """A file within an output of DVC."""
        try:
            return bytes(self._files.read_bytes(path))
        except Exception as error:  # of DVC, of its storage, of the network: each has its own
            raise self._missing(path, error) from None

    def json(self, path: str) -> Any:
        """A JSON file within an output of DVC."""
        return json.loads(self.bytes_of(path))

    def table(self, path: str) -> pd.DataFrame:
        """A Parquet file within an output of DVC."""
        return pd.read_parquet(io.BytesIO(self.bytes_of(path)))

    def folder(self, path: str, target: Path) -> None:
        """Copy an output of DVC to ``target``, which must not exist."""
        try:
            self._files.get(path, str(target), recursive=True)
        except Exception as error:
            raise self._missing(path, error) from None

    def _missing(self, path: str, error: Exception) -> UserError:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        return UserError(
            f"{path} of {self.name}: neither in this machine's DVC cache nor at the DVC remote ({why}); run `dvc push` "
            "where it was made"
        )


def contents_of(version: Version) -> Contents:
    """The files of a version's commit, in the repository where this process now is."""
    return _contents(version.commit, version.name, Path.cwd())


@lru_cache(maxsize=4)  # opening DVC's view of a commit takes seconds
def _contents(commit: str, name: str, root: Path) -> Contents:
    return Contents(commit, name, root)


def pulled(version: Version, folder: Path) -> Verified:
    """Bring the bundle of a version into ``folder``/<line> and prove that it is the one that the tag names.

    Raises:
        UserError: it is not at hand, does not verify (as ``ctfoundry verify-bundle``), or is another than was judged.
    """
    target = folder / version.line
    contents_of(version).folder(f"releases/{version.line}", target)
    manifest = read_manifest(target)
    _require_judged(version, manifest)
    _carry_signature(target, manifest)
    verified = verify_release(target)
    verdict = read_json(target / "decision.json").get("verdict") if (target / "decision.json").is_file() else None
    if verdict not in (None, "pass"):
        raise UserError(f"{version.name}: the gates' verdict in its bundle is {verdict!r}; allowed: 'pass'")
    return verified


def _require_judged(version: Version, manifest: Manifest) -> None:
    if (manifest.line, manifest.digest) != (version.line, version.digest):
        raise UserError(
            f"{version.name}: names bundle {version.digest[:16]} of line {version.line}, and its commit "
            f"{version.commit[:12]} holds {manifest.digest[:16]} of line {manifest.line}: not what was judged"
        )


def _carry_signature(folder: Path, manifest: Manifest) -> None:
    """A bundle's signature is no output of DVC: it lies beside the present release, in the Bento that was signed, or
    where this machine keeps what it published."""
    bento = bento_path(bento_tag(manifest))
    known = [Path("releases") / manifest.line, *([bento / "src" / BUNDLE] if bento else [])]
    known += [folder / manifest.line for folder in (STATE / "published" / manifest.line).glob("*")]
    for signature in map(signature_file, known):
        if signature.is_file() and is_of(signature, folder):
            folder.with_name(f"{folder.name}.sig").write_bytes(signature.read_bytes())
            return
