"""What heads answer for a scan as a structured report: DICOM SR TID 1500 (PS3.16), in the study of the scan.

A group a head: its answer as a coded evaluation, the probability of each class as a measurement, and what must be known
of them (the operating point with its errors, the limits) as parameters of the algorithm. It says that nobody has
verified it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import highdicom as hd
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

import components  # noqa: F401  # which silences what pydicom quotes of a header
from serving.dicom_out import LONG, REFERRED_TO, SCHEME, SHORT, complete, date_as, entropy_of, file_of, made_by

SERIES_NUMBER = 9200


def dicom_sr(
    images: Sequence[pydicom.Dataset],
    answers: Mapping[str, Any],
    model: Mapping[str, str],
    point: tuple[float, float, float] | None = None,
) -> bytes:
    """Write answers as DICOM SR.

    Args:
        images: headers of the scan's images, pixel data not needed.
        answers: part to what its head answers, see :func:`serving.classifying.answer_of`.
        model: ``name`` and ``digest`` of the release.
        point: RAS mm, where one was asked for.

    Returns:
        A DICOM file. It is of the images' study, and carries their patient as they do.

    Raises:
        InputError: an image lacks an identifier.
    """
    images = [complete(image, REFERRED_TO, "JSON") for image in images]
    asked = "" if point is None else f"Asked at {', '.join(f'{mm:g}' for mm in point)} mm (right, anterior, superior)."
    about = entropy_of(images, model, ",".join(sorted(answers)), "SR", asked)
    observer = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[model["digest"], "device"]),
        name=model["name"][:LONG],
        manufacturer_name="ctfoundry",
        model_name=model["name"][:LONG],
        serial_number=model["digest"][:LONG],
    )
    device = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=observer)
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[_group(part, answer, model, about, asked) for part, answer in sorted(answers.items())],
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = hd.sr.Comprehensive3DSR(
        evidence=list(images),
        content=report[0],
        series_number=SERIES_NUMBER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **made_by(model, about, "answers"),
    )
    date_as(made, images[0])
    return file_of(made)


def _group(
    part: str, answer: Mapping[str, Any], model: Mapping[str, str], about: Sequence[str], asked: str
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=generate_uid(entropy_srcs=[*about, part]), identifier=part[:LONG]
        ),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=model["name"], version=model["digest"], parameters=[*filter(None, [asked]), *_told(answer)]
        ),
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(name=_code(f"Answer of {part}"), value=_code(str(answer["answer"])))
        ],
        measurements=[
            hd.sr.Measurement(name=_code(f"Probability of {name}"), value=float(p), unit=codes.UCUM.NoUnits)
            for name, p in answer["probabilities"].items()
        ],
    )


def _told(answer: Mapping[str, Any]) -> Sequence[str]:
    """What a reader must know, a sentence each."""
    point = answer["operating_point"]
    rates = [f"{what} {_rate(point[what])}" for what in ("sensitivity", "specificity")] if point else []
    threshold = [f"Threshold {point['threshold']:.6f}; on test patients {' and '.join(rates)}."] if point else []
    return [*threshold, f"AUC on test patients {_rate(answer['auc'])}.", *answer["limits"]]


def _rate(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _code(meaning: str) -> hd.sr.CodedConcept:
    """A concept of ours: its value must be unique within the scheme, and short."""
    value = meaning if len(meaning) <= SHORT else generate_uid(entropy_srcs=[meaning])[-SHORT:]
    return hd.sr.CodedConcept(value=value, scheme_designator=SCHEME, meaning=meaning[:LONG])
