"""Errors of requests to a DICOMweb server, named by their kind: the path of a request has the UIDs of a patient's study in
it, and the errors of HTTP libraries quote it. A sentence names no more than the server.
"""

import ssl
from typing import Any

from urllib3 import exceptions

from pneumo_ray.dicomweb.multipart import BrokenAnswerError
from pneumo_ray.dicomweb.server import PASSWORD, TOKEN, USER
from pneumo_ray.errors import StorageError


class ServerError(StorageError):
    """A server that is not there, refuses the credentials, or is no DICOMweb server: nothing more can be had from it."""


class UnavailableError(ServerError):
    """A request that failed in all tries, for a reason that may be temporary."""


class ResourceError(StorageError, OSError):
    """A server that answers and refuses this one request; also an OSError, as a file has that cannot be read."""

    def __init__(self, sentence: str, status: int) -> None:
        """Hold the status code beside the sentence."""
        super().__init__(sentence)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.status)


def refusal(name: str, status: int, *, has_credentials: bool) -> StorageError:
    """Return the error of a status code that another try would not change.

    Args:
        name: words for the server.
        status: code of its answer.
        has_credentials: whether the request had some.
    """
    if status == 401:
        has = "refuses the credentials of the environment" if has_credentials else "asks for credentials"
        return ServerError(f"{name} {has}; set {USER} and {PASSWORD}, or {TOKEN}")
    if 300 <= status < 400:
        return ServerError(f"{name} answers with a redirection ({status}); give the address that it leads to")
    words = {403: "access is forbidden", 404: "not found", 410: "gone"}.get(status, "refused")
    return ResourceError(f"{name} answers {status} ({words})", status)


def final_error(name: str, error: Exception) -> ServerError | None:
    """Return the error of a server that no further try can reach, or None."""
    cause: object = error
    while isinstance(cause, Exception):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ServerError(
                f"the TLS certificate of {name} does not verify ({cause.verify_message}); name the file of its authority in "
                "SSL_CERT_FILE, or, if you trust whoever answers there, add tls=do-not-verify to the address"
            )
        if isinstance(cause, ssl.SSLError):
            return ServerError(f"{name} does not speak TLS as it must ({cause.reason}); is it dicomweb+http?")
        cause = cause.args[-1] if isinstance(cause, exceptions.HTTPError) and cause.args else None
    return None


def reason_of(error: Exception, connect_seconds: float, silent_seconds: float) -> str:
    """Return why a request failed, in words.

    Args:
        error: of urllib3 or of `multipart`.
        connect_seconds: time limit of the connection.
        silent_seconds: time limit between two pieces of the answer.
    """
    if isinstance(error, BrokenAnswerError):
        return str(error)
    if isinstance(error, exceptions.NameResolutionError):
        return "no machine has this name"
    if isinstance(error, exceptions.NewConnectionError):
        return "nobody listens there"
    if isinstance(error, exceptions.ConnectTimeoutError):
        return f"no connection within {connect_seconds:g} s"
    if isinstance(error, exceptions.ReadTimeoutError | TimeoutError):
        return f"silent for {silent_seconds:g} s"
    return "the connection broke off"
