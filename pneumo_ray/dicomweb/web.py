"""HTTP with a DICOMweb server: repeated with back-off, few requests at once, and silent about what is asked for.

urllib3's own retries are not used, because their log lines quote the path of a request, which has a patient's UIDs in it.
"""

import json
import math
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3 import exceptions

from pneumo_ray.console import log
from pneumo_ray.dicomweb.failures import ResourceError, ServerError, UnavailableError, final_error, reason_of, refusal
from pneumo_ray.dicomweb.multipart import BrokenAnswerError
from pneumo_ray.dicomweb.server import Server, authorisation
from pneumo_ray.errors import StorageError

__all__ = ["JSON", "Answer", "Limits", "ResourceError", "ServerError", "UnavailableError", "Web", "web_of"]

JSON = "application/dicom+json"
"""Media type of the answers to a search, and of those to a store."""

_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_PIECE = 1 << 18
_QUIET_SECONDS = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How long, how often and how much is asked for."""

    tries: int = 5
    """Attempts of a request."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled before each further one."""
    longest_wait: float = 8.0
    """Longest wait between two attempts, in seconds, unless the server names a longer one."""
    longest_named_wait: float = 60.0
    """Longest wait that a server may name (Retry-After), in seconds."""
    connect_seconds: float = 10.0
    """Time limit of a connection."""
    silent_seconds: float = 60.0
    """Time limit between two pieces of an answer."""
    answer_seconds: float = 600.0
    """Time limit of a whole answer."""
    at_once: int = 4
    """Requests at once of one process."""
    max_bytes: int = 1 << 29
    """A larger answer is refused."""


@dataclass(frozen=True)
class Answer:
    """What a server answers to a request that it grants."""

    status: int
    content_type: str
    body: bytes

    def json(self) -> Any:
        """Return the value of a JSON body; an empty list where there is none.

        Raises:
            BrokenAnswerError: if it is not JSON.
        """
        if not self.body.strip():
            return []
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise BrokenAnswerError("an answer is not JSON") from error


def _whole(answer: Answer) -> Answer:
    return answer


class Web:
    """Requests to one server. Threads may share it; each process needs its own (see `web_of`)."""

    def __init__(self, server: Server, limits: Limits | None = None) -> None:
        """Prepare for requests; none is made.

        Args:
            server: whom to ask.
            limits: None for those of `Limits`.

        Raises:
            ConfigError: if the credentials in the environment are incomplete.
        """
        self.server = server
        self.limits = limits or Limits()
        self._headers = {} if (value := authorisation()) is None else {"Authorization": value}
        context = ssl.create_default_context()  # trusts what the system does, and SSL_CERT_FILE
        if not server.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            urllib3.disable_warnings(exceptions.InsecureRequestWarning)
        self.unanswered = 0
        """Requests in a row that failed in all tries."""
        self._warned = -math.inf
        self._pool = urllib3.PoolManager(maxsize=self.limits.at_once, block=True, ssl_context=context)

    def get(
        self,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        accept: str = JSON,
        read: Callable[[Answer], T] = _whole,  # type: ignore[assignment]
    ) -> T:
        """Return what a server has at a path.

        Args:
            path: below its service root, from a slash on.
            query: names and values.
            accept: media types that are wanted.
            read: makes of the answer what is returned; where it raises `BrokenAnswerError` the request is repeated.

        Raises:
            ServerError: if the server is not there, refuses the credentials, or does not answer as DICOMweb does.
            ResourceError: if it refuses this request.
        """
        return self._asked("GET", path, query, {"Accept": accept}, None, read)

    def post(
        self,
        path: str,
        body: bytes,
        *,
        content_type: str,
        accept: str = JSON,
        read: Callable[[Answer], T] = _whole,  # type: ignore[assignment]
    ) -> T:
        """Send a body to a path and return the answer. It may arrive more than once, so it must say the same each time.

        Args:
            path: below the service root, from a slash on.
            body: is sent.
            content_type: of the body.
            accept: media types that are wanted.
            read: as in `get`.

        Raises:
            ServerError: as `get` does.
            ResourceError: as `get` does.
        """
        return self._asked("POST", path, (), {"Accept": accept, "Content-Type": content_type}, body, read)

    def _asked(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: bytes | None,
        read: Callable[[Answer], T],
    ) -> T:
        url = self.server.url + path + ("?" + urlencode(query) if query else "")
        for attempt in range(1, self.limits.tries + 1):
            named_wait, status = 0.0, 0
            try:
                answer, named_wait = self._request(method, url, headers, body)
                status = answer.status
                if 200 <= status < 300:
                    result = read(answer)
                    self.unanswered = 0
                    return result
                if status not in _TEMPORARY:
                    raise refusal(self.name, status, has_credentials=bool(self._headers))
                reason = f"it answers {status}"
            except (exceptions.HTTPError, OSError, BrokenAnswerError) as error:
                if isinstance(error, StorageError):
                    raise
                if (final := final_error(self.name, error)) is not None:
                    raise final from None
                reason = reason_of(error, self.limits.connect_seconds, self.limits.silent_seconds)
            if attempt == self.limits.tries:
                break
            wait = min(self.limits.longest_wait, self.limits.first_wait * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            wait = max(wait, min(named_wait, self.limits.longest_named_wait))
            self._warn(f"try {attempt} of {self.limits.tries}, again in {wait:.1f} s: {reason}")
            time.sleep(wait)
        self.unanswered += 1
        raise UnavailableError(f"{self.name} does not answer after {self.limits.tries} tries: {reason}")

    def _request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> tuple[Answer, float]:
        """Return the answer, whatever its status, and the seconds that it asks to wait."""
        limits = self.limits
        deadline = time.monotonic() + limits.answer_seconds
        response = self._pool.request(
            method,
            url,
            body=body,
            headers={**self._headers, **headers},
            timeout=urllib3.Timeout(connect=limits.connect_seconds, read=limits.silent_seconds),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            pieces, length = [], 0
            # Not `stream`, which waits for whole pieces, however slowly their bytes arrive.
            while piece := response.read1(_PIECE, decode_content=True):
                pieces.append(piece)
                length += len(piece)
                if length > limits.max_bytes:
                    raise ResourceError(f"an answer of {self.name} is larger than {limits.max_bytes >> 20} MiB", 0)
                if time.monotonic() > deadline:
                    raise BrokenAnswerError(f"an answer takes longer than {limits.answer_seconds:g} s")
        except BaseException:
            response.close()  # what is left of the answer must not become the next one
            raise
        finally:
            response.release_conn()
        named = response.headers.get("Retry-After", "")
        content_type = response.headers.get("Content-Type", "")
        return Answer(response.status, content_type, b"".join(pieces)), float(named) if named.isdecimal() else 0.0

    def _warn(self, words: str) -> None:
        """Log that a request failed, unless that was said a moment ago: requests at once fail together."""
        if time.monotonic() - self._warned >= _QUIET_SECONDS:
            self._warned = time.monotonic()
            log(f"warning: {self.name} does not answer ({words})")

    def is_there(self) -> bool:
        """Whether the server answers a small search, in one try."""
        try:
            answer, _ = self._request("GET", f"{self.server.url}/studies?limit=1", {"Accept": JSON}, None)
        except (exceptions.HTTPError, OSError, BrokenAnswerError):
            return False
        return answer.status < 500

    @property
    def is_overheard(self) -> bool:
        """Whether credentials leave this machine without encryption."""
        address = urlsplit(self.server.url)
        here = address.hostname == "localhost" or (address.hostname or "").startswith("127.")
        return bool(self._headers) and address.scheme == "http" and not here

    @property
    def name(self) -> str:
        """Words for the server that may stand in a log."""
        return f"the DICOMweb server {urlsplit(self.server.url).netloc}"


@lru_cache(maxsize=8)
def web_of(server: Server) -> Web:
    """Return this process's `Web` of a server; its connections are used again."""
    return Web(server)
