"""Make the images of README and docs from a run of the demo: `python docs/images/make.py --demo runs/demo`.

panels.webp is one explained phantom radiograph, report.webp the first screen of the report in a headless Chromium.
pacs.webp is the upper half of the contact sheet of `make demo-pacs`, and is made where that has run.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

HERE = Path(__file__).parent
BUDGET = 400_000
"""Bytes of all images together."""
WIDTH = 1200
"""Pixels of each image."""
SCREEN = (1280, 600)
"""Pixels of the browser's window."""


def make(demo: Path, case: str) -> None:
    """Write both images.

    Raises:
        SystemExit: if the demo has not run, Chromium is missing, or the images exceed the budget.
    """
    panels, report = demo / "scores" / "pictures" / case, demo / "report" / "report.html"
    for needed in (panels, report):
        if not needed.is_file():
            sys.exit(f"{needed} does not exist; run make demo first")
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "report.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
        size = f"--window-size={SCREEN[0]},{SCREEN[1]}"
        page = Path(folder) / "report.html"
        # The image must not show where the demo ran on this machine.
        page.write_text(report.read_text().replace(str(demo.resolve()), "runs/demo"))
        command = [chromium, *options, size, f"--user-data-dir={folder}", f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        write(shot, HERE / "report.webp")
    write(panels, HERE / "panels.webp")
    total = sum(path.stat().st_size for path in HERE.glob("*.webp"))
    print(f"wrote panels.webp and report.webp, {total:,} bytes together")
    if total > BUDGET:
        sys.exit(f"the images have {total:,} bytes; at most {BUDGET:,} are allowed")


def make_pacs(sheet: Path) -> None:
    """Write pacs.webp: three of the six rows of a contact sheet."""
    with Image.open(sheet) as opened:
        opened.crop((0, 0, opened.width, 24 + 3 * 256)).save(HERE / "pacs.webp", "WEBP", quality=82, method=6)


def write(source: Path, target: Path) -> None:
    """Cut the white border off, scale the image down to `WIDTH` and write it as WebP."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    image = image.crop(ImageOps.invert(image).getbbox())
    image.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    image.save(target, "WEBP", quality=85, method=6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of the demo")
    parser.add_argument("--case", default="suspicious-001.png", help="which explained image to show")
    arguments = parser.parse_args()
    if (arguments.demo.parent / "demo-pacs" / "sheet.png").is_file():
        make_pacs(arguments.demo.parent / "demo-pacs" / "sheet.png")
    make(arguments.demo, arguments.case)
