"""A stand-in for the search of a PACS of any size: it makes its answers as they are asked for, and holds no instance."""

import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, urlsplit

from loopback_server import LoopbackServer

CR = "1.2.840.10008.5.1.4.1.1.1"
_ROOT = "1.2.826.0.1.3680043.8.498"


class QidoServer(LoopbackServer):
    """So many CR instances on a free port of loopback, two to a study; a context manager that serves while it is open."""

    def __init__(self, count: int) -> None:
        """Open the port.

        Args:
            count: of instances.
        """
        self.count = count
        super().__init__(_Handler)

    @property
    def address(self) -> str:
        """For --archive."""
        return f"dicomweb+http://127.0.0.1:{self.server_address[1]}/dicom-web?Modality=CR"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: QidoServer

    def do_GET(self) -> None:
        asked = dict(parse_qsl(urlsplit(self.path).query))
        start = int(asked.get("offset", 0))
        stop = min(self.server.count, start + int(asked.get("limit", self.server.count)))
        body = json.dumps([_item(number) for number in range(start, stop)]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _item(number: int) -> dict[str, dict[str, object]]:
    study = f"{_ROOT}.{number // 2}"
    values = {
        "00080016": ("UI", CR),
        "00080018": ("UI", f"{study}.1.{number}"),
        "00080050": ("SH", f"ACC{number}"),
        "00080060": ("CS", "CR"),
        "00100020": ("LO", f"MRN{number}"),
        "0020000D": ("UI", study),
        "0020000E": ("UI", f"{study}.1"),
    }
    return {tag: {"vr": vr, "Value": [value]} for tag, (vr, value) in values.items()}
