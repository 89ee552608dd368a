"""What the service's answers hold, as JSON Schema (2020-12), with an example of each. The tests hold every real answer
to these, and they allow nothing beside what they name."""

from __future__ import annotations

from typing import Any

from serving.asking import WAYS

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the release, in hex"}
LIMITS: Schema = {"type": "array", "items": TEXT, "description": "what a reader must know, a sentence each"}
PART = "A part of a task: `findings/ich`"


def record(description: str, optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object of just these properties, all of them there but the ``optional`` ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "description": description, "properties": properties, "required": required,
            "additionalProperties": False}  # fmt: skip


def mapping(description: str, values: Schema) -> Schema:
    """An object of any properties, whose values are these."""
    return {"type": "object", "description": description, "additionalProperties": values}


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _three(items: Schema, description: str) -> Schema:
    return {"type": "array", "items": items, "minItems": 3, "maxItems": 3, "description": description}


def _interval(description: str) -> Schema:
    return record(f"{description}, with its 95 % interval", value=NUMBER, low=NUMBER, high=NUMBER)


GRID = record(
    "The array of a volume",
    shape=_three({"type": "integer", "minimum": 1}, "voxels along each axis"),
    spacing_mm=_three({"type": "number", "exclusiveMinimum": 0}, "mm from voxel to voxel along each axis"),
    orientation={"type": "string", "pattern": "^[RLAPSI]{3}$", "description": "where the axes point, such as SPL"},
)
FOUND = record(
    "What was found in the file",
    kind={"enum": ["dicom", "nifti"]},
    series={
        "type": "string",
        "pattern": "^(s[0-9a-f]{16})?$",
        "description": "pseudonym of the series; none for NIfTI",
    },
    instances={"type": "integer", "minimum": 1, "description": "files used"},
    ignored=mapping("Files not used, by reason", COUNT),
    as_sent=ref("Grid"),
    standardised=ref("Grid"),
    body_fraction={**SHARE, "description": "share of the standardised volume that is body"},
    warnings={
        "type": "array",
        "items": TEXT,
        "description": "what training would have rejected, and what is unlike every training series; a line each",
    },
    profile=mapping("Feature of the training set's data profile; the bin that the scan falls into", TEXT),
)
OPERATING_POINT = record(
    "The threshold of the positive class's probability, and what it did on test patients",
    wanted_specificity=SHARE, threshold=NUMBER, sensitivity=_interval("Sensitivity"),
    specificity=_interval("Specificity"),
)  # fmt: skip
SCHEMAS: dict[str, Schema] = {
    "Error": record(
        "A refusal", error={"type": "string", "pattern": "^[^\\r\\n]+$", "description": "one clear line; no patient"}
    ),
    "ModelName": record("The model of an answer", name=TEXT, digest=DIGEST),
    "Grid": GRID,
    "Found": FOUND,
    "Embedding": record(
        "The vector of one scan",
        embedding={"type": "array", "items": NUMBER, "minItems": 1},
        dim={"type": "integer", "minimum": 1, "description": "numbers in the vector"},
        model=ref("ModelName"),
        found=ref("Found"),
    ),
    "OperatingPoint": OPERATING_POINT,
    "Answer": record(
        "What one head answers",
        probabilities=mapping("Calibrated probability by class", SHARE),
        answer={"type": "string", "description": "a class: of two by the threshold, else the likeliest"},
        operating_point={"oneOf": [{"type": "null"}, ref("OperatingPoint")]},
        auc=_interval("Area under the ROC curve on test patients"),
        limits=LIMITS,
    ),
    "Pacs": record(
        "What the service does with its PACS",
        reads={"type": "boolean", "description": "scans may be named by their UIDs"},
        stores={"type": "boolean", "description": "results may be stored"},
    ),
    "Stored": record("Where a result is stored in the PACS", study=TEXT, series=TEXT, instance=TEXT),
    "Classification": record(
        "What every head answers",
        ("stored",),
        answers=mapping(PART, ref("Answer")),
        not_answered=mapping(f"{PART}; why its head gave no answer", TEXT),
        stored=ref("Stored"),
        model=ref("ModelName"),
        found=ref("Found"),
    ),
    "Structure": record(
        "What was found of one structure",
        name=TEXT,
        volume_ml={"type": "number", "minimum": 0},
        dice={"oneOf": [{"type": "null"}, SHARE], "description": "mean over the test scans"},
    ),
    "Segmentation": record(
        "The structures of one scan",
        ("stored",),
        stored=ref("Stored"),
        part={"type": "string", "description": "the head"},
        structures=mapping("By the value in a label map", ref("Structure")),
        limits=LIMITS,
        model=ref("ModelName"),
        found=ref("Found"),
    ),
    "Extreme": record(
        "The highest block of a map, or the lowest",
        value=NUMBER,
        point_mm=_three(NUMBER, "its middle in RAS mm of the scan"),
    ),
    "Saliency": record(
        "What an answer rests on",
        ("stored",),
        stored=ref("Stored"),
        of_class={"type": "string", "description": "whose log odds are explained"},
        part={"type": "string", "description": "the head"},
        way={"enum": list(WAYS)},
        blocks=_three({"type": "integer", "minimum": 1}, "along each axis of what the head sees"),
        log_odds={"type": "number", "description": "of the class against all others, calibrated"},
        probability=SHARE,
        highest=ref("Extreme"),
        lowest=ref("Extreme"),
        limits=LIMITS,
        model=ref("ModelName"),
        found=ref("Found"),
    ),
    "Place": record(
        "A place of the other scan",
        point_mm=_three(NUMBER, "RAS mm of the other scan"),
        similarity={"type": "number", "minimum": -1, "maximum": 1, "description": "mean cosine at and round it"},
    ),
    "Location": record(
        "Where a point of one scan is in another",
        places={"type": "array", "items": ref("Place"), "minItems": 1, "description": "best first"},
        stride_mm=_three({"type": "number", "exclusiveMinimum": 0}, "mm between the places that were compared"),
        limits=LIMITS,
        model=ref("ModelName"),
        found=ref("Found"),
        found_other=ref("Found"),
    ),
    "Case": record(
        "A case of the index",
        case={"type": "string", "description": "pseudonym of the series"},
        patient={"type": "string", "description": "pseudonym"},
        collection=TEXT,
        labels=mapping("What is known of it: names by kind", {"type": "array", "items": TEXT}),
        similarity={
            "type": "number",
            "minimum": -1,
            "maximum": 1,
            "description": "cosine of the vectors",
        },
    ),
    "Index": record("The index that is served", digest=DIGEST, cases=COUNT, patients=COUNT),
    "Retrieval": record(
        "The cases most like one scan, of other patients",
        nearest={"type": "array", "items": ref("Case"), "description": "best first"},
        left_out={**COUNT, "description": "cases of the same patient"},
        index=ref("Index"),
        limits=LIMITS,
        model=ref("ModelName"),
        found=ref("Found"),
    ),
    "Model": record(
        "What is served",
        name=TEXT,
        digest=DIGEST,
        line=TEXT,
        heads=mapping(f"{PART}; what its head sees", {"enum": ["scan", "point"]}),
        classes=mapping(f"{PART}; the classes of its answers", {"type": "array", "items": TEXT}),
        segments=mapping("A head that segments; its structures", {"type": "array", "items": TEXT}),
        sees={"enum": ["crop", "scan"], "description": "what the encoder is shown"},
        index={"oneOf": [{"type": "null"}, ref("Index")]},
        pacs=ref("Pacs"),
        device={"enum": ["cpu", "cuda"], "description": "where the encoder and the decoders compute"},
        inputs=mapping("SHA-256 of what the model was made from: code, parameters, pinned versions, data", TEXT),
    ),
}

_DIGEST = "3f2a" * 16
_MODEL = {"name": "ctfoundry-wholebody", "digest": _DIGEST}
_INDEX = {"digest": "77be" * 16, "cases": 5120, "patients": 3001}
_RATE = {"value": 0.891892, "low": 0.73989, "high": 0.959884}
_FOUND = {
    "kind": "dicom", "series": "s626ee499cccb3e00", "instances": 275, "ignored": {"not_dicom": 1},
    "as_sent": {"shape": [275, 512, 512], "spacing_mm": [1.0, 0.7812, 0.7812], "orientation": "SPL"},
    "standardised": {"shape": [92, 314, 400], "spacing_mm": [3.0, 1.0, 1.0], "orientation": "SPL"},
    "body_fraction": 0.3161, "warnings": [], "profile": {"slice_spacing": "0.9 to 1.1", "vendor": "SIEMENS"},
}  # fmt: skip
EXAMPLES: dict[str, Any] = {
    "Error": {"error": "zip: damaged or cut short: it has no directory at its end; send it again"},
    "Embedding": {"embedding": [0.25, -1.5, 0.75], "dim": 3, "model": _MODEL, "found": _FOUND},
    "Classification": {
        "answers": {
            "findings/ich": {
                "probabilities": {"absent": 0.638724, "present": 0.361276}, "answer": "absent",
                "operating_point": {"wanted_specificity": 0.9, "threshold": 0.673875, "sensitivity": _RATE,
                                    "specificity": _RATE},
                "auc": _RATE, "limits": ["Its AUC is not clearly above that of untrained encoders."],
            }
        },
        "not_answered": {"organs": "sees a point: send point_mm=R,A,S"}, "model": _MODEL, "found": _FOUND,
    },
    "Segmentation": {
        "part": "organs_segmented",
        "structures": {"1": {"name": "liver", "volume_ml": 1480.25, "dice": 0.91}},
        "limits": ["Its Dice is of phantoms."], "model": _MODEL, "found": _FOUND,
    },
    "Saliency": {
        "part": "findings/ich", "of_class": "present", "way": "occlusion", "blocks": [6, 6, 6], "log_odds": 1.25,
        "probability": 0.777300, "highest": {"value": 0.5, "point_mm": [12.5, -30.0, 88.0]},
        "lowest": {"value": -0.125, "point_mm": [-20.0, 4.0, 61.5]}, "limits": ["It is no segmentation."],
        "model": _MODEL, "found": _FOUND,
    },
    "Location": {
        "places": [{"point_mm": [14.0, -27.5, 91.0], "similarity": 0.8125}], "stride_mm": [24.0, 24.0, 24.0],
        "limits": ["A place is found in every scan."], "model": _MODEL, "found": _FOUND, "found_other": _FOUND,
    },
    "Retrieval": {
        "nearest": [{"case": "s0473769d94f83e67", "patient": "p74a8e70d5b6ff1ab", "collection": "nlst",
                     "labels": {"finding": ["emphysema"]}, "similarity": 0.912345}],
        "left_out": 1, "index": _INDEX, "limits": ["Cases are near by the whole scan."], "model": _MODEL,
        "found": _FOUND,
    },
    "Model": {**_MODEL, "line": "wholebody", "heads": {"findings/ich": "scan", "organs": "point"},
              "classes": {"findings/ich": ["absent", "present"], "organs": ["liver", "spleen"]},
              "segments": {"organs_segmented": ["liver", "spleen"]}, "sees": "crop", "index": _INDEX,
              "pacs": {"reads": True, "stores": False}, "device": "cuda",
              "inputs": {"code": "9c1e" * 16}},
}  # fmt: skip
