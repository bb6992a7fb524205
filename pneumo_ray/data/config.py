"""What a preparation is asked for, and how the classes of a training set can be balanced."""

from dataclasses import dataclass
from typing import Literal, get_args

from pneumo_ray.config import require
from pneumo_ray.dicomweb.query import check_archives
from pneumo_ray.images.isolation import DECODE_SECONDS

Protocol = Literal["official", "paper", "grouped"]
"""Who trains, chooses and measures; see `split.py`."""

Balance = Literal["copies", "sampler", "pos-weight", "none", "paper"]
"""How the classes are balanced.

* `none`: every image once.
* `copies`: the smaller class is filled up with transformed copies until the classes are equal.
* `sampler`: images are drawn with replacement, both classes equally likely.
* `pos-weight`: every image once, and the loss weights pneumonia by normal / pneumonia.
* `paper`: copies, sampler (weights from the counts before copying) and weighted loss together, which over-corrects.
"""

BALANCE_MODES: tuple[Balance, ...] = get_args(Balance)

Consensus = Literal["majority", "mean", "dawid-skene"]
"""How the answers of several readers become one label; see `readers.consensus`."""


@dataclass(frozen=True)
class PrepareConfig:
    """Turn an archive of radiographs into a manifest that training and scoring read."""

    archive: tuple[str, ...]
    """Folders, tar or zip files, DICOM, local or s3://, gs://; layout split/CLASS/file, or anything with --labels. Or a
    PACS: 'dicomweb+https://host/dicom-web?Modality=DX&StudyDate=20260101-20260131'."""
    out: str
    """Folder of the run; manifest.parquet and audit.json are written there."""
    protocol: Protocol = "grouped"
    """Assignment of splits: grouped (patients never cross), official (the archive's folders), paper (random halves)."""
    labels: str | None = None
    """CSV or Parquet table with image_id and any of label, subtype, patient_id, split; other columns are copied."""
    readings: tuple[str, ...] = ()
    """CSV or Parquet files of readers' answers (image_id, reader, label and, where known, confidence, seconds, blinded, at);
    their consensus replaces the label, and readings.parquet is written beside the manifest."""
    consensus: Consensus = "majority"
    """Of several readers: majority (a tie keeps the label that the image has), mean (the share of the answers), or
    dawid-skene (readers who contradict the others count for less)."""
    lungs: str = "found"
    """Find the lungs of every image (found), also by a segmenter of your own (lungs.safetensors of jobs/lungs.py); do not
    (none); or take them from a Parquet table with the columns image_id, mask_png and, where the files were squashed, width
    and height of the originals; images without a mask there are found."""
    cache: bool = False
    """Store every decoded image (64 kB each), so that training does not decode."""
    materialize_copies: bool = False
    """Write transformed copies of the smaller class as files, as the paper did, instead of making them while training."""
    keep_identifiers: bool = False
    """Store patient identifiers of DICOM files unchanged instead of as salted hashes."""
    seed: int = 0
    """Seed of the splits and the copies."""
    decode_seconds: float = DECODE_SECONDS
    """Time limit for decoding one image, in seconds; a slower image is a failed row (`timeout`)."""
    uids: str | None = None
    """Text file that names what is taken of an archive in a PACS, instead of all that its query asks for: one UID in a
    line, of a study, a series or an instance."""

    def __post_init__(self) -> None:
        require(self.decode_seconds > 0, f"decode-seconds must be positive, got {self.decode_seconds}")
        require(bool(self.lungs), "lungs must be none, found, a Parquet table, or a segmenter of jobs/lungs.py")
        check_archives(self.archive, self.uids)
        require(bool(self.archive), "--archive needs at least one folder, tar or zip file, or URI")
