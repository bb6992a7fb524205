"""Lungs in a manifest: found in the one pass of `prepare`, or taken from a table; against the phantoms' true lungs."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.anatomy import segmenter
from pneumo_ray.anatomy.examples import counterexample
from pneumo_ray.anatomy.lungs import MASK_SIZE, QUALITIES, box_of
from pneumo_ray.anatomy.masks import decode_mask, encode_mask, resize_mask
from pneumo_ray.anatomy.network import LungNet
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.audit import audit, audit_lines
from pneumo_ray.data.cache import cache_folder, scan_cache
from pneumo_ray.data.dataset import CACHE_SIZE, square
from pneumo_ray.data.find_lungs import GivenLungs, find_lungs, given_mask, lung_values, read_given, segmenter_input
from pneumo_ray.data.inspect import InspectConfig, inspect_entries
from pneumo_ray.data.lungs import segmenter_of
from pneumo_ray.data.manifest import LUNG_FIELDS, read_manifest
from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.errors import ManifestError, ModelError
from pneumo_ray.phantom.synthetic import draw_radiograph

NAMES = [field.name for field in LUNG_FIELDS]


def rectangles(size: int = 224) -> np.ndarray:
    """Two upright lungs of straight lines, 40 % of the height of a square."""
    mask = np.zeros((size, size), bool)
    mask[size // 4 : 3 * size // 4, size // 8 : 3 * size // 8] = True
    mask[size // 4 : 3 * size // 4, 5 * size // 8 : 7 * size // 8] = True
    return mask


def ramp(size: int = 200) -> bytes:
    """A file without lungs."""
    grey = np.tile(np.linspace(0, 255, size).astype(np.uint8), (size, 1))
    return cv2.imencode(".png", grey)[1].tobytes()


@pytest.fixture(scope="module")
def manifest(phantom_run) -> pa.Table:
    return read_manifest(str(phantom_run / "manifest.parquet"))


@pytest.fixture(scope="module")
def truth(phantom_archive) -> dict[str, np.ndarray]:
    rows = pq.read_table(phantom_archive / "lungs.parquet").to_pylist()
    return {row["image_id"]: resize_mask(decode_mask(row["mask_png"])) >= 128 for row in rows}


def test_lungs_of_phantoms_are_found_where_they_are(manifest, truth):
    """A constant answer would overlap with them at a Dice of about 0.8."""
    overlap = []
    for row in manifest.to_pylist():
        found, true = decode_mask(row["lung_mask"]), truth[row["image_id"]]
        overlap.append(2 * np.count_nonzero(found & true) / (found.sum() + true.sum()))
    assert np.mean(overlap) > 0.93
    assert set(manifest["view"].to_pylist()) == {"frontal"}


def test_lung_columns_follow_from_the_mask(manifest):
    names = manifest.column_names
    assert names[names.index(NAMES[0]) :][: len(NAMES)] == NAMES
    for row in manifest.to_pylist()[::9]:
        mask = decode_mask(row["lung_mask"])
        assert mask.shape == (MASK_SIZE, MASK_SIZE)
        assert len(row["lung_mask"]) < 1000
        assert row["lung_box"] == pytest.approx(box_of(mask), abs=1e-6)
        assert row["lung_area"] == pytest.approx(mask.mean(), abs=1e-6)
        right, left = row["lung_right_box"], row["lung_left_box"]
        assert right[2] <= left[0] + 0.1
        joined = (min(right[0], left[0]), min(right[1], left[1]), max(right[2], left[2]), max(right[3], left[3]))
        assert joined == pytest.approx(row["lung_box"], abs=1e-6)


def test_values_of_a_mask_follow_from_arithmetic():
    values = lung_values(rectangles(128))
    assert values["lung_quality"] == "plausible"
    assert values["lung_box"] == (1 / 8, 1 / 4, 7 / 8, 3 / 4)
    assert values["lung_right_box"] == (1 / 8, 1 / 4, 3 / 8, 3 / 4)
    assert values["lung_area"] == 0.25
    assert (decode_mask(values["lung_mask"]) == rectangles(128)).all()


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((128, 128), bool),
        np.ones((128, 128), bool),
        rectangles(128)[:, :64].repeat(2, 1),
        np.random.default_rng(0).random((128, 128)) < 0.5,
    ],
)
def test_an_implausible_mask_has_a_reason_without_box(mask):
    values = lung_values(mask)
    assert values["view"] == "doubtful"
    assert values["lung_quality"] in QUALITIES
    assert values["lung_mask"] is None or len(values["lung_mask"]) < 1000
    assert values["lung_quality"] == "one_lung" or values["lung_box"] is None


@pytest.fixture
def archive(tmp_path, phantom_archive) -> Path:
    """Three phantoms, an image without lungs and a file that is none."""
    folder = tmp_path / "archive"
    (folder / "train").mkdir(parents=True)
    for number, path in enumerate(sorted(phantom_archive.glob("train/NORMAL/*.jpeg"))[:3]):
        (folder / "train" / f"{number}.jpeg").write_bytes(path.read_bytes())
    (folder / "train" / "ramp.png").write_bytes(ramp())
    (folder / "train" / "text.png").write_bytes(b"text")
    return folder


def inspected(archive: Path, given=None, **changes) -> list[dict]:
    config = InspectConfig(lungs=True, **changes)
    return inspect_entries(list(list_archives([str(archive)])), config, given).to_pylist()


def test_no_lungs_is_doubtful_and_failed_is_null(archive):
    rows = {row["image_id"].rpartition("/")[2]: row for row in inspected(archive)}
    assert [rows[f"{i}.jpeg"]["view"] for i in range(3)] == ["frontal"] * 3
    assert rows["ramp.png"]["view"] == "doubtful"
    assert rows["ramp.png"]["lung_box"] is None
    assert all(rows["text.png"][name] is None for name in NAMES)


def test_a_cache_does_not_change_lungs(archive, tmp_path):
    folder = cache_folder(str(tmp_path / "run"), 256)
    without = inspected(archive)
    first = inspected(archive, cache_folder=folder)
    second = inspected(archive, cache_folder=folder, cached=scan_cache(folder, 256))
    assert sum(row["cache_file"] is not None for row in second) == 4
    for name in NAMES:
        assert [row[name] for row in without] == [row[name] for row in first] == [row[name] for row in second]


def test_missing_masks_are_found(archive):
    found = inspected(archive)
    given = [GivenLungs(encode_mask(rectangles()), 640.0, 480.0), *[GivenLungs(None)] * 4]
    rows = inspected(archive, given)
    assert rows[0]["lung_box"] == pytest.approx((1 / 8, 1 / 4, 7 / 8, 3 / 4), abs=0.005)
    assert (rows[0]["shape_width"], rows[0]["shape_height"]) == (640, 480)
    assert [row["lung_mask"] for row in rows[1:]] == [row["lung_mask"] for row in found[1:]]


def test_a_full_mask_marks_the_row(archive):
    rows = inspected(archive, [GivenLungs(encode_mask(np.ones((64, 64), bool))), *[None] * 4])
    assert (rows[0]["status"], rows[0]["lung_quality"], rows[0]["view"]) == ("ok", "too_large", "doubtful")


@pytest.mark.parametrize(
    ("png", "sentence"),
    [
        (encode_mask(np.zeros((100, 300), bool)), "has 300 x 100 pixels and the image 128 x"),
        (b"\x89PNG", "is no PNG"),
        (encode_mask(rectangles())[:60], "damaged"),
    ],
)
def test_a_foreign_mask_is_one_sentence(archive, png, sentence):
    with pytest.raises(ManifestError, match=sentence) as raised:
        inspected(archive, [GivenLungs(png), *[None] * 4])
    assert "0.jpeg" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shape", [(300, 300), (200, 400), (400, 300)])
def test_masks_may_have_any_of_three_shapes(shape):
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2] = True
    small = given_mask(GivenLungs(encode_mask(mask), 300, 400), "a", 800, 400)
    assert small.mean() == pytest.approx(0.5, abs=0.01)
    assert small[:60].all()


def table_of(path: Path, **columns) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_table_matches_full_or_base_names(tmp_path):
    png = encode_mask(rectangles())
    uri = table_of(
        tmp_path / "l.parquet", image_id=["x/a.png", "b.png"], mask_png=[png, None], width=[640, 300], height=[480, 0]
    )
    assert read_given(uri, ["x/a.png", "y/b.png", "c.png"]) == [
        GivenLungs(png, 640, 480), GivenLungs(None, None, None), GivenLungs(None, None, None)
    ]  # fmt: skip


def test_an_unusable_table_is_one_sentence(tmp_path):
    png = encode_mask(rectangles())
    for uri, sentence in (
        (str(tmp_path / "none.parquet"), "--lungs .* does not exist"),
        (table_of(tmp_path / "a.parquet", image_id=["z"], mask_png=[png]), "--lungs .* has a mask of none of 1 images"),
        (table_of(tmp_path / "b.parquet", image_id=["a"], mask=[png]), "--lungs .* has no column mask_png"),
        (table_of(tmp_path / "c.parquet", image_id=["a", "a"], mask_png=[png, png]), "two masks of 'a'"),
        (table_of(tmp_path / "d.parquet", image_id=["a"], mask_png=[png], width=["w"], height=["h"]), "is no number"),
    ):
        with pytest.raises(ManifestError, match=sentence):
            read_given(uri, ["a"])


def test_prepare_takes_masks_and_refuses_foreign_ones(ray_cluster, archive, tmp_path):
    names = [f"train/{i}.jpeg" for i in range(3)]
    good, bad = encode_mask(rectangles()), encode_mask(np.zeros((100, 300), bool))
    (tmp_path / "labels.csv").write_text(
        "image_id,label,view,split\n" + "".join(f"{n},{i % 2},PA,train\n" for i, n in enumerate(names))
    )
    shared = {"archive": (str(archive),), "labels": str(tmp_path / "labels.csv")}
    given = table_of(tmp_path / "l.parquet", image_id=names, mask_png=[good] * 3, width=[3] * 3, height=[2] * 3)
    made = prepare(PrepareConfig(**shared, out=str(tmp_path / "out"), lungs=given))
    rows = {row["image_id"]: row for row in made.to_pylist()}
    assert [rows[name]["lung_area"] for name in names] == pytest.approx([0.25] * 3, abs=0.01)
    assert [rows[name]["view"] for name in names] == ["PA"] * 3  # what a table of labels says stays
    assert rows["train/ramp.png"]["lung_quality"] not in (None, "plausible")
    assert {"shape_width", "shape_height"} <= set(made.column_names)
    assert (tmp_path / "out" / "lungs.png").read_bytes().startswith(b"\x89PNG")
    wrong = table_of(tmp_path / "w.parquet", image_id=names, mask_png=[good, good, bad])
    with pytest.raises(ManifestError, match=r"^the mask of train/2.jpeg in --lungs has 300 x 100 pixels"):
        prepare(PrepareConfig(**shared, out=str(tmp_path / "other"), lungs=wrong))
    assert not (tmp_path / "other" / "manifest.parquet").exists()


def test_without_lungs_there_are_no_columns_of_them(ray_cluster, archive, tmp_path):
    (tmp_path / "labels.csv").write_text("image_id,label,split\ntrain/0.jpeg,0,train\n")
    made = prepare(
        PrepareConfig(
            archive=(str(archive),), labels=str(tmp_path / "labels.csv"), out=str(tmp_path / "out"), lungs="none"
        )
    )
    assert not set(NAMES) & set(made.column_names)
    assert not (tmp_path / "out" / "lungs.png").exists()


def test_a_copy_has_its_own_lungs(ray_cluster, phantom_archive, tmp_path):
    made = prepare(PrepareConfig(archive=(str(phantom_archive),), out=str(tmp_path), materialize_copies=True))
    rows = {row["image_id"]: row for row in made.to_pylist()}
    copies = [row for row in rows.values() if row["copy_of"] is not None]
    assert copies
    for row in copies:
        image = cv2.imread(row["uri"], cv2.IMREAD_GRAYSCALE)
        assert hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest() == row["content_sha256"]
        inside = cv2.resize(image, (128, 128))[decode_mask(row["lung_mask"])]
        assert inside.mean() < image.mean()  # lungs are the dark part
    assert any(row["lung_mask"] != rows[row["copy_of"]]["lung_mask"] for row in copies)


def test_a_segmenter_that_is_missing_is_one_sentence(archive, monkeypatch):
    def gone() -> None:
        raise ModelError(
            "the lung segmenter of this installation cannot be read (No such file); install pneumo_ray again"
        )

    monkeypatch.setattr(segmenter, "own_segmenter", gone)
    with pytest.raises(ModelError, match="install pneumo_ray again"):
        inspected(archive)


@pytest.fixture
def other_segmenter(tmp_path) -> str:
    """A file as jobs/lungs.py writes it, of an untrained network."""
    torch.manual_seed(0)
    segmenter.save_segmenter(str(tmp_path / "other.safetensors"), LungNet((4, 8)), {})
    return str(tmp_path / "other.safetensors")


def test_prepare_finds_lungs_by_another_segmenter(ray_cluster, phantom_archive, manifest, other_segmenter, tmp_path):
    """The masks are those of its network, of copies as well, and not those of the shipped one."""
    config = PrepareConfig(
        (str(phantom_archive),), str(tmp_path / "own"), lungs=other_segmenter, materialize_copies=True
    )
    made = prepare(config)
    images = [square(Path(uri).read_bytes(), CACHE_SIZE) for uri in made["uri"].to_pylist()]
    found = find_lungs([segmenter_input(image) for image in images], other_segmenter)
    assert pc.sum(pc.is_valid(made["copy_of"])).as_py() > 0
    assert made["lung_quality"].to_pylist() == [lungs.quality for _, lungs in found]
    assert made["lung_mask"].to_pylist() == [lung_values(*one)["lung_mask"] for one in found]
    assert manifest["lung_quality"][0].as_py() == "plausible" not in made["lung_quality"].to_pylist()
    assert segmenter_of(made) == segmenter.load_segmenter(other_segmenter).hash
    assert segmenter_of(manifest) == segmenter.own_segmenter().hash != segmenter_of(made)


def test_a_file_that_is_no_segmenter_is_refused(archive, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for name, sentence in (("gone.safetensors", "cannot be read"), ("model.safetensors", "is not a lung segmenter")):
        with pytest.raises(ModelError, match=f"{name} {sentence}.*give .*file that jobs/lungs.py wrote"):
            prepare(PrepareConfig((str(archive),), str(tmp_path / "out"), lungs=str(tmp_path / name)))
    assert not (tmp_path / "out").exists()


class Dazzled:
    """A segmenter that finds lungs only where grey levels vary by more than 20, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def find(self, images: np.ndarray) -> np.ndarray:
        self.shown.append(images)
        crumb = np.zeros((MASK_SIZE, MASK_SIZE), bool)
        crumb[:40, :40] = True
        return np.stack([rectangles(MASK_SIZE) if image.std() > 20 else crumb for image in images])


def test_only_doubtful_images_are_looked_at_twice(monkeypatch):
    """A faint wave gains contrast by equalisation; a flat image cannot; a strong one is not shown again."""
    segmenter_of_test = Dazzled()
    monkeypatch.setattr(segmenter, "own_segmenter", lambda: segmenter_of_test)
    wave = np.tile(np.sin(np.arange(MASK_SIZE) / 2), (MASK_SIZE, 1))
    images = [(128 + height * wave).astype(np.uint8) for height in (90, 20, 0)]
    found = find_lungs(images)
    assert [lungs.quality for _, lungs in found] == ["plausible", "plausible", "one_lung"]
    assert [len(shown) for shown in segmenter_of_test.shown] == [3, 2]
    assert found[2].mask.sum() == 40 * 40
    assert find_lungs([]) == []


FAINT = ("00001629_001", "00002048_014", "00002366_001", "00003847_005", "00003914_001")
"""Films of the other hospital whose lungs the first look misses; somebody has looked at what the second one finds."""


def test_lungs_of_faint_films_are_found():
    folder = Path(__file__).parents[3] / "shared" / "data" / "nih" / "images"
    if not folder.is_dir():
        pytest.skip("../shared/data/nih, films of another hospital, is not beside this checkout")
    paths = [folder / f"nih_{name}.jpg" for name in FAINT]
    images = [segmenter_input(square(path.read_bytes(), CACHE_SIZE)) for path in paths]
    assert [lungs.view for _, lungs in find_lungs(images)] == ["frontal"] * len(FAINT)
    turned = [np.ascontiguousarray(image[::-1]) for image in images]
    assert [lungs.view for _, lungs in find_lungs(turned)] == ["doubtful"] * len(FAINT)


@pytest.mark.parametrize("kind", ["on_its_side", "inverted", "shuffled", "limb", "blank"])
def test_a_second_look_makes_no_new_chests(kind):
    random, images = np.random.default_rng(0), []
    for index in range(12):
        drawn, _ = draw_radiograph(8, index, pneumonia=False, image_size=MASK_SIZE, difficulty=0.3)
        images.append(counterexample(segmenter_input(drawn), kind, random))
    assert [lungs.view for _, lungs in find_lungs(images)] == ["doubtful"] * len(images)


def test_the_audit_counts_reasons_and_doubtful_views(archive):
    table = inspect_entries(list(list_archives([str(archive)])), InspectConfig(lungs=True))
    facts = audit(table)["lungs"]
    assert (facts["looked_at"], facts["quality"]["plausible"], facts["doubtful"]) == (4, 3, 1)
    assert sum(facts["quality"].values()) == 4
    assert any(
        line.startswith("lungs        plausible in 3 of 4; doubtful views 1 (25.0%)")
        for line in audit_lines(audit(table))
    )
    assert "lungs" not in audit(table.drop_columns(NAMES))


@pytest.mark.parametrize("name", ["kodak_cr500_hand_j2k.dcm"])
def test_real_images_without_a_chest_are_doubtful(name):
    path = Path(__file__).parents[3] / "shared" / "data" / "dicom" / name
    if not path.exists():
        pytest.skip("../shared/data/dicom is not beside this checkout")
    (row,) = inspected(path)
    assert (row["status"], row["view"]) == ("ok", "doubtful")
    assert pc.is_valid(pa.scalar(row["lung_quality"])).as_py()
