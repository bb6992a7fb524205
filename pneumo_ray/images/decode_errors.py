"""Errors of decoding, one class per cause, and the limits that are checked before any pixel is decoded.

`kind` is the name that rows and audits count by. No message quotes the content of a file, because a DICOM header
contains names and dates of birth, and the messages of decoders may quote them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from pneumo_ray.errors import DecodeError

MAX_SAMPLES = 80_000_000
"""Largest image that is decoded, in samples per frame: four times the largest detector plate, 160 MB at 16 bit.

Decoders need several copies. At the limit no format takes more than 1 GB, and a file of a few bytes may claim it.
"""

DEEP_SAMPLES = 8
"""Weight of a sample of more than 16 bits in the limit, because its levels have to be sorted."""

MAX_FRAMES = 1_000
"""Most frames or pages that one file may claim: a header of a few bytes must not become a million rows."""


MAX_JPEG_SCANS = 100
"""Most scans that a progressive JPEG may have (about 10 are usual): each is a pass over all pixels for 100 bytes."""


class EmptyFileError(DecodeError):
    """The file has no bytes."""

    kind = "empty"


class NotAnImageError(DecodeError):
    """The bytes are none of the formats that are read."""

    kind = "not_an_image"


class TruncatedImageError(DecodeError):
    """The file ends before its image is complete."""

    kind = "truncated"


class ImageTooLargeError(DecodeError):
    """The header claims more pixels, frames or metadata than is safe to decode."""

    kind = "too_large"


class UnsupportedSyntaxError(DecodeError):
    """A DICOM transfer syntax or photometric interpretation for which no decoder is installed."""

    kind = "unsupported_syntax"


class NoPixelsError(DecodeError):
    """A DICOM object without an image, or a frame that the file does not have."""

    kind = "no_pixels"


class WrongModalityError(DecodeError):
    """A DICOM image that is not a radiograph."""

    kind = "wrong_modality"


class CorruptImageError(DecodeError):
    """The format is known but the content cannot be decoded."""

    kind = "corrupt"


def check_size(width: int, height: int, samples: int = 1, frames: int = 1) -> None:
    """Refuse an image by the size in its header.

    Args:
        width: columns, in pixels.
        height: rows, in pixels.
        samples: values per pixel; one of more than 16 bits counts as `DEEP_SAMPLES`.
        frames: frames or pages in the file.

    Raises:
        ImageTooLargeError: above `MAX_SAMPLES` samples per frame or `MAX_FRAMES` frames.
    """
    if width * height * samples > MAX_SAMPLES:
        raise ImageTooLargeError(
            f"the header claims {width} x {height} x {samples} values, more than the limit of {MAX_SAMPLES:,} "
            f"({DEEP_SAMPLES} for each of more than 16 bits); scale the image down, or remove the file if it is not a radiograph"
        )
    if frames > MAX_FRAMES:
        raise ImageTooLargeError(
            f"the header claims {frames} frames, more than the limit of {MAX_FRAMES:,}; split the file"
        )


def check_frame(frame: int, frames: int) -> None:
    """Refuse a frame that the file does not have.

    Raises:
        NoPixelsError: if `frame` is not in `range(frames)`.
    """
    if not 0 <= frame < frames:
        raise NoPixelsError(f"there is no frame {frame}: the file has {frames}, counted from 0; correct the manifest")


def check_scans(jpeg: bytes) -> None:
    """Refuse a JPEG by the number of its start-of-scan markers, which cannot occur inside compressed data.

    Raises:
        ImageTooLargeError: above `MAX_JPEG_SCANS`.
    """
    scans = jpeg.count(b"\xff\xda")
    if scans > MAX_JPEG_SCANS:
        raise ImageTooLargeError(
            f"the JPEG has {scans} scans, more than the limit of {MAX_JPEG_SCANS}; save it again as baseline JPEG"
        )


@contextmanager
def named_errors(format_name: str, *, cut_short: bool = False) -> Iterator[None]:
    """Turn any exception of a decoder on hostile bytes into a `DecodeError`; also works as a decorator.

    Args:
        format_name: for the message, for example "JPEG".
        cut_short: the bytes are known to end early, so a failure is a truncation, whatever the decoder reports.

    Raises:
        DecodeError: in place of every other exception. The cause is suppressed, because its text may quote the file.
    """
    try:
        yield
    except DecodeError:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLargeError(f"the {format_name} needs more memory than is safe; scale the image down") from None
    except Exception as error:
        text = str(error).lower()
        if cut_short or "truncated" in text:
            raise TruncatedImageError(
                f"the {format_name} file ends before its image is complete; copy it again from its source"
            ) from None
        # PngImagePlugin's limits for one compressed text or colour profile, and for all texts together
        if "data too large" in text or "too much memory" in text:
            raise ImageTooLargeError(
                f"the {format_name} has too much metadata; save it again without metadata"
            ) from None
        raise CorruptImageError(
            f"the {format_name} file cannot be decoded ({type(error).__name__}); copy it again from its source"
        ) from None
