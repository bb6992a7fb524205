"""The bytes of one frame of encapsulated pixel data (PS3.5 A.4), found without belief in the offset table.

Offset tables are written wrongly, left out altogether, or given one entry a fragment. The first bytes of a codestream
mark where a frame begins, and none of those bytes can occur where a fragment goes on.
"""

from pneumo_ray.images.decode_errors import CorruptImageError, NoPixelsError, TruncatedImageError

ITEM = b"\xfe\xff\x00\xe0"
"""Tag of an item, with which encapsulated pixel data begins."""

_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
"""Of a JPEG or JPEG-LS, a JPEG 2000, and a JPEG 2000 in a JP2 file."""

_FIRST_SEGMENT = (64).to_bytes(4, "little")
"""Where the first segment of an RLE frame lies: behind a header of 64 bytes (PS3.5 G.5)."""


def frame_of(pixel_data: bytes, frame: int, num_frames: int) -> bytes:
    """Return the codestream of one frame.

    Args:
        pixel_data: value of the element, from its first item on.
        frame: counted from 0.
        num_frames: by the header.

    Raises:
        CorruptImageError: if the fragments cannot be told apart into so many frames.
        NoPixelsError: if there is no fragment, or fewer frames than the header says.
        TruncatedImageError: if the last fragment is cut.
    """
    items = _items(pixel_data)
    offsets: list[int] = []
    if items and not _is_start(pixel_data, items[0]):
        table = pixel_data[items[0][0] : items[0][1]]
        offsets = [int.from_bytes(table[k : k + 4], "little") for k in range(0, len(table) // 4 * 4, 4)]
        items = items[1:]
    if not items:
        raise NoPixelsError("the DICOM object holds no pixel data; leave the file out of the archive")
    starts = [number for number, item in enumerate(items) if _is_start(pixel_data, item)]
    if not starts:
        starts = _at_offsets(items, offsets, num_frames)
    if len(starts) < num_frames:
        if len(starts) == 1 and len(items) > 1:
            raise CorruptImageError("the DICOM's fragments cannot be told apart into its frames; export it again")
        raise NoPixelsError(
            f"the DICOM file holds {len(starts)} frame(s) and its header says {num_frames}; export it again"
        )
    ends = [*starts[1:], len(items)]
    return b"".join(pixel_data[start:end] for start, end in items[starts[frame] : ends[frame]])


def _items(pixel_data: bytes) -> list[tuple[int, int]]:
    """Return where the value of each item begins and ends."""
    items, position = [], 0
    while pixel_data[position : position + 4] == ITEM:
        start = position + 8
        position = start + int.from_bytes(pixel_data[position + 4 : start], "little")
        if position > len(pixel_data):
            raise TruncatedImageError("the DICOM file ends before its image is complete; copy it again from its source")
        items.append((start, position))
    return items


def _is_start(pixel_data: bytes, item: tuple[int, int]) -> bool:
    """Whether a fragment begins a frame: by its codestream's marker, or by the header of an RLE frame."""
    head = pixel_data[item[0] : min(item[1], item[0] + 64)]
    is_rle = len(head) == 64 and 1 <= int.from_bytes(head[:4], "little") <= 15 and head[4:8] == _FIRST_SEGMENT
    return is_rle or head.startswith(_STARTS)


def _at_offsets(items: list[tuple[int, int]], offsets: list[int], num_frames: int) -> list[int]:
    """Return the fragments with which frames begin by the offset table, if it is one; else all are one frame."""
    places = {start - items[0][0]: number for number, (start, _) in enumerate(items)}
    starts = [places.get(offset, -1) for offset in offsets]
    is_sound = len(starts) == num_frames and -1 not in starts and starts[0] == 0 and starts == sorted(set(starts))
    return starts if is_sound else [0]
