"""A secondary capture of the panels (PS3.3 A.8.1): for viewers that show neither reports nor maps."""

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from pneumo_ray.pacs.objects import dated, identity, refill
from pneumo_ray.pacs.result import NOTICE, Algorithm
from pneumo_ray.pacs.source import Source
from pneumo_ray.pacs.templates import Templates
from pneumo_ray.storage import Pieces


def capture(source: Source, panels: NDArray[np.uint8], algorithm: Algorithm) -> Dataset:
    """Return the object.

    Args:
        source: the image.
        panels: uint8 [H, W, 3], RGB, with the notice in it.
        algorithm: what found what they show.
    """
    header = source.header
    made = SCImage(
        panels,
        "RGB",
        8,
        "PATIENT",
        study_instance_uid=source.study,
        patient_id=header.PatientID,
        patient_name=header.PatientName,
        patient_birth_date=header.PatientBirthDate,
        patient_sex=header.PatientSex,
        accession_number=header.AccessionNumber,
        study_id=header.StudyID,
        study_date=header.StudyDate,
        study_time=header.StudyTime,
        referring_physician_name=header.ReferringPhysicianName,
        specific_character_set=header.get("SpecificCharacterSet"),
        patient_orientation=("L", "F"),
        **identity(source, algorithm, "capture"),
    )
    made.copy_patient_and_study_information(header)
    made.Laterality = None
    made.PatientOrientation = None  # four images and words have none
    made.ConversionType = "WSD"
    made.BurnedInAnnotation = "NO"  # no words that identify the patient (PS3.3 C.7.6.1)
    made.RecognizableVisualFeatures = "NO"
    made.ImageComments = NOTICE
    made.LossyImageCompression = header.LossyImageCompression
    made.DerivationDescription = f"{NOTICE}: image, evidence and its uncertainty"
    made.SourceImageSequence = [_reference(source)]
    return dated(made, algorithm)


class Captures:
    """The captures of a job, filled into those that `capture` made (see `templates`)."""

    def __init__(self, algorithm: Algorithm) -> None:
        """Begin without a capture.

        Args:
            algorithm: what found what they show.
        """
        self._algorithm = algorithm
        self._templates = Templates(limit=8)

    def file(self, source: Source, panels: NDArray[np.uint8]) -> Pieces:
        """Return the file of a capture, as that of `capture`."""
        return self._templates.file(
            (panels.shape, source.lossy),
            lambda: capture(source, panels, self._algorithm),
            lambda template: self._fill(template, source),
            panels,
        )

    def _fill(self, template: Dataset, source: Source) -> None:
        refill(template, source, self._algorithm, "capture")
        template.SourceImageSequence = [_reference(source)]


def _reference(source: Source) -> Dataset:
    reference = source.reference()
    reference.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    return reference
