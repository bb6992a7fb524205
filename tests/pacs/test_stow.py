"""Publication into a real PACS, Orthanc: what it has afterwards, what it renders, and servers that take nothing."""

import http.server
import io
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pydicom
import pytest
from PIL import Image

from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.pacs.batch import Outcome
from pneumo_ray.pacs.config import PublishConfig
from pneumo_ray.pacs.ledger import MAP
from pneumo_ray.pacs.publish import publish

N = 4


def run(scores: Path, model: Path, to: str, **options: object) -> Outcome:
    return publish(PublishConfig(scores=str(scores), model=str(model), to=to, num_workers=1, **options))


@pytest.fixture
def radiographs(cr_file) -> dict[str, bytes]:
    return {f"{number}.dcm": cr_file(number) for number in range(N)}


def instances(orthanc) -> dict[str, str]:
    """Orthanc's identifiers by SOP Instance UID."""
    return {found["MainDicomTags"]["SOPInstanceUID"]: found["ID"] for found in orthanc.rest("/instances?expand")}


def raw(orthanc, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{orthanc.port}{path}", timeout=60) as answer:
        return answer.read()


def test_results_stand_in_the_studies_of_their_sources(orthanc, scored, radiographs, model):
    orthanc.store(radiographs.values())
    outcome = run(scored(radiographs), model, orthanc.address)
    assert (outcome.images, outcome.made) == (N, 4 * N)
    assert len(instances(orthanc)) == 5 * N
    assert len(orthanc.rest("/studies")) == N // 2
    assert len(orthanc.rest("/patients")) == 1
    for study in orthanc.rest("/studies?expand"):
        series = [orthanc.rest(f"/series/{uid}")["MainDicomTags"] for uid in study["Series"]]
        # The two images; their reports; their captures; and the maps of each, in a frame of reference of their own.
        assert sorted(one["Modality"] for one in series) == ["CR", "OT", "OT", "OT", "SR"]
        assert (
            sum(
                one["SeriesDescription"].startswith("RESEARCH USE ONLY") for one in series if "SeriesDescription" in one
            )
            == 4
        )


def test_publishing_twice_leaves_the_same_objects(orthanc, scored, radiographs, model):
    orthanc.store(radiographs.values())
    scores = scored(radiographs)
    run(scores, model, orthanc.address)
    before = {uid: raw(orthanc, f"/instances/{one}/file") for uid, one in instances(orthanc).items()}
    gone = sorted(set(before) - {f"1.2.826.0.1.{number + 1}" for number in range(N)})[::3]
    assert run(scores, model, orthanc.address).made == 0
    for uid in gone:  # as after a kill
        orthanc.rest(f"/instances/{instances(orthanc)[uid]}", method="DELETE")
    assert run(scores, model, orthanc.address).made == len(gone)
    assert {uid: raw(orthanc, f"/instances/{one}/file") for uid, one in instances(orthanc).items()} == before
    assert (scores / "_publish" / MAP).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("orientation", [["L", "F"], ["R", "F"]])
def test_a_corner_opacity_is_rendered_in_its_corner(orthanc, scored, cr_file, model, orientation):
    """Both the image and its map: Orthanc shows stored pixels, which may be mirrored against the view that is scored."""
    pixels = np.zeros((90, 70), np.uint16)
    stored_left = orientation[0] == "L"
    pixels[:30, slice(0, 25) if stored_left else slice(45, 70)] = 4000  # the patient's upper right
    file = cr_file(0, PatientOrientation=orientation, WindowCenter="2000", WindowWidth="4000")
    dataset = pydicom.dcmread(io.BytesIO(file))
    dataset.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream)
    orthanc.store([stream.getvalue()])
    cam = np.zeros((1, 49), np.float32)
    cam[0, 0] = 2.5
    scores = scored({"0.dcm": stream.getvalue()}, cam_mean=cam, cam_std=cam / 4)
    run(scores, model, orthanc.address, kinds=("map",))
    (result,) = (
        one for one in orthanc.rest("/instances?expand")
        if orthanc.rest(f"/instances/{one['ID']}/simplified-tags").get("Rows") == "90" and one["MainDicomTags"]["SOPInstanceUID"] != "1.2.826.0.1.1"
    )  # fmt: skip
    source = instances(orthanc)["1.2.826.0.1.1"]
    for path in (
        f"/instances/{source}/rendered",
        *(f"/instances/{result['ID']}/frames/{frame}/rendered" for frame in (0, 1)),
    ):
        shown = np.asarray(Image.open(io.BytesIO(raw(orthanc, path))).convert("L")).astype(float)
        assert shown.shape == (90, 70)
        corners = {
            (top, left): shown[:12, :12][::1].mean()
            if (top, left) == (1, 1)
            else shown[
                -12 if not top else 0 : None if not top else 12, -12 if not left else 0 : None if not left else 12
            ].mean()
            for top in (0, 1)
            for left in (0, 1)
        }
        assert max(corners, key=corners.get) == (1, int(stored_left)), path
        assert sorted(corners.values())[-2] < 0.2 * max(corners.values())


def test_results_of_another_config_stay_alone(orthanc, scored, radiographs, model):
    orthanc.store(radiographs.values())
    run(scored(radiographs), model, orthanc.address, kinds=("sr",))
    before = instances(orthanc)
    other = scored(radiographs, "other", config_hash="d" * 64)
    with pytest.raises(ConfigError, match=f"{N} images have results of another model or config"):
        run(other, model, orthanc.address, kinds=("sr",))
    assert instances(orthanc) == before
    assert run(other, model, orthanc.address, kinds=("sr",), beside=True).made == N
    assert len(instances(orthanc)) == len(before) + N


def test_a_dry_run_asks_and_stores_nothing(orthanc, scored, radiographs, model):
    orthanc.store(radiographs.values())
    scores = scored(radiographs)
    assert run(scores, model, orthanc.address, dry_run=True).made == 4 * N
    assert len(instances(orthanc)) == N
    run(scores, model, orthanc.address, kinds=("sr",))
    assert run(scores, model, orthanc.address, kinds=("sr",), dry_run=True).present == N


# ---- servers that take nothing ---------------------------------------------------------------------------------------


class ReadOnly(http.server.BaseHTTPRequestHandler):
    """Answers every search with nothing found, and refuses to store."""

    status: ClassVar[int] = 403

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Log nothing."""


@pytest.fixture
def read_only() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ReadOnly)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"dicomweb+http://127.0.0.1:{server.server_port}/dicom-web"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [403, 405, 409])
def test_a_read_only_server_is_named(read_only, scored, radiographs, model, monkeypatch, status):
    monkeypatch.setattr(ReadOnly, "status", status)
    with pytest.raises(StorageError, match="takes no results") as caught:
        run(scored(radiographs), model, read_only)
    assert "1.2.826" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["dicomweb+http://", "http://127.0.0.1/x", "dicomweb+http://127.0.0.1/x?Modality=CR"]
)
def test_an_address_without_a_server_is_refused(scored, radiographs, model, address):
    with pytest.raises(ConfigError, match=r"dicomweb"):
        run(scored(radiographs), model, address)
