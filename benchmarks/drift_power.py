"""How small a change jobs/drift.py sees: `python -m benchmarks.drift_power power REFERENCE NAME=SCORES ...`.

`corrupt ARCHIVE OUT` writes changed copies of a folder of images first: contrast at the three severities of
`images.corruptions`, and another framing (a tenth of the image cut off at each side). Each copy is scored with
jobs/explain.py and the same model. `power` then draws images at random: some of the reference, and as many other ones of
each folder, and prints the share of draws with an alarm. The first row draws both sides from the reference: false alarms.
--leave-out takes quantities away that tell the folders apart by their files alone, such as bytes_per_pixel.
"""

import argparse
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.images.corruptions import SEVERITIES
from pneumo_ray.images.decode import decode_image
from pneumo_ray.site.drift import compare
from pneumo_ray.site.quantities import Floats, Words, quantities, taken

CUT = 0.1


def corrupt(archive: Path, out: Path) -> None:
    """Write changed copies of every image below a folder, as PNG, below folders of `out`."""
    for path in sorted(p for p in archive.rglob("*") if p.is_file()):
        grey = decode_image(path.read_bytes())
        mean = grey.mean()
        height, width = grey.shape
        changed = {f"contrast-{severity}": np.clip(mean + factor * (grey - mean), 0, 255).round().astype(np.uint8)
                   for severity, factor in enumerate(SEVERITIES["contrast"], 1)}  # fmt: skip
        dy, dx = round(CUT * height), round(CUT * width)
        changed["framing"] = np.ascontiguousarray(grey[dy : height - dy, dx : width - dx])
        changed["same"] = grey
        for name, image in changed.items():
            target = (out / name / path.relative_to(archive)).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), image)


def power(
    reference: str, others: list[str], sizes: list[int], draws: int, level: float, left_out: Collection[str]
) -> None:
    """Print the share of draws with an alarm, and the quantities that raise it most often."""

    def found_in(folder: str) -> dict[str, Floats | Words]:
        found = quantities(read_scores(folder))
        return {name: values for name, values in found.items() if name not in left_out}

    base = found_in(reference)
    folders = {"reference": base} | {
        name: found_in(folder) for name, _, folder in (text.partition("=") for text in others)
    }
    print("| images | on each side | share of draws with an alarm | most often |\n| --- | ---: | ---: | --- |")
    for name, found in folders.items():
        total, here = len(base["status"]), len(found["status"])
        for size in sizes:
            if 2 * size > total or size > here:
                continue
            alarms, named = 0, dict[str, int]()
            for seed in range(draws):
                rng = np.random.default_rng(seed)
                order = rng.permutation(total)
                first, rest = np.zeros(total, bool), np.zeros(here, bool)
                first[order[:size]] = True
                # Where the folder holds copies of the same images, others of them, so that the sides are independent.
                rest[order[size : 2 * size] if here == total else rng.permutation(here)[:size]] = True
                drift = compare(taken(base, first), taken(found, rest), None, level)
                alarms += bool(drift.alarms)
                for alarm in drift.alarms:
                    named[alarm.quantity] = named.get(alarm.quantity, 0) + 1
            most = ", ".join(sorted(named, key=lambda quantity: -named[quantity])[:3])
            print(f"| {name} | {size} | {100 * alarms / draws:.0f} % | {most} |", flush=True)


def main() -> None:
    """Write changed copies, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("corrupt")
    one.add_argument("archive", type=Path)
    one.add_argument("out", type=Path)
    two = parts.add_parser("power")
    two.add_argument("reference")
    two.add_argument("others", nargs="*")
    two.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200])
    two.add_argument("--draws", type=int, default=200)
    two.add_argument("--level", type=float, default=0.05)
    two.add_argument("--leave-out", nargs="+", default=[], help="quantities that are not compared")
    options = parser.parse_args()
    if options.part == "corrupt":
        corrupt(options.archive, options.out)
    else:
        power(options.reference, options.others, options.sizes, options.draws, options.level, options.leave_out)


if __name__ == "__main__":
    main()
