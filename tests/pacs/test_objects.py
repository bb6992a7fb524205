"""Objects of a result, read back by highdicom, pydicom, dcmtk and dicom3tools: values, places, references, validity."""

import io
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_builders import radiograph, to_bytes
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from highdicom.sr import MeasurementReport
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from pneumo_ray.errors import DecodeError
from pneumo_ray.images.decode import inspect_image
from pneumo_ray.images.dicom import decode_frame, read_dataset
from pneumo_ray.pacs import codes as c
from pneumo_ray.pacs.capture import capture
from pneumo_ray.pacs.maps import Maps, image_frames, map_object, native_frames
from pneumo_ray.pacs.objects import file_bytes
from pneumo_ray.pacs.reports import Reports
from pneumo_ray.pacs.result import NOTICE, Algorithm, Result, Zone
from pneumo_ray.pacs.source import Source, source_of
from pneumo_ray.pacs.sr import numbers, report

ROWS, COLUMNS = 120, 90
PARTS = ("map-native", "map-image", "capture")
ALGORITHM = Algorithm("resnet18", "0.1.0", "a" * 64, "b" * 64, ("passes = 20",), PARTS, datetime(2026, 1, 2, 3, 4, 5))


def native_map(of: Source, about: Result, algorithm: Algorithm) -> Dataset:
    return map_object(of, algorithm, "map-native", native_frames(of, about))


def image_map(of: Source, about: Result, algorithm: Algorithm) -> Dataset:
    return map_object(of, algorithm, "map-image", image_frames(of, about))


def dataset(**elements: object) -> Dataset:
    values = {
        "BitsStored": 12, "StudyInstanceUID": "1.2.826.0.2.1", "SeriesInstanceUID": "1.2.826.0.3.1",
        "SOPInstanceUID": "1.2.826.0.1.1", "StudyDate": "20260105", "StudyTime": "101112", "AccessionNumber": "ACC1",
        "PatientSex": "F", "StudyID": "S1",
    }  # fmt: skip
    pixels = np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS) % 4096
    return read_dataset(to_bytes(radiograph(pixels, **(values | elements))))


def source(**elements: object) -> Source:
    return source_of(dataset(**elements), None)


def zones(rng: np.random.Generator) -> tuple[Zone, ...]:
    names = [f"{side}_{third}" for third in ("upper", "middle", "lower") for side in ("right", "left")]
    return tuple(Zone(name, *map(float, rng.random(2).astype(np.float32))) for name in names)


def result(seed: int = 0, **changes: object) -> Result:
    rng = np.random.default_rng(seed)
    value = [float(x) for x in rng.random(8).astype(np.float32)]
    made = Result(
        prob_mean=value[0], prob_std=value[1], prob_low=value[0] / 2, prob_high=(1 + value[0]) / 2, logit_mean=value[2],
        logit_std=value[3], entropy=value[4], expected_entropy=value[5], mutual_information=value[6], threshold=0.4,
        called=True, refer=False, target_is_pneumonia=True, zones=zones(rng), zones_of_lungs=False, lung_share=value[7],
        outside_share=None, peak_in_lungs=True, doubtful=False, prob_site=None, called_at_site=None, triage=None,
        cam_mean=rng.random((7, 7)).astype(np.float32), cam_std=rng.random((7, 7)).astype(np.float32),
        window=(0.0, 0.0, 1.0, 1.0),
    )  # fmt: skip
    return replace(made, **changes)


def every_object(of: Source, about: Result) -> dict[str, Dataset]:
    panels = np.zeros((60, 80, 3), np.uint8)
    return {
        "sr": report(of, about, ALGORITHM),
        "map-native": native_map(of, about, ALGORITHM),
        "map-image": image_map(of, about, ALGORITHM),
        "capture": capture(of, panels, ALGORITHM),
    }


def read_back(made: Dataset) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file_bytes(made)))


def group_of(made: Dataset):
    content = MeasurementReport.from_sequence([read_back(made)])
    (group,) = content.get_image_measurement_groups()
    return group


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_report_holds_every_number_exactly():
    about = result()
    group = group_of(report(source(), about, ALGORITHM))
    read = {
        (m.name.meaning, m.derivation and m.derivation.meaning): m.value
        for m in group.get_measurements()
        if not m.finding_sites
    }
    assert read == {
        ("Probability", "Mean"): about.prob_mean,
        ("Probability", "Standard Deviation"): about.prob_std,
        ("Lower end of the 95 % interval over the passes", None): about.prob_low,
        ("Upper end of the 95 % interval over the passes", None): about.prob_high,
        ("Probability from which pneumonia is called", None): 0.4,
        ("Mutual information", None): about.mutual_information,
        ("Predictive entropy", None): about.entropy,
        ("Expected entropy of the passes", None): about.expected_entropy,
        ("Share of the evidence in the lungs", None): about.lung_share,
        ("Logit of pneumonia before calibration", "Mean"): about.logit_mean,
        ("Logit of pneumonia before calibration", "Standard Deviation"): about.logit_std,
    }


@pytest.mark.parametrize("of_lungs", [False, True])
def test_zones_are_coded_by_side_and_third(of_lungs):
    about = result(zones_of_lungs=of_lungs)
    group = group_of(report(source(), about, ALGORITHM))
    read = {}
    for measured in group.get_measurements(codes.DCM.GradientWeightedClassActivation):
        (site,) = measured.finding_sites
        third = site.topographical_modifier or site.value
        word = re.match("upper|middle|lower", third.meaning, re.IGNORECASE)[0].lower()
        read[f"{site.laterality.meaning.lower()}_{word}", measured.derivation.meaning] = measured.value
        assert (site.value == codes.SCT.Chest) != of_lungs
    expected = {(zone.name, "Mean"): zone.mean for zone in about.zones}
    assert read == expected | {(zone.name, "Standard Deviation"): zone.std for zone in about.zones}


def test_the_interval_stands_at_the_probability():
    about = result()
    first = next(
        item for item in group_of(report(source(), about, ALGORITHM))[0].ContentSequence if item.ValueType == "NUM"
    )
    ends = [item.value for item in first.ContentSequence if item.ValueType == "NUM"]
    assert ends == [about.prob_high - about.prob_mean, about.prob_mean - about.prob_low]


def test_decisions_are_codes():
    about = result(called=False, refer=True, doubtful=True, triage="read", called_at_site=True, prob_site=0.5)
    found = {
        e.name.value: e.value.meaning
        for e in group_of(report(source(), about, ALGORITHM)).get_qualitative_evaluations()
    }
    assert {name: found[name] for name in ("DECISION", "REFER", "DOUBTFUL", "EXPLAINED", "DECISION_SITE", "TRIAGE")} == {
        "DECISION": "Absent", "REFER": "Yes", "DOUBTFUL": "Yes", "EXPLAINED": "Pneumonia", "DECISION_SITE": "Present",
        "TRIAGE": "To be read by a person",
    }  # fmt: skip


def test_a_report_names_the_algorithm_and_its_explanations():
    of = source()
    made = every_object(of, result())
    content = file_bytes(made["sr"])
    assert b"model_hash = " + b"a" * 64 in content
    assert b"config_hash = " + b"b" * 64 in content
    items = [item for item in group_of(made["sr"])[0].ContentSequence if item.ValueType == "IMAGE"]
    named = {item.ConceptNameCodeSequence[0].CodeValue: set() for item in items}
    for item in items:
        named[item.ConceptNameCodeSequence[0].CodeValue].add(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    assert named["130401"] == {made[part].SOPInstanceUID for part in PARTS}
    assert of.uid in set.union(*named.values())
    evidence = highdicom.sr.ComprehensiveSR.from_dataset(read_back(made["sr"])).get_evidence()
    expected = {(made[part].SeriesInstanceUID, made[part].SOPInstanceUID) for part in PARTS}
    assert {found[1:3] for found in evidence} == expected | {("1.2.826.0.3.1", of.uid)}


def test_filled_objects_are_those_that_highdicom_makes():
    """To the byte: the second and later objects of a structure are filled into the first, in any order."""
    filled, maps = Reports(ALGORITHM), Maps(ALGORITHM)
    for seed, is_known in ((0, True), (1, True), (0, True), (2, False), (1, True)):
        of = source(
            SOPInstanceUID=f"1.2.826.0.1.{seed + 1}", StudyInstanceUID=f"1.2.826.0.2.{seed}", PatientName=f"A{seed}^B",
            PixelSpacing=[0.1 + seed, 0.3], SeriesInstanceUID=f"1.2.826.0.3.{seed}", InstanceNumber=seed + 1,
            **({"PatientComments": "one"} if seed else {}),
        )  # fmt: skip
        about = result(
            seed, called=seed != 1, refer=seed == 1, lung_share=0.25 if is_known else None,
            triage=("negative", "read", None)[seed] if is_known else None, window=(-0.1 * seed, 0, 1, 1),
        )  # fmt: skip
        assert b"".join(filled.file(of, about)) == file_bytes(report(of, about, ALGORITHM))
        assert b"".join(maps.file(of, about, "map-native")) == file_bytes(native_map(of, about, ALGORITHM))
        assert b"".join(maps.file(of, about, "map-image")) == file_bytes(image_map(of, about, ALGORITHM))


def frames_of(made: Dataset) -> np.ndarray:
    """Both frames in logit per cell: stored values times their slopes. (highdicom 0.28 reads no frame of float pixels.)"""
    read = read_back(made)
    highdicom.pm.ParametricMap.from_dataset(read)
    slopes = [f.RealWorldValueMappingSequence[0].RealWorldValueSlope for f in read.PerFrameFunctionalGroupsSequence]
    return read.pixel_array * np.array(slopes)[:, None, None]


def test_the_native_map_holds_the_score_values():
    about = result()
    made = native_map(source(), about, ALGORITHM)
    assert np.array_equal(frames_of(made), np.stack([about.cam_mean, about.cam_std]))
    labels = [f.RealWorldValueMappingSequence[0].LUTLabel for f in made.PerFrameFunctionalGroupsSequence]
    assert labels == ["mean", "std"]
    mapping = made.PerFrameFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "130403"


def test_image_map_is_bilinear_within_half_a_step():
    """A plane is its own bilinear interpolation between the centres of the outermost cells."""
    x, y = np.meshgrid(np.arange(7), np.arange(7))
    plane = (1 + 2 * x + 3 * y).astype(np.float32)
    made = highdicom.pm.ParametricMap.from_dataset(
        read_back(image_map(source(), result(cam_mean=plane, cam_std=plane * 0), ALGORITHM))
    )
    read = made.get_frame(1, apply_real_world_transform=True)
    assert read.shape == (ROWS, COLUMNS)
    across, down = (np.arange(COLUMNS) + 0.5) * 7 / COLUMNS - 0.5, (np.arange(ROWS) + 0.5) * 7 / ROWS - 0.5
    expected = 1 + 2 * across[None] + 3 * down[:, None]
    inner = np.ix_((down >= 0) & (down <= 6), (across >= 0) & (across <= 6))
    assert np.abs(read - expected)[inner].max() <= 0.6 * plane.max() / 65535
    assert made.get_frame(2, apply_real_world_transform=True).max() == 0


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [None, ["L", "F"], ["R", "F"], ["L", "H"], ["R", "H"]])
def test_map_corners_lie_on_matching_image_corners(orientation):
    """A bright corner of the decoded image, and the map's cell there: in the stored image both lie on the same pixels."""
    stored = dataset(**({} if orientation is None else {"PatientOrientation": orientation}))
    marked = np.zeros((ROWS, COLUMNS), np.uint16)
    marked[:20, :20] = 4095
    stored.PixelData = marked.tobytes()
    seen = decode_frame(stored).pixels  # what the network was given
    corner = np.zeros((7, 7), np.float32)
    corner[0 if seen[0].max() else 6, 0 if seen[:, 0].max() else 6] = 1
    of = source_of(stored, None)
    for made in (native_map(of, result(cam_mean=corner), ALGORITHM), image_map(of, result(cam_mean=corner), ALGORITHM)):
        frame = frames_of(made)[0]
        assert np.unravel_index(frame.argmax(), frame.shape) == (0, 0)


@pytest.mark.parametrize("orientation", [["L", "F"], ["R", "H"]])
def test_native_map_cells_lie_over_the_window(orientation):
    """The corner of a map of a window is the window's corner, in millimetres from the image's own corner."""
    of = source(PixelSpacing=[0.2, 0.3], PatientOrientation=orientation)
    made = native_map(of, result(window=(0.1, -0.2, 0.8, 1.1)), ALGORITHM)
    shared = made.SharedFunctionalGroupsSequence[0]
    down, across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    assert (down, across) == pytest.approx((1.3 * ROWS * 0.2 / 7, 0.7 * COLUMNS * 0.3 / 7))
    position = (made.PerFrameFunctionalGroupsSequence[0].get("PlanePositionSequence") or shared.PlanePositionSequence)[
        0
    ]
    x, y, _ = map(float, position.ImagePositionPatient)
    left, top = (0.1, -0.2) if orientation == ["L", "F"] else (0.2, -0.1)
    # Positions are those of the centres of the first pixels.
    assert x - across / 2 + 0.15 == pytest.approx(left * COLUMNS * 0.3)
    assert y - down / 2 + 0.1 == pytest.approx(top * ROWS * 0.2)


def test_image_map_is_zero_outside_the_window():
    made = read_back(image_map(source(), result(window=(0.5, 0.25, 1.5, 0.75)), ALGORITHM))
    mean = np.frombuffer(made.PixelData, np.uint16).reshape(2, ROWS, COLUMNS)[0]
    assert mean[30:90, 45:].min() > 0
    outside = mean.copy()
    outside[30:90, 45:] = 0
    assert not outside.any()


# ---- identity --------------------------------------------------------------------------------------------------------


def test_objects_belong_to_the_study_and_the_patient():
    of = source(PatientName="Müller^Zoë", SpecificCharacterSet="ISO_IR 100")
    for part, made in every_object(of, result()).items():
        read = read_back(made)
        assert str(read.PatientName) == "Müller^Zoë"
        assert (read.StudyInstanceUID, read.AccessionNumber, read.PatientID) == ("1.2.826.0.2.1", "ACC1", "SECRET7"), (
            part
        )
        assert read.SeriesInstanceUID != "1.2.826.0.3.1"
        assert read.SeriesDescription.startswith(NOTICE)
        assert len(read.SeriesDescription) <= 64


@pytest.mark.parametrize(
    "odd",
    [
        {"PatientBirthDate": "00000000"},
        {"PatientSex": "FEMALE"},
        {"StudyTime": "99"},
        {"AccessionNumber": None},
        {"PatientName": None, "PatientID": None, "PatientBirthDate": None},
        {"SpecificCharacterSet": "latin"},
    ],
)
def test_an_odd_header_has_results_all_the_same(odd):
    stored = dataset(**{name: value for name, value in odd.items() if value is not None})
    for name, value in odd.items():
        if value is None:
            del stored[name]
    for made in every_object(source_of(stored, None), result()).values():
        assert read_back(made).StudyInstanceUID == "1.2.826.0.2.1"


def test_the_same_result_is_the_same_file():
    one, two = every_object(source(), result()), every_object(source(), result())
    assert [file_bytes(made) for made in one.values()] == [file_bytes(made) for made in two.values()]
    other = every_object(source(), result())
    uids = {made.SOPInstanceUID for made in other.values()}
    assert len(uids) == 4
    changed = replace(ALGORITHM, config_hash="d" * 64)
    assert native_map(source(), result(), changed).SOPInstanceUID not in uids


def test_a_frame_is_referred_to_by_its_number():
    pixels = np.zeros((3, ROWS, COLUMNS), np.uint16)
    stored = read_dataset(to_bytes(radiograph(pixels, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4")))
    of = source_of(stored, 2)
    made = every_object(of, result())
    assert made["capture"].SourceImageSequence[0].ReferencedFrameNumber == 3
    for part in ("sr", "map-native", "map-image"):
        named = [
            element.value for element in read_back(made[part]).iterall() if element.keyword == "ReferencedFrameNumber"
        ]
        assert named, part
        assert set(named) == {3}, part
    assert made["sr"].SOPInstanceUID != report(source_of(stored, 1), result(), ALGORITHM).SOPInstanceUID


def test_no_result_is_taken_for_a_radiograph():
    for made in every_object(source(), result()).values():
        content = file_bytes(made)
        with pytest.raises(DecodeError):
            inspect_image(content)


# ---- validity --------------------------------------------------------------------------------------------------------

SOURCES = {
    "plain CR": {},
    "empty header": {"PatientName": "", "PatientID": "", "PatientBirthDate": "", "StudyDate": "", "StudyTime": ""},
    "lossy": {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 12.5,
        "LossyImageCompressionMethod": "ISO_10918_1",
    },
    "DX": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "PixelSpacing": [0.15, 0.15]},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_dciodvfy_finds_no_error(kind, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    about = result(prob_site=0.5, called_at_site=True, triage="read", outside_share=0.25, window=(-0.1, 0, 1.1, 1))
    for part, made in every_object(source(**SOURCES[kind]), about).items():
        path = tmp_path / f"{part}.dcm"
        path.write_bytes(file_bytes(made))
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace")
        errors = [line for line in done.stderr.splitlines() + done.stdout.splitlines() if line.startswith("Error")]
        assert errors == [], part


def test_mandatory_elements_are_there_and_no_others():
    """By the tables of modules (PS3.3) that come with highdicom; the content of a report is checked by dciodvfy."""
    modules, elements = get_iod_module_map(), get_module_attribute_map()
    for part, made in every_object(source(), result()).items():
        read = read_back(made)
        of_iod = [m for m in modules[get_sop_class_iod_map()[read.SOPClassUID]] if m["key"] != "sr-document-content"]
        root = [(m, e) for m in of_iod for e in elements[m["key"]] if not e["path"]]
        needed = {e["keyword"] for m, e in root if m["usage"] == "M" and e["type"] in ("1", "2")}
        assert needed - {element.keyword for element in read} == set(), part
        content = {e["keyword"] for e in elements["sr-document-content"] if not e["path"]} if part == "sr" else set()
        assert {element.keyword for element in read} - {e["keyword"] for _, e in root} - content == set(), part


def test_dcmtk_reads_the_report(tmp_path):
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump is not installed (apt-get install dcmtk)")
    path = tmp_path / "sr.dcm"
    path.write_bytes(file_bytes(report(source(), result(), ALGORITHM)))
    done = subprocess.run(["dsrdump", "+Pc", path], capture_output=True, text=True)
    assert done.returncode == 0
    assert not re.search("^[EF]:", done.stderr, re.MULTILINE)
    for words in ("Imaging Measurement Report", NOTICE, "Gradient-weighted class activation", "Visual explanation"):
        assert words in done.stdout
    first = next(numbers(result())).value
    assert any(
        abs(float(text) - first) < 1e-9 for text in re.findall(r'NUM:\([^)]*"Probability"\)="([^"]+)"', done.stdout)
    )


def test_private_codes_fit_the_standard():
    own = [value for value in vars(c).values() if isinstance(value, highdicom.sr.CodedConcept)]
    own += [*c.TRIAGE_VALUES.values(), *c.IMAGE_ZONE.values()]
    assert len(own) > 20
    for concept in own:
        assert len(concept.value) <= 16
        assert len(concept.meaning) <= 64
    assert len(c.SCHEME) <= 16
    private = [concept.value for concept in own if concept.scheme_designator == c.SCHEME]
    assert len(set(private)) == len(private)


def test_dicom_validator_finds_no_error(tmp_path):
    standard = Path.home() / "dicom-validator"
    if not any(standard.glob("*/docbook/part03.xml")):
        pytest.skip(f"the text of the standard is not in {standard}; validate_iods, which loads it, has not run here")
    for part, made in every_object(source(), result()).items():
        (tmp_path / f"{part}.dcm").write_bytes(file_bytes(made))
    done = subprocess.run(["validate_iods", str(tmp_path)], capture_output=True, text=True)
    assert "Errors" not in done.stdout
    assert done.returncode == 0
