"""A DICOMweb server in the test's own process that can be made to fail: searches and retrieval as PS3.18 has them.

Faults are named one after the other for requests that match; the server does the rest as it should.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from loopback_server import LoopbackServer
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

_INSTANCE = {"StudyInstanceUID": "0020000D", "SeriesInstanceUID": "0020000E", "SOPInstanceUID": "00080018"}


class DicomwebServer(LoopbackServer):
    """Some DICOM files on a free port of loopback; a context manager that serves while it is open."""

    request_queue_size = 64

    def __init__(self, files: Iterable[bytes] = (), certificate: str | None = None) -> None:
        """Hold files.

        Args:
            files: DICOM files.
            certificate: PEM file of a key and its certificate, to serve over TLS.
        """
        self.files: list[tuple[dict[str, Any], bytes]] = [(_item(data), data) for data in files]
        self.faults: list[object] = []
        """What becomes of the next requests that `spoils` names: a status code, `hang`, `drop`, `half`, `html` or `empty`."""
        self.spoils: Callable[[str], bool] = lambda path: True
        self.page = 10_000
        """Most answers of a search."""
        self.knows: set[str] = {"limit", "offset", "Modality", *_INSTANCE}
        """Keys of a search that it does not leave out."""
        self.authorisation: str | None = None
        """Value of that header without which it answers 401."""
        self.retry_after: str | None = None
        """Seconds that it asks to wait where it cannot answer."""
        self.seen: list[str] = []
        """Paths of all requests, with their queries."""
        self.at_once = self.most_at_once = 0
        self.delay = 0.0
        self._lock = threading.Lock()
        super().__init__(_Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    @property
    def address(self) -> str:
        """For --archive."""
        return f"dicomweb+{self.scheme}://127.0.0.1:{self.server_address[1]}/dicom-web"

    def handle_error(self, *_: object) -> None:
        pass

    def count(self, change: int) -> None:
        with self._lock:
            self.at_once += change
            self.most_at_once = max(self.most_at_once, self.at_once)

    def fault_for(self, path: str) -> object:
        with self._lock:
            self.seen.append(path)
            return self.faults.pop(0) if self.faults and self.spoils(path) else None

    def search(self, query: str) -> list[dict[str, Any]]:
        """Return the answers to a search for instances."""
        asked = [(name, value) for name, value in parse_qsl(query) if name in self.knows]
        found = [item for item, _ in self.files]
        for name, value in asked:
            tag = {"Modality": "00080060", "ViewPosition": "00185101"} | _INSTANCE
            if name in tag:
                found = [item for item in found if item.get(tag[name], {}).get("Value", [""])[0] == value]
        numbers = {name: int(value) for name, value in asked if name in ("limit", "offset")}
        start = numbers.get("offset", 0)
        return found[start : start + min(self.page, numbers.get("limit", len(found)))]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DicomwebServer

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    def do_GET(self) -> None:
        self.server.count(1)
        try:
            time.sleep(self.server.delay)
            self._answer(self.server.fault_for(self.path))
        finally:
            self.server.count(-1)

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def _answer(self, fault: object) -> None:
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        if self.server.authorisation not in (None, self.headers.get("Authorization")):
            self._send(401, "text/plain", b"who are you?")
        elif isinstance(fault, int):
            self._send(fault, "text/plain", f"cannot answer {self.path}".encode())
        elif fault == "hang":
            time.sleep(30)
        elif fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif fault == "html":
            self._send(200, "text/html", b"<html>welcome</html>")
        elif fault == "empty":
            self._send(200, "application/dicom+json", b"")
        elif path == "/dicom-web/instances":
            self._send(200, "application/dicom+json", json.dumps(self.server.search(query)).encode(), fault)
        elif path == "/dicom-web/studies":
            self._send(200, "application/dicom+json", b"[]")
        elif path.startswith("/dicom-web/studies/"):
            self._retrieve(path, fault)
        else:
            self._send(404, "text/html", b"<html>nothing here</html>")

    def _retrieve(self, path: str, fault: object) -> None:
        for item, data in self.server.files:
            study, series, instance = (item[tag]["Value"][0] for tag in _INSTANCE.values())
            below = f"/dicom-web/studies/{study}/series/{series}/instances/{instance}"
            if path == below:
                body = b"--q\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--q--\r\n"
                return self._send(200, 'multipart/related; type="application/dicom"; boundary=q', body, fault)
            if path == f"{below}/metadata":
                return self._send(200, "application/dicom+json", json.dumps([_item(data, whole=True)]).encode(), fault)
        return self._send(404, "text/plain", b"no such instance")

    def _send(self, status: int, kind: str, body: bytes, fault: object = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status >= 500 and self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        if fault == "half":
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _item(data: bytes, *, whole: bool = False) -> dict[str, Any]:
    """Return what a search tells of a file; all of its header but the pixels where `whole`."""
    dataset = dcmread(DicomBytesIO(data), stop_before_pixels=True)
    kept = dataset.to_json_dict()
    tags = ("00080016", "00080018", "00080050", "00080060", "00100010", "00100020", "0020000D", "0020000E", "00185101")
    return kept if whole else {tag: kept[tag] for tag in tags if tag in kept}
