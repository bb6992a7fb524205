"""Facts from the path of a radiograph in the naming of the Kermany data set (doi 10.17632/rscbjbr9sj.2).

`train/PNEUMONIA/person12_bacteria_46.jpeg` is a training radiograph of patient 12 with bacterial pneumonia;
`test/NORMAL/NORMAL2-IM-0588-0001-0002.jpeg` a normal one of patient IM-0588.

The data set does not say whether person 12 of the bacterial files is person 12 of the viral ones, nor whether
IM-0588 is NORMAL2-IM-0588. They are taken to be the same child: if that is wrong some training images are
set aside without need; if the opposite were wrong, the test result would be too good.
"""

import re
from typing import NamedTuple

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
CLASS_FOLDERS = {"normal": 0, "pneumonia": 1}

_IMAGE = r"\.(?:jpe?g|jpe|jfif|pjpeg|pjp|png|tiff?|webp)(?:\.gz)?$"
_PNEUMONIA = re.compile(rf"person(\d+)_(bacteria|virus)_\d+.*{_IMAGE}", re.IGNORECASE)
# JPEG and PNG only: viewers export DICOM files as IM-0001-0001.dcm, which does not identify the patient.
_NORMAL = re.compile(rf"(?:NORMAL\d*-)?IM-(\d+)-\d+.*{_IMAGE}", re.IGNORECASE)


class PathFacts(NamedTuple):
    """Facts from a path; None where it contains none."""

    label: int | None
    subtype: str | None
    patient_id: str | None
    split: str | None


def read_path(path: str) -> PathFacts:
    """Read label, subtype, patient and split from a path with forward slashes.

    Folders decide the label and the split; the file name the subtype and the patient. A file name alone
    gives the label too, where it follows the convention of the data set.
    """
    *folders, name = path.split("/")
    folders = [folder.strip().lower() for folder in folders]
    # The innermost matching folder is used: the archive itself may be below a folder called `train`.
    split = next((SPLIT_FOLDERS[f] for f in reversed(folders) if f in SPLIT_FOLDERS), None)
    label = next((CLASS_FOLDERS[f] for f in reversed(folders) if f in CLASS_FOLDERS), None)
    if match := _PNEUMONIA.match(name):
        subtype = match[2].lower() if label != 0 else "normal"
        return PathFacts(1 if label is None else label, subtype, f"person{int(match[1])}", split)
    if match := _NORMAL.match(name):
        label = 0 if label is None else label
        return PathFacts(label, "normal" if label == 0 else None, f"IM-{match[1]}", split)
    return PathFacts(label, "normal" if label == 0 else None, None, split)
