"""A MONAI bundle: ``monai.bundle.run`` gives the vectors of NIfTI volumes."""

from __future__ import annotations

import inspect
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from components.bundle.exports.carried import vectors
from components.bundle.exports.release import Release
from components.files import write_json, write_text
from components.models import pooling
from components.models.embed import Embedder

# Where MONAI's own copy lies; it need not be reached to use the bundle.
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
OURS, THEIRS = "from components.models.pooling import", "from scripts.pooling import"


def write_monai(release: Release, output: Path) -> None:
    """Fill an empty folder. Raises UserError for an encoder that MONAI has not."""
    network = {"_target_": "scripts.vectors.Vectors", "pooling": release.config.pooling, **release.arguments("monai")}
    for folder in ("configs", "models", "scripts", "docs"):
        (output / folder).mkdir()
    dim = Embedder.load(release.folder).dim
    write_json(output / "configs" / "metadata.json", _metadata(release, dim))
    write_json(output / "configs" / "inference.json", _inference(release, network))
    shutil.copyfile(release.weights, output / "models" / "model.safetensors")
    source = inspect.getsource(vectors)
    assert source.count(OURS) == 1
    write_text(output / "scripts" / "__init__.py", "")
    write_text(output / "scripts" / "vectors.py", source.replace(OURS, THEIRS))
    write_text(output / "scripts" / "pooling.py", inspect.getsource(pooling))
    release.carry(output)
    write_text(output / "docs" / "README.md", release.rendered("monai.md.j2"))


def _metadata(release: Release, dim: int) -> dict[str, Any]:
    seen, digest = release.config.input, release.manifest.digest
    channels = {str(n): f"HU window, centre {c:g}, width {w:g}" for n, (c, w) in enumerate(seen.windows)}
    crop = {
        "type": "image", "format": "hounsfield", "num_channels": len(seen.windows), "modality": "CT",
        "spatial_shape": list(seen.size_vox), "dtype": "float32", "value_range": [0, 1], "is_patch_data": True,
        "channel_def": channels,
    }  # fmt: skip
    vector = {
        "type": "feature", "format": "embedding", "num_channels": dim, "spatial_shape": [], "dtype": "float32",
        "value_range": [], "is_patch_data": False, "channel_def": {},
    }  # fmt: skip
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"release {digest}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "safetensors": version("safetensors")},
        "task": "Embedding of CT",
        "description": release.title,
        "authors": release.manifest.name,
        "copyright": f"weights under {release.licence}",
        "data_source": "see docs/README.md and licences.csv",
        "data_type": "nibabel",
        "intended_use": "Research; see MODEL_CARD.md. No medical device.",
        "network_data_format": {"inputs": {"image": crop}, "outputs": {"pred": vector}},
    }


def _inference(release: Release, network: dict[str, Any]) -> dict[str, Any]:
    seen = release.config.input
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": seen.orientation, "labels": None},
        # Of a volume on the release's grid it changes nothing; it is not ctfoundry's resampling.
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(seen.spacing_mm), "mode": "bilinear"},
    ]
    return {
        "imports": ["$import json", "$from pathlib import Path", "$from scripts.vectors import vectors_of_files",
                    "$from safetensors.torch import load_file"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_file": "$@bundle_root + '/embeddings.json'",
        "device": "cpu",
        "windows": [list(window) for window in seen.windows],
        "size": list(seen.size_vox),
        "network_def": network,
        "weights": "$load_file(@bundle_root + '/models/model.safetensors')",
        "network": "$@network_def.to(@device).eval()",
        "load": "$@network.encoder.load_state_dict(@weights)",
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "found": "$vectors_of_files(@network, @preprocessing, @dataset_dir, @windows, @size, @device)",
        "initialize": ["$@load"],
        "run": ["$Path(@output_file).write_text(json.dumps(@found, indent=1) + '\\n')"],
    }  # fmt: skip
