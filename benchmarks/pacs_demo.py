"""Phantoms in a PACS, scored from it, and results back: `python -m benchmarks.pacs_demo --model runs/demo/model --out runs/demo-pacs`.

The PACS is an Orthanc on loopback with a folder of its own. It renders sources, maps and captures onto one contact sheet.
Beside the sheet lies the first report as text. Each run begins with an empty PACS.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from PIL import Image, ImageDraw

from pneumo_ray.pacs.objects import OWN

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "builders")]
from orthanc import Orthanc, missing  # noqa: E402

from benchmarks.pacs_rows import cr_file, phantom  # noqa: E402

SIDE, GAP = 250, 6
TITLES = (
    "source",
    "map of the mean, to its own maximum",
    "map of the standard deviation, likewise",
    "capture, as Orthanc renders it",
)


def job(name: str, *words: str) -> None:
    """Run a job, and end where it fails."""
    done = subprocess.run([sys.executable, ROOT / "jobs" / f"{name}.py", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def rendered(server: Orthanc, path: str) -> Image.Image:
    """Return what the PACS renders of an instance or frame."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}/rendered", timeout=60) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def rows_of(server: Orthanc) -> list[list[Image.Image]]:
    """Return of each study the source, both frames of the map at image resolution, and the capture."""
    rows = []
    for study in sorted(server.rest("/studies?expand"), key=lambda one: one["PatientMainDicomTags"]["PatientID"]):
        shown: dict[str, list[Image.Image]] = {}
        for series in (server.rest(f"/series/{uid}") for uid in study["Series"]):
            words = series["MainDicomTags"].get("SeriesDescription", "")
            for uid in series["Instances"]:
                tags = server.rest(f"/instances/{uid}/simplified-tags")
                if not words.startswith(OWN):
                    shown["source"] = [rendered(server, f"/instances/{uid}")]
                elif "panels" in words:
                    shown["capture"] = [rendered(server, f"/instances/{uid}")]
                elif "maps" in words and tags.get("BitsAllocated") == "16":
                    shown["map"] = [rendered(server, f"/instances/{uid}/frames/{frame}") for frame in (0, 1)]
        rows.append([*shown["source"], *shown["map"], *shown["capture"]])
    return rows


def sheet(rows: list[list[Image.Image]], path: Path) -> None:
    """Write the contact sheet."""
    wide = round(SIDE * rows[0][3].width / rows[0][3].height)
    lefts = [GAP + (SIDE + GAP) * column for column in range(4)]
    canvas = Image.new("RGB", (lefts[3] + wide + GAP, 24 + (SIDE + GAP) * len(rows)), "black")
    pen = ImageDraw.Draw(canvas)
    for left, words in zip(lefts, TITLES, strict=True):
        pen.text((left, 6), words, "white")
    for number, images in enumerate(rows):
        for left, image, width in zip(lefts, images, (SIDE, SIDE, SIDE, wide), strict=True):
            image.thumbnail((width, SIDE))
            canvas.paste(image, (left, 24 + (SIDE + GAP) * number))
    canvas.save(path)


def report(server: Orthanc, path: Path) -> None:
    """Write the first report of the PACS as text, as dcmtk prints it."""
    found = (
        uid for uid in server.rest("/instances") if server.rest(f"/instances/{uid}/simplified-tags")["Modality"] == "SR"
    )
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(server.file(next(found)))
        file.flush()
        done = subprocess.run(["dsrdump", file.name], capture_output=True, check=True)
    path.write_bytes(done.stdout)


def main() -> None:
    """Run the whole path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--out", default="runs/demo-pacs", type=Path, help="what an earlier run left there is removed")
    parser.add_argument("--images", default=6, type=int)
    parser.add_argument("--port", default=8942, type=int)
    options = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    if options.out.exists() and any(options.out.iterdir()) and not (options.out / "orthanc" / "orthanc.json").exists():
        sys.exit(f"{options.out} holds something else than an earlier demonstration; choose another --out")
    shutil.rmtree(options.out, ignore_errors=True)
    try:
        server = Orthanc(options.out / "orthanc", options.port)
    except RuntimeError as error:
        sys.exit(f"{error}; if another process listens on port {options.port}, choose another --port")
    try:
        server.store(cr_file(index, phantom(index, pneumonia=index % 3 < 2)) for index in range(options.images))
        print(f"{options.images} phantoms are in an Orthanc at {server.address}", flush=True)
        archive, scores = f"{server.address}?Modality=CR", str(options.out / "scores")
        job("explain", "--archive", archive, "--model", options.model, "--out", scores, "--target", "pneumonia")
        publishing = ("--scores", scores, "--model", options.model, "--to", server.address, "--include-doubtful")
        job("publish", *publishing)
        job("publish", *publishing)  # changes nothing
        sheet(rows_of(server), options.out / "sheet.png")
        print(
            f"{len(server.rest('/instances')):,} instances are in the PACS now; it renders {options.out / 'sheet.png'}"
        )
        if shutil.which("dsrdump"):
            report(server, options.out / "report.txt")
            print(f"the first report as text: {options.out / 'report.txt'}")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
