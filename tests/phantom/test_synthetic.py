import dataclasses
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.phantom import synthetic as phantom
from pneumo_ray.phantom.synthetic import PhantomConfig, draw_radiograph, pneumonia_subtype, write_phantom_archive

seeds = st.integers(0, 2**63 - 1)
indices = st.integers(0, 10**6)
sizes = st.integers(64, 160)
many = settings(deadline=None, max_examples=25)


def pair(seed: int, index: int, size: int = 128, difficulty: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the healthy image, the ill one and the ill one's boxes."""
    healthy, none = draw_radiograph(seed, index, pneumonia=False, image_size=size, difficulty=difficulty)
    ill, boxes = draw_radiograph(seed, index, pneumonia=True, image_size=size, difficulty=difficulty)
    assert none.shape == (0, 4)
    assert none.dtype == boxes.dtype == np.int32
    return healthy.astype(int), ill.astype(int), boxes


def inside(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


# ---- one image -----------------------------------------------------------------------------------------------------


def test_images_ignore_the_order_of_calls() -> None:
    def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
        return draw_radiograph(7, index, pneumonia=True, image_size=96, difficulty=0.5)

    forwards = [draw(index) for index in range(6)]
    np.random.seed(1)
    backwards = [draw(index) for index in reversed(range(6))][::-1]
    for (image, boxes), (again, boxes_again) in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(boxes, boxes_again)
    assert len({image.tobytes() for image, _ in forwards}) == 6


@many
@given(seed=seeds, index=indices, size=sizes, difficulty=st.floats(0, 1))
def test_pneumonia_brightens_its_boxes_only(seed: int, index: int, size: int, difficulty: float) -> None:
    """The strongest proof that there is no shortcut: the same chest with and without opacities, bit by bit."""
    healthy, ill, boxes = pair(seed, index, size, difficulty)
    assert healthy.shape == ill.shape
    assert healthy.shape[1] == size
    assert 0.79 * size <= healthy.shape[0] <= 1.11 * size
    outside = ~inside(boxes, healthy.shape)
    np.testing.assert_array_equal(healthy[outside], ill[outside])
    assert (ill >= healthy).all()
    for x0, y0, x1, y1 in boxes:
        assert (ill - healthy)[y0:y1, x0:x1].mean() > 0.3


@many
@given(seed=seeds, index=indices, size=sizes)
@example(seed=1, index=1233, size=320)  # a closed collimator hides the base of the lungs
def test_boxes_are_tight_around_what_changed(seed: int, index: int, size: int) -> None:
    """Every edge of a box lies within a few pixels of changed ones, found from the two images alone."""
    healthy, ill, boxes = pair(seed, index, size)
    changed = ill - healthy >= 2
    slack = 5
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= ill.shape[1]
        assert 0 <= y0 < y1 <= ill.shape[0]
        box = changed[y0:y1, x0:x1]
        assert box[:slack].any()
        assert box[-slack:].any()
        assert box[:, :slack].any()
        assert box[:, -slack:].any()


def test_opacities_lie_in_the_lungs() -> None:
    """What changed is aerated, and each opacity stays on one side of the midline."""
    for index in range(80):
        healthy, ill, boxes = pair(6, index, size=64)
        view = phantom._rng(6, phantom._VIEW, index)
        canvas = phantom.Canvas(view, 64)
        _, air, _ = phantom.draw_chest(canvas, phantom._rng(6, phantom._BODY, index), view)
        assert (air[ill > healthy] > 0.1).all()
        middle = canvas.center[0]
        assert all(x1 <= np.ceil(middle) or x0 >= np.floor(middle) for x0, _, x1, _ in boxes)


def test_lungs_are_dark_and_the_heart_right() -> None:
    mean = np.mean(
        [
            cv2.resize(draw_radiograph(0, index, pneumonia=False, image_size=128, difficulty=0)[0], (128, 128))
            for index in range(24)
        ],
        axis=0,
    )
    right_lung, spine, left_lung = mean[50:60, 30:40].mean(), mean[50:60, 62:66].mean(), mean[50:60, 88:98].mean()
    assert max(right_lung, left_lung) + 60 < spine
    beside_spine_right, beside_spine_left = mean[70:80, 45:50].mean(), mean[70:80, 78:83].mean()
    assert beside_spine_right + 40 < beside_spine_left


def test_difficulty_takes_contrast_away_pixel_by_pixel() -> None:
    for index in range(5):
        steps = [pair(11, index, difficulty=d) for d in (0.0, 0.25, 0.5, 0.75, 1.0)]
        gains = [ill - healthy for healthy, ill, _ in steps]
        assert all((harder <= easier).all() for easier, harder in pairwise(gains))
        means = [gain.sum() for gain in gains]
        assert all(b < 0.85 * a for a, b in pairwise(means))
        assert means[-1] > 0
        assert all(np.array_equal(boxes, steps[0][2]) for _, _, boxes in steps)


def test_subtypes_differ_in_number_of_opacities() -> None:
    seen: dict[str, set[int]] = {"bacteria": set(), "virus": set()}
    for index in range(40):
        _, boxes = draw_radiograph(5, index, pneumonia=True, image_size=64, difficulty=0)
        seen[pneumonia_subtype(5, index)].add(len(boxes))
    assert seen == {"bacteria": {1, 2}, "virus": {2, 3}}


def test_patients_key_bodies_and_indices_views() -> None:
    def draw(index: int, patient: int | None) -> np.ndarray:
        return draw_radiograph(2, index, pneumonia=False, image_size=96, difficulty=0, patient=patient)[0]

    np.testing.assert_array_equal(draw(5, None), draw(5, 5))
    of_one, of_another, on_another_day = draw(5, 1), draw(5, 2), draw(6, 1)
    assert of_one.shape == of_another.shape  # the height belongs to the view
    assert (of_one != of_another).mean() > 0.5
    assert of_one.shape != on_another_day.shape or (of_one != on_another_day).mean() > 0.5


# ---- the archive -----------------------------------------------------------------------------------------------------

CONFIG = PhantomConfig(num_images=400, image_size=96, pneumonia_fraction=0.6, difficulty=0.3, seed=4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_archive(tmp_path_factory.mktemp("phantom") / "archive", CONFIG)


def read_grey(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert image.ndim == 2
    return image


def image_ids(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpeg"))


def test_layout_and_names_are_kermanys(archive: Path) -> None:
    ids = image_ids(archive)
    assert len(ids) == 400
    assert sum("/PNEUMONIA/" in i for i in ids) == 240
    assert 0.18 <= sum(i.startswith("test/") for i in ids) / 400 <= 0.22
    normal = re.compile(r"(train|test)/NORMAL/IM-\d{4}-\d{4}\.jpeg")
    pneumonia = re.compile(r"(train|test)/PNEUMONIA/person\d+_(bacteria|virus)_\d+\.jpeg")
    assert all(normal.fullmatch(i) or pneumonia.fullmatch(i) for i in ids)
    others = {p.name for p in archive.rglob("*") if p.is_file() and p.suffix != ".jpeg"}
    assert others == {"boxes.parquet", "lungs.parquet", "phantom.json"}


def test_patients_stay_in_one_folder(archive: Path) -> None:
    folders: dict[int, set[str]] = {}
    images: dict[int, int] = {}
    for image_id in image_ids(archive):
        patient = int(re.sub(r".*/(?:IM-|person)(\d+).*", r"\1", image_id))
        folders.setdefault(patient, set()).add(str(Path(image_id).parent))
        images[patient] = images.get(patient, 0) + 1
    assert all(len(where) == 1 for where in folders.values())
    assert max(images.values()) > 1
    assert np.mean(list(images.values())) == pytest.approx(CONFIG.images_per_patient, abs=0.15)


def test_boxes_table_covers_exactly_the_pneumonia_images(archive: Path) -> None:
    table = pq.read_table(archive / "boxes.parquet")
    assert table.column_names == ["image_id", "x0", "y0", "x1", "y1", "width", "height"]
    rows = table.to_pylist()
    assert {row["image_id"] for row in rows} == {i for i in image_ids(archive) if "/PNEUMONIA/" in i}
    for row in rows[::7]:
        assert read_grey(archive / row["image_id"]).shape == (row["height"], row["width"])
        assert 0 <= row["x0"] < row["x1"] <= row["width"]
        assert 0 <= row["y0"] < row["y1"] <= row["height"]


def test_files_hold_no_shortcut_to_the_class(archive: Path) -> None:
    """From file size, shape, corners and border strips, which opacities never reach, the class cannot be guessed."""
    features, labels = [], []
    for image_id in image_ids(archive):
        path = archive / image_id
        image = read_grey(path).astype(float)
        height, width = image.shape
        parts = [image[:8, :8], image[:8, -8:], image[-8:, :8], image[-8:, -8:]]
        parts += [image[:5], image[-5:], image[:, :5], image[:, -5:]]
        features.append([path.stat().st_size / (width * height), path.stat().st_size, width, height])
        features[-1] += [value for part in parts for value in (part.mean(), part.std())]
        labels.append("/PNEUMONIA/" in image_id)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    assert cross_val_score(model, np.array(features), np.array(labels), cv=10, scoring="roc_auc").mean() < 0.6


def snapshot(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


SMALL = PhantomConfig(num_images=12, image_size=64, seed=9)


def test_same_config_writes_the_same_bytes(tmp_path: Path) -> None:
    one = write_phantom_archive(tmp_path / "one", SMALL)
    assert one == tmp_path / "one"
    two = write_phantom_archive(tmp_path / "deep" / "two", SMALL)
    assert snapshot(one) == snapshot(two)
    other = write_phantom_archive(tmp_path / "three", dataclasses.replace(SMALL, seed=10))
    assert snapshot(one) != snapshot(other)


def test_rerun_does_nothing_and_another_config_is_refused(tmp_path: Path) -> None:
    calls: list[int] = []
    write_phantom_archive(tmp_path / "a", SMALL, calls.append)
    assert calls == list(range(1, 13))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    write_phantom_archive(tmp_path / "a", SMALL, calls.append)
    assert len(calls) == 12
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == times
    with pytest.raises(ConfigError, match="another folder"):
        write_phantom_archive(tmp_path / "a", dataclasses.replace(SMALL, difficulty=0.1))


@pytest.mark.parametrize("as_file", [True, False])
def test_something_else_at_the_place_is_left_alone(tmp_path: Path, as_file: bool) -> None:
    place = tmp_path / "a"
    keep = place if as_file else place / "keep.txt"
    keep.parent.mkdir(exist_ok=True)
    keep.write_text("mine")
    with pytest.raises(ConfigError, match="another folder"):
        write_phantom_archive(place, SMALL)
    assert keep.read_text() == "mine"


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom_archive(tmp_path / "a", SMALL, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_writing_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_phantom_archive(tmp_path / "file" / "a", SMALL)


@settings(deadline=None, max_examples=60)
@given(
    num_images=st.integers(8, 200),
    fraction=st.floats(0.05, 0.95),
    per_patient=st.floats(1, 3),
    seed=seeds,
)
def test_the_plan_fills_folders_by_patient(num_images: int, fraction: float, per_patient: float, seed: int) -> None:
    assume(4 <= round(num_images * fraction) <= num_images - 4)
    config = PhantomConfig(num_images, pneumonia_fraction=fraction, images_per_patient=per_patient, seed=seed)
    plan = list(phantom._plan_archive(config))
    assert len({image_id for image_id, *_ in plan}) == num_images
    assert [index for _, index, _, _ in plan] == list(range(num_images))
    assert len({image_id.rsplit("/", 1)[0] for image_id, *_ in plan}) == 4
    folders = {(patient, image_id.rsplit("/", 1)[0]) for image_id, _, patient, _ in plan}
    assert len({patient for patient, _ in folders}) == len(folders)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_images", 7),
        ("num_images", -1),
        ("image_size", 63),
        ("pneumonia_fraction", 0.0),
        ("pneumonia_fraction", 1.0),
        ("difficulty", 1.01),
        ("difficulty", float("nan")),
        ("seed", -1),
        ("images_per_patient", 0.9),
        ("images_per_patient", 3.5),
    ],
)
def test_bad_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"phantom.{option}"):
        dataclasses.replace(PhantomConfig(), **{option: value})


def test_lungs_lie_where_the_air_is():
    """The outline holds nearly all of the air, nothing of the midline, and both sides; pneumonia does not move it."""
    for index in range(4):
        view = phantom._rng(6, phantom._VIEW, index)
        canvas = phantom.Canvas(view, 160)
        _, air, _ = phantom.draw_chest(canvas, phantom._rng(6, phantom._BODY, index), view)
        lungs = phantom.draw_lungs(6, index, image_size=160)
        assert lungs.shape == air.shape
        assert lungs[air > 0.6].mean() > 0.97
        assert 0.1 < lungs.mean() < 0.6
        parts, _ = cv2.connectedComponents(lungs.astype(np.uint8))
        assert parts == 3  # the background and two lungs


def test_archives_hold_the_lungs_of_every_image(tmp_path):
    config = PhantomConfig(num_images=10, image_size=96)
    root = phantom.write_phantom_archive(tmp_path / "archive", config)
    rows = pq.read_table(root / "lungs.parquet").to_pylist()
    assert sorted(row["image_id"] for row in rows) == sorted(str(p.relative_to(root)) for p in root.rglob("*.jpeg"))
    for row in rows:
        mask = cv2.imdecode(np.frombuffer(row["mask_png"], np.uint8), cv2.IMREAD_GRAYSCALE)
        image = cv2.imread(str(root / row["image_id"]), cv2.IMREAD_GRAYSCALE)
        assert mask.shape == image.shape
        assert set(np.unique(mask)) == {0, 255}
