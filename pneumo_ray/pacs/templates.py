"""Many objects of one structure: highdicom makes the first, and the others are filled into what it made.

Most elements of an object are the same in all objects of a job, and highdicom takes several times as long to make them as it
takes to change the others. pydicom leaves what it does not look at as the bytes of the file and writes them as they are.
"""

from collections.abc import Callable
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset

from pneumo_ray.pacs.objects import file_bytes


class Templates:
    """Objects that were made, by their structure; not for several threads."""

    def __init__(self, limit: int = 64) -> None:
        """Begin without any.

        Args:
            limit: of the structures that are kept, those used last.
        """
        self._limit = limit
        self._made: dict[object, Dataset] = {}

    def file(self, structure: object, make: Callable[[], Dataset], fill: Callable[[Dataset], None]) -> bytes:
        """Return the file of an object.

        Args:
            structure: what decides which elements it has.
            make: makes it.
            fill: changes an object of the same structure to it.
        """
        template = self._made.pop(structure, None)
        if template is None:
            content = file_bytes(make())
            template = dcmread(BytesIO(content))
        else:
            fill(template)
            content = file_bytes(template)
        self._made[structure] = template
        while len(self._made) > self._limit:
            del self._made[next(iter(self._made))]
        return content
