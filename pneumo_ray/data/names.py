"""The one rule on names: which files of an archive are images, which are passed over, and which need a look at their bytes.

It decides alike for files of a folder, objects of a bucket and members of tar and zip files. A name with the
extension of an image counts as one, a name without an extension too, because DICOM exports have none; the extension of
a text, table or video is passed over unopened; the first bytes of any other file decide.
"""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping
from enum import Enum

from pneumo_ray.images.decode import format_of

LOOK_BYTES = 1024
"""Bytes of a file by which its format is recognised: the magic number of DICOM ends at 132, and a gzip header comes before."""

CONTAINER = re.compile(r"\.(?:(zip)|tar|tgz|tbz2|txz|tar\.(?:gz|bz2|xz))$", re.IGNORECASE)
"""Names of tar and zip files that are read in place; group 1 matches for a zip file."""


class Found(Enum):
    """The kind of a name that is not passed over by itself."""

    IMAGE = "image"
    CONTAINER = "container"
    UNSURE = "unsure"


REASONS: Mapping[str, str] = {
    "hidden": "hidden",
    "system": "system files",
    "thumbnail": "thumbnails",
    "other_type": "of other types (.txt, .csv, ...)",
    "not_an_image": "no images by their first bytes",
    "nested_archive": "archives that are not read",
    "not_a_file": "devices or pipes",
    "no_radiograph": "no radiographs by their header",
    "other_header": "of another modality, body part or view than asked for",
}
"""Why something is passed over -> the words for it. A folder that is passed over counts once, unread.

`hidden`: a name with a dot first. `system`: __MACOSX, desktop.ini, DICOMDIR, recycle bins. `thumbnail`: Thumbs.db, @eaDir,
.thumbnails and the like. `other_type`: by its extension, unopened. `nested_archive`: .7z, .rar, .zst, or inside another.
`no_radiograph` and `other_header`: of a PACS, whose server may answer with more than it is asked for.
"""

_IMAGE = {
    *("jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "png", "tif", "tiff", "webp", "bmp", "gif", "jp2", "heic", "heif"),
    *("avif", "dcm", "dicom", "dicm", "dic", "dc3", "ima"),
}
# A real extension is a dot and a few characters with a letter; DICOM files are often named by a UID such as 1.2.840.1.
_EXTENSION = re.compile(r"\.(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{1,12}$")
_OTHER_TYPE = re.compile(
    r"\.(?:txt|text|csv|tsv|json|jsonl|ya?ml|xml|html?|css|js|md|rst|rtf|pdf|docx?|xlsx?|ods|odt|pptx?|parquet|pq|feather|arrow"
    r"|npy|npz|pkl|pickle|h5|hdf5|pth|safetensors|py|ipynb|sh|bat|exe|dll|so|log|ini|cfg|toml|lock|sql|db|sqlite"
    r"|md5|sha1|sha256|sha512|lnk|url|mp3|mp4|avi|mov|mkv|wav)$",
    re.IGNORECASE,
)
_ARCHIVE = re.compile(r"\.(?:7z|rar|zst|tzst|lz|lz4|tlz|cab|iso|tar\.\w+)$", re.IGNORECASE)
_OTHER_NAMES = {"readme", "license", "licence", "makefile", "dockerfile", "changelog"}
_SYSTEM_NAMES = {
    *("__macosx", "desktop.ini", "$recycle.bin", "recycler", "system volume information", "dicomdir"),
    *("#recycle", "@recycle", "#snapshot", "@recently-snapshot", "@tmp"),
}
_THUMBNAIL_NAMES = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "@eadir", ".thumbnails", ".thumbs", ".thumb", ".@__thumb"),
    *("@__thumb", "zbthumbnail.info"),
}


def slashed(name: str) -> str:
    """Return a path with forward slashes between its names, on any system: `\\` separates names too, and `./` is dropped.

    A file of a POSIX folder may have a backslash in its name; it nearly always comes from a zip file of Windows that was
    unpacked badly, and counts as a separator as well, so that the same archive has the same names packed and unpacked.
    """
    if "\\" in name:
        name = name.replace("\\", "/")
    if "//" in name or name.startswith(("./", "/")) or "/./" in name:
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def litter(name: str) -> str | None:
    """Return why one name of a path, a folder's or a file's, is passed over, or None."""
    lower = name.lower()
    if lower in _THUMBNAIL_NAMES:
        return "thumbnail"
    if lower in _SYSTEM_NAMES:
        return "system"
    if name.startswith(".") and name not in (".", ".."):
        return "hidden"
    return None


def judge(name: str) -> Found | str:
    """Return the kind of a file by its own name, the last of its path: a `Found`, or a key of `REASONS`."""
    if name.rpartition(".")[2].lower() in _IMAGE and "." in name:
        return "hidden" if name[0] == "." else Found.IMAGE
    if reason := litter(name):
        return reason
    if CONTAINER.search(name):
        return Found.CONTAINER
    if _OTHER_TYPE.search(name) or name.lower() in _OTHER_NAMES:
        return "other_type"
    if _ARCHIVE.search(name):
        return "nested_archive"
    return Found.UNSURE if _EXTENSION.search(name) else Found.IMAGE


def judge_bytes(head: bytes) -> str | None:
    """Return None if a file that begins with `head`, at most `LOOK_BYTES`, is an image, else a key of `REASONS`."""
    if head.startswith(b"\x1f\x8b"):
        try:
            head = _unpacked(head)
        except zlib.error:
            return "not_an_image"
    if format_of(head) is not None:
        return None
    if (
        head.startswith((b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd"))
        or head[257:262] == b"ustar"
    ):
        return "nested_archive"
    return "not_an_image"


def _unpacked(head: bytes) -> bytes:
    """Return the first bytes of what a gzip file holds, one member behind the other."""
    content = b""
    while head.startswith(b"\x1f\x8b") and len(content) < LOOK_BYTES:
        member = zlib.decompressobj(wbits=31)
        content += member.decompress(head, LOOK_BYTES)
        head = member.unused_data
    return content


def stem(name: str) -> str:
    """Return a file's name without its extension, where it has one (a UID has none); `.gz` around another goes too."""
    if name.lower().endswith(".gz"):
        name = name[:-3]
    return _EXTENSION.sub("", name) or name


def same_extension(path: str) -> str:
    """Return a path in one Unicode form (NFC) and its extension in lower case, for comparing names of two sources."""
    path = unicodedata.normalize("NFC", path)
    match = _EXTENSION.search(path)
    return path[: match.start()] + match[0].lower() if match else path


class PassedOver(Counter[str]):
    """How many files and folders a listing passed over, by the keys of `REASONS`."""

    def sentence(self) -> str:
        """Return one line that says so, or nothing where nothing was passed over."""
        if not self.total():
            return ""
        parts = (f"{self[reason]:,} {meaning}" for reason, meaning in REASONS.items() if self[reason])
        return f"passed over {self.total():,}: {'; '.join(parts)}"


class Sieve:
    """Applies the rule to whole paths, and counts what is passed over: a folder once, with all that it contains."""

    def __init__(self, passed_over: PassedOver) -> None:
        """Begin with no folder seen.

        Args:
            passed_over: is added to.
        """
        self._passed_over = passed_over
        self._folders: dict[str, bool] = {"": False}
        """Folder -> whether it is passed over, itself or one above it."""

    def passes_folder(self, path: str) -> bool:
        """Whether what lies in a folder is listed.

        Args:
            path: from `slashed`.
        """
        if path not in self._folders:
            above, _, name = path.rpartition("/")
            is_out = not self.passes_folder(above)
            if not is_out and (reason := litter(name)):
                is_out = True
                self._passed_over[reason] += 1
            self._folders[path] = is_out
        return not self._folders[path]

    def judge(self, path: str) -> Found | None:
        """Return what is known of a file by its path, None if it is passed over.

        Args:
            path: from `slashed`.
        """
        folder, _, name = path.rpartition("/")
        if not self.passes_folder(folder):
            return None
        found = judge(name)
        if isinstance(found, Found):
            return found
        self._passed_over[found] += 1
        return None

    def passes_bytes(self, head: bytes) -> bool:
        """Whether an unsure file is an image, by its first `LOOK_BYTES`."""
        if reason := judge_bytes(head):
            self._passed_over[reason] += 1
        return reason is None

    def pass_over(self, reason: str) -> None:
        """Count one more."""
        self._passed_over[reason] += 1
