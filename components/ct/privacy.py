"""What in a DICOM header names a person, and which private elements are known to be harmless.

A site's export may be de-identified badly or not at all. Acquisition measures; the suite *headers* judges. Values never
leave this module: tables get keywords and counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydicom.datadict import tag_for_keyword

# Attributes of the Basic Application Level Confidentiality Profile (PS3.15 table E.1-1) that name the patient, persons
# round the patient or the institution, or are numbers by which its systems find the patient. Left out: PatientID, which
# must be something and becomes a pseudonym here; dates other than birth, ages, sizes and descriptions, which narrow a
# person down but name nobody; free text, which a list of tags cannot judge.
DIRECT_IDENTIFIERS = (
    "AccessionNumber", "AdmissionID", "ConsultingPhysicianName", "ContentCreatorName", "DistributionAddress",
    "DistributionName", "FillerOrderNumberImagingServiceRequest", "HumanPerformerName", "HumanPerformerOrganization",
    "InstitutionAddress", "InstitutionName", "InstitutionalDepartmentName", "InsurancePlanIdentification",
    "InterpretationAuthor", "InterpretationRecorder", "InterpretationTranscriber", "IssuerOfAdmissionID",
    "IssuerOfPatientID", "MedicalRecordLocator", "NameOfPhysiciansReadingStudy",
    "NamesOfIntendedRecipientsOfResults", "OperatorsName", "OrderCallbackPhoneNumber", "OrderEnteredBy",
    "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames", "PatientAddress", "PatientBirthDate",
    "PatientBirthName", "PatientBirthTime", "PatientInstitutionResidence", "PatientMotherBirthName", "PatientName",
    "PatientTelecomInformation", "PatientTelephoneNumbers", "PerformingPhysicianName", "PersonAddress",
    "PersonIdentificationCodeSequence", "PersonName", "PersonTelephoneNumbers", "PersonTelecomInformation",
    "PhysicianApprovingInterpretation", "PhysiciansOfRecord", "PlacerOrderNumberImagingServiceRequest",
    "ReferringPhysicianAddress", "ReferringPhysicianName", "ReferringPhysicianTelephoneNumbers",
    "RequestedProcedureID", "RequestingPhysician", "ResponsibleOrganization", "ResponsiblePerson", "ReviewerName",
    "ScheduledPerformingPhysicianName", "ServiceEpisodeID", "VerifyingObserverName", "VerifyingOrganization",
)  # fmt: skip
IDENTIFYING: Mapping[int, str] = {tag: k for k in DIRECT_IDENTIFIERS if (tag := tag_for_keyword(k)) is not None}
ITEMS = b"items"  # stands for the value of a sequence that is not empty

# Words that de-identification software writes where a value was, and words that may stand beside them.
DUMMIES = frozenset({
    "ANON", "ANONYM", "ANONYMOUS", "ANONYMISED", "ANONYMIZED", "BLANK", "CLEARED", "DEIDENTIFIED", "DELETED", "DUMMY",
    "EMPTY", "HIDDEN", "MASKED", "NA", "NIL", "NOID", "NONAME", "NONE", "NOTAPPLICABLE", "NOTAVAILABLE", "NULL",
    "PHANTOM", "PSEUDONYMISED", "PSEUDONYMIZED", "REDACTED", "REMOVED", "UNDEFINED", "UNKNOWN", "UNSPECIFIED",
})  # fmt: skip
BESIDE = frozenset({
    "BY", "CTFOUNDRY", "CTP", "DEPARTMENT", "HOSPITAL", "ID", "INSTITUTION", "NAME", "PATIENT", "PHYSICIAN", "SUBJECT",
    "VALUE",
})  # fmt: skip
NO_BIRTH_DATES = frozenset({"00010101", "18000101", "19000101"})
_TOKEN = re.compile(r"[^\W_]+")
_MASK = re.compile(r"(?:X+|0+)$")

# PS3.15 table E.3.10-1: (group, creator) to elements within the creator's block. Its sequences are left out: what is in
# them is not looked at here, and none belongs to CT.
_SAFE: dict[tuple[int, str], tuple[int, ...]] = {
    (0x7053, "Philips PET Private Group"): (0x00, 0x09),
    (0x00E1, "ELSCINT1"): (0x21, 0x50),
    (0x01E1, "ELSCINT1"): (0x26,),
    (0x01F1, "ELSCINT1"): (0x01, 0x07, 0x26, 0x27),
    (0x0019, "GEMS_ACQU_01"): (0x23, 0x24, 0x27, 0x9E),
    (0x0025, "GEMS_SERS_01"): (0x07,),
    (0x0043, "GEMS_PARM_01"): (0x27, 0x39, 0x6F),
    (0x0045, "GEMS_HELIOS_01"): (0x01, 0x02),
    (0x0903, "GEIIS PACS"): (0x10, 0x11, 0x12),
    (0x2001, "Philips Imaging DD 001"): (0x03, 0x04),
    (0x2005, "Philips MR Imaging DD 001"): (0x0D, 0x0E),
    (0x0019, "SIEMENS MR HEADER"): (0x0C, 0x0D, 0x0E, 0x27),
    (0x7E01, "HOLOGIC, Inc."): (0x01, 0x02, 0x12),
    (0x0099, "NQHeader"): (0x01, 0x02, 0x04, 0x05, 0x10, 0x20, 0x21),
    (0x0199, "NQLeft"): tuple(range(0x01, 0x17)),
    (0x0299, "NQRight"): tuple(range(0x01, 0x17)),
    (0x0119, "SIEMENS Ultrasound SC2000"): (0x00, 0x01, *range(0x04, 0x0A), *range(0x10, 0x14), 0x21),
    (0x0129, "SIEMENS Ultrasound SC2000"): (0x02, 0x03, 0x04, 0x05, 0x07, 0x08, 0x10, 0x12, 0x21, 0x22, 0x29, 0x30),
    (0x0139, "SIEMENS Ultrasound SC2000"): (0x01,),
    (0x0149, "SIEMENS Ultrasound SC2000"): (0x01, 0x02, 0x03),
    (0x7FD1, "SIEMENS Ultrasound SC2000"): (0x01, 0x09, 0x10, 0x11),
    (0x7FD1, "SIEMENS SYNGO ULTRA-SOUND TOYON DATA STREAMING"): (0x01, 0x09, 0x10, 0x11),
}
SAFE_PRIVATE = frozenset((group, creator, e) for (group, creator), elements in _SAFE.items() for e in elements)


@dataclass
class Findings:
    """What one header holds, gathered element by element, sequences included.

    Attributes:
        identifying: keyword and raw value of every direct identifier that is not empty.
        private: private elements outside the safe list, as ``creator|gggg,xxee``.
    """

    identifying: list[tuple[str, bytes]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)

    def add_private(self, creators: dict[tuple[int, int], str], tag: int, value: bytes) -> None:
        """Note a private element, or the creator of a block (PS3.5 7.8.1). ``creators``: of this level so far."""
        group, number = tag >> 16, tag & 0xFFFF
        if 0x10 <= number <= 0xFF:
            creators[group, number] = value.rstrip(b"\0 ").decode("ascii", "replace")
        elif number and value:  # number 0 is the group's length
            creator = creators.get((group, number >> 8), "")
            if (group, creator, number & 0xFF) not in SAFE_PRIVATE:
                self.private.add(f"{creator}|{group:04x},xx{number & 0xFF:02x}")

    def identifiers(self, patient_id: str, identity_removed: bool) -> tuple[str, ...]:
        """Keywords, sorted, of those that carry a real value."""
        real = {k for k, value in self.identifying if not is_dummy(k, value, patient_id, identity_removed)}
        return tuple(sorted(real))


def is_dummy(keyword: str, value: bytes, patient_id: str, identity_removed: bool) -> bool:
    """Whether a value stands for nothing: empty, a mask, a word such as ANONYMIZED, a birth date that nobody has, or
    the PatientID again where the header states that identity was removed (the PatientID is then a pseudonym)."""
    tokens = _TOKEN.findall(value.decode("latin-1").upper())
    if not tokens:
        return not any(byte > 0x7F for byte in value)  # another alphabet, such as ISO 2022 Kanji
    if identity_removed and tokens == _TOKEN.findall(patient_id.upper()):
        return True
    if keyword == "PatientBirthDate" and tokens[0] in NO_BIRTH_DATES:
        return True
    if all(_MASK.match(token) for token in tokens) or "".join(tokens) in DUMMIES:
        return True
    words = [token.rstrip("0123456789") for token in tokens]  # ANON123, ANONYMOUS^7
    return any(word in DUMMIES for word in words) and all(not w or w in DUMMIES or w in BESIDE for w in words)


def joined(found: Iterable[Iterable[str]]) -> set[str]:
    """Everything that was found in any instance."""
    return {name for names in found for name in names}
