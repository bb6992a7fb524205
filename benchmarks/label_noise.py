"""How many flipped labels does the study of labels find? Some training labels of a manifest are flipped, and it ranks them.

    python -m benchmarks.label_noise --manifest runs/first/manifest.parquet --out runs/noise --epochs 6

runs `jobs/tune.py --study labels` on the flipped manifest, with any of its options, and prints, for the ranking by
self-confidence and that by adjusted margin, the share of the flipped labels among the most doubtful tenth of the training
images (at random: a tenth), and precision and recall of the column `doubtful`. Labels that were wrong before count as right
ones. The same command continues an interrupted study.
"""

import argparse

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.commands import run_job
from pneumo_ray import storage
from pneumo_ray.data.manifest import read_manifest, usable, write_manifest

TOP = 0.1
"""Share of the training images that is read again."""


def flip(manifest: pa.Table, rate: float, seed: int) -> tuple[pa.Table, set[str]]:
    """Return a manifest in which some training labels are flipped, and their images.

    Args:
        manifest: with splits.
        rate: share of the training labels.
        seed: of the draw.
    """
    trains = usable(manifest, "train")["image_id"].to_pylist()
    rng = np.random.default_rng(seed)
    flipped = set(rng.choice(sorted(trains), round(rate * len(trains)), replace=False).tolist())
    is_flipped = pc.is_in(manifest["image_id"], value_set=pa.array(sorted(flipped)))
    label = pc.if_else(is_flipped, pc.subtract(1, manifest["label"]), manifest["label"]).cast(pa.int8())
    return manifest.set_column(manifest.column_names.index("label"), manifest.schema.field("label"), label), flipped


def shares(doubtful: pa.Table, flipped: set[str]) -> dict[str, float]:
    """Return the share of the flipped labels in the top of each ranking, and precision and recall of `doubtful`.

    Args:
        doubtful: doubtful.parquet of the study.
        flipped: images whose label was flipped.
    """
    rows = doubtful.filter(pc.is_valid(doubtful["fold"]))
    is_flipped = np.array([name in flipped for name in rows["image_id"].to_pylist()])
    found = {}
    for name in ("self_confidence", "adjusted_margin"):
        first = np.argsort(rows[name].to_numpy(), kind="stable")[: round(TOP * len(rows))]
        found[name] = is_flipped[first].sum() / is_flipped.sum()
    called = rows["doubtful"].to_numpy()
    found["precision"] = is_flipped[called].mean()
    found["recall"] = called[is_flipped].mean()
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    """Flip, run the study, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--out", required=True, help="of the study and the flipped manifest")
    parser.add_argument("--rate", type=float, default=0.05, help="share of the training labels that are flipped")
    parser.add_argument("--flip-seed", type=int, default=0, help="of the draw of these labels")
    options, others = parser.parse_known_args()
    out = storage.absolute(options.out)
    manifest, flipped = flip(read_manifest(storage.absolute(options.manifest)), options.rate, options.flip_seed)
    noisy = storage.join(out, "noisy.parquet")
    write_manifest(manifest, noisy)
    run_job("tune", "--study", "labels", "--manifest", noisy, "--out", out, *others)
    found = shares(storage.read_table(storage.join(out, "doubtful.parquet")), flipped)
    print(f"| {len(flipped):,} flipped labels | share |\n| --- | --- |")
    print(f"| in the top {TOP:.0%} by self-confidence | {found['self_confidence']:.1%} |")
    print(f"| in the top {TOP:.0%} by adjusted margin | {found['adjusted_margin']:.1%} |")
    print(f"| of those called doubtful, flipped | {found['precision']:.1%} |")
    print(f"| of the flipped, called doubtful | {found['recall']:.1%} |")


if __name__ == "__main__":
    main()
