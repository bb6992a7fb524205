"""An Orthanc of its own on loopback: a small real PACS with QIDO-RS, WADO-RS and STOW-RS."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60


def missing() -> str | None:
    """Return why Orthanc cannot be started here, or None."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        return (
            "Orthanc, the DICOMweb server of these tests, is not installed (apt-get install orthanc orthanc-dicomweb)"
        )
    return None


class Orthanc:
    """A running server; its data, configuration and log lie in one folder."""

    def __init__(self, folder: Path, port: int, **options: Any) -> None:
        """Start it and wait until it answers.

        Args:
            folder: of its own.
            port: that nobody listens on.
            options: of its configuration.
        """
        self.port = port
        folder = folder.resolve()  # Orthanc takes a relative path as one below its configuration file
        self.log = folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": port,
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": False,
            "DicomServerEnabled": False,
            "OverwriteInstances": True,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(config | options))
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.rest("/system")
                return
            except urllib.error.HTTPError:
                return  # it answers, and asks for credentials
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"Orthanc did not start: see {self.log}") from None
                time.sleep(0.05)

    @property
    def address(self) -> str:
        """For --archive and --to."""
        return f"dicomweb+http://127.0.0.1:{self.port}/dicom-web"

    def rest(self, path: str, body: bytes | None = None, method: str | None = None) -> Any:
        """Return the JSON of Orthanc's own interface, which is not DICOMweb."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def store(self, files: Iterable[Path | bytes]) -> list[str]:
        """Store DICOM files; return Orthanc's own identifiers of the instances."""
        contents = (file if isinstance(file, bytes) else file.read_bytes() for file in files)
        return [self.rest("/instances", content)["ID"] for content in contents]

    def file(self, instance: str) -> bytes:
        """Return the DICOM file of an instance by Orthanc's own identifier."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/instances/{instance}/file", timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def empty(self) -> None:
        """Remove all that is stored."""
        for patient in self.rest("/patients"):
            self.rest(f"/patients/{patient}", method="DELETE")

    def stop(self) -> None:
        """End the server; its data stay."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
