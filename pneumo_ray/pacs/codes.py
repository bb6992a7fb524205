"""Coded concepts of the results: those of DICOM and SNOMED CT where there are some, else private ones.

Visual explanations are coded by DCM 130401 to 130404 (PS3.16 CID 217), zones of a lung by CID 6124, the algorithm's family
by CID 7162. Private codes have the scheme `SCHEME`, which every report identifies.
"""

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

SCHEME = "99PNEUMORAY"
SCHEME_NAME = "Codes of pneumo_ray"

EXPLANATION = codes.DCM.VisualExplanation
METHOD = codes.DCM.GradientWeightedClassActivation
PROBABILITY = codes.DCM.Probability
MEAN, SPREAD = codes.SCT.Mean, codes.SCT.StandardDeviation
ARTIFICIAL_INTELLIGENCE = codes.DCM.ArtificialIntelligence
LUNG, CHEST = codes.SCT.Lung, codes.SCT.Chest
RIGHT, LEFT = codes.SCT.Right, codes.SCT.Left
PRESENT, ABSENT, YES, NO = codes.SCT.Present, codes.SCT.Absent, codes.SCT.Yes, codes.SCT.No
NO_UNITS = codes.UCUM.NoUnits
LUNG_ZONES = {
    "upper": codes.SCT.UpperZoneOfLung,
    "middle": codes.SCT.MiddleZoneOfLung,
    "lower": codes.SCT.LowerZoneOfLung,
}
PNEUMONIA = CodedConcept("233604007", "SCT", "Pneumonia")
NORMAL = CodedConcept("17621005", "SCT", "Normal")
RADIOGRAPHY = CodedConcept("399208008", "SCT", "Plain chest X-ray")
LOGIT = CodedConcept("{logit}", "UCUM", "logit")
LOGIT_PER_CELL = CodedConcept("{logit}/{cell}", "UCUM", "logit per cell of the map")
NATS = CodedConcept("{nat}", "UCUM", "nats")


def private(value: str, meaning: str) -> CodedConcept:
    """Return a private concept.

    Args:
        value: at most 16 characters.
        meaning: at most 64.
    """
    return CodedConcept(value, SCHEME, meaning)


INTERVAL_LOW = private("INTERVAL_LOW", "Lower end of the 95 % interval over the passes")
INTERVAL_HIGH = private("INTERVAL_HIGH", "Upper end of the 95 % interval over the passes")
LOGIT_OF = private("LOGIT", "Logit of pneumonia before calibration")
ENTROPY = private("ENTROPY", "Predictive entropy")
EXPECTED_ENTROPY = private("EXPECTED_ENTROPY", "Expected entropy of the passes")
MUTUAL_INFORMATION = private("MUTUAL_INFO", "Mutual information")
THRESHOLD = private("THRESHOLD", "Probability from which pneumonia is called")
LUNG_SHARE = private("LUNG_SHARE", "Share of the evidence in the lungs")
OUTSIDE_SHARE = private("OUTSIDE_SHARE", "Share of the evidence outside the lung box")
PROBABILITY_AT_SITE = private("PROB_SITE", "Probability, recalibrated for the site")
DECISION = private("DECISION", "Decision of the algorithm")
DECISION_AT_SITE = private("DECISION_SITE", "Decision at the threshold of the site")
REFER = private("REFER", "The passes disagree about the decision")
EXPLAINED = private("EXPLAINED", "Class that the visual explanation is about")
PEAK_IN_LUNGS = private("PEAK_IN_LUNGS", "The strongest evidence lies in the lungs")
DOUBTFUL = private("DOUBTFUL", "Doubtful view, or unlike the training images")
TRIAGE = private("TRIAGE", "Triage")
TRIAGE_VALUES = {
    "negative": private("TRIAGE_NEG", "Called negative"),
    "positive": private("TRIAGE_POS", "Called positive"),
    "read": private("TRIAGE_READ", "To be read by a person"),
}
IMAGE_ZONE = {
    "upper": private("UPPER_THIRD", "Upper third of the image"),
    "middle": private("MIDDLE_THIRD", "Middle third of the image"),
    "lower": private("LOWER_THIRD", "Lower third of the image"),
}
