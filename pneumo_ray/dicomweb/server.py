"""Address of a DICOMweb server, and the credentials that the environment has for it."""

import base64
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pneumo_ray.errors import ConfigError

PREFIX = "dicomweb+"
"""Begins the address of a DICOMweb server: dicomweb+http:// or dicomweb+https://."""
USER, PASSWORD, TOKEN = "DICOMWEB_USER", "DICOMWEB_PASSWORD", "DICOMWEB_TOKEN"
"""Environment variables of the credentials: a name and a password, or a bearer token."""
UNVERIFIED = "do-not-verify"
"""Value of the option `tls` of an address that switches the verification of certificates off."""


@dataclass(frozen=True)
class Server:
    """A DICOMweb server."""

    url: str
    """Its service root, http:// or https://, without a slash at the end."""
    verify_tls: bool = True
    """Whether its certificate must verify."""


def is_dicomweb(address: str) -> bool:
    """Whether an address is that of a DICOMweb server."""
    return address.startswith(PREFIX)


def server_of(address: str) -> tuple[Server, str]:
    """Return the server of an address, and the query of the address without the option `tls`.

    Args:
        address: dicomweb+http:// or dicomweb+https://, host and service root, and a query (`?Modality=CR`).

    Raises:
        ConfigError: if it is none, or contains a password.
    """
    parts = urlsplit(address.removeprefix(PREFIX))
    if not is_dicomweb(address) or parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ConfigError(
            f"{PREFIX}{parts.scheme}://{parts.hostname or ''} is no address of a DICOMweb server; it must be of the form "
            "dicomweb+http://host:port/dicom-web or dicomweb+https://host/dicom-web"
        )
    if "@" in parts.netloc:
        raise ConfigError(
            f"the address {PREFIX}{parts.scheme}://...@{parts.netloc.rpartition('@')[2]} contains credentials, which every "
            f"user of this machine could read; leave them out and set {USER} and {PASSWORD}, or {TOKEN}, in the environment"
        )
    try:
        parts.port  # noqa: B018 (raises where it is none)
    except ValueError as error:
        raise ConfigError(f"the address of the DICOMweb server {parts.hostname} has a port that is none") from error
    options = [word for word in parts.query.split("&") if word]
    tls = [word.partition("=")[2] for word in options if word.partition("=")[0] == "tls"]
    if any(value != UNVERIFIED for value in tls):
        raise ConfigError(f"the option tls of a DICOMweb address takes the value {UNVERIFIED}, and no other")
    rest = "&".join(word for word in options if word.partition("=")[0] != "tls")
    return Server(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", verify_tls=not tls), rest


def authorisation() -> str | None:
    """Return the value of the header `Authorization` by the environment's credentials; None without any.

    Raises:
        ConfigError: if they are incomplete, or cannot stand in a header.
    """
    user, password, token = (os.environ.get(name) for name in (USER, PASSWORD, TOKEN))
    if token:
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ConfigError(f"{TOKEN} contains characters that no token has")
        return f"Bearer {token}"
    if user and password is not None:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if user or password:
        raise ConfigError(f"the environment has only one of {USER} and {PASSWORD}; set both")
    return None
