"""The frame of the network's input: windows by arithmetic, measures of maps in the open, and a job on a real Ray."""

import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from pneumo_ray.anatomy import segmenter, segmenter_file
from pneumo_ray.anatomy.lungs import Lungs, lungs_of, zone_masks
from pneumo_ray.anatomy.masks import encode_mask
from pneumo_ray.data.dataset import load_inputs, seen_by_network
from pneumo_ray.data.manifest import LUNG_FIELDS, SCHEMA, read_manifest, write_manifest
from pneumo_ray.errors import ModelError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.matching import match
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.explain import ZONES
from pneumo_ray.images.decode import decode_image
from pneumo_ray.images.fit import OF_LUNGS
from pneumo_ray.images.framing import Shape
from pneumo_ray.model import Preprocessing, load_bundle, save_bundle
from pneumo_ray.report.job import write_evaluation
from pneumo_ray.score.begin import check_method, models_of, zones_of
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.decode import Failure, load_image, load_images
from pneumo_ray.score.frame import (
    Decoded,
    Framed,
    box_in_input,
    frame_images,
    input_window,
    known_lungs,
    map_functionals,
)
from pneumo_ray.score.job import explain_archive

NOTHING = dict.fromkeys(("error", "member", "frame", "shape_width", "shape_height", "lung_quality", "lung_mask"))


def lungs(size: int = 128) -> Lungs:
    """Right lung in columns 1/8 to 3/8, left in 5/8 to 7/8, both in rows 1/4 to 3/4."""
    mask = np.zeros((size, size), bool)
    mask[size // 4 : 3 * size // 4, size // 8 : 3 * size // 8] = True
    mask[size // 4 : 3 * size // 4, 5 * size // 8 : 7 * size // 8] = True
    return lungs_of(mask)


def noise(size: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size)).astype(np.uint8)


def test_windows_follow_from_the_shape_and_the_box():
    """Twice as wide as high: padding doubles the height; lungs 0.75 wide and 0.25 of the width high are a square of 0.75."""
    wide = Shape(200, 100)
    assert input_window(Preprocessing(64, 73), wide, lungs(), 256) == pytest.approx((4 / 73, 4 / 73, 68 / 73, 68 / 73))
    assert input_window(Preprocessing(64, 73, fit="pad"), wide, lungs(), 256) == (0, -0.5, 1, 1.5)
    whole = input_window(Preprocessing(64, 73, fit="lungs", margin=0.0), wide, lungs(), 256)
    assert whole == (1 / 8, -1 / 4, 7 / 8, 5 / 4)
    with_margin = input_window(Preprocessing(64, 73, fit="lungs", margin=0.5), wide, lungs(), 256)
    assert with_margin == (-1 / 4, -1, 5 / 4, 2)


@pytest.mark.parametrize("found", [None, Lungs(None, None, "no_lungs"), Lungs(lungs().right, None, "one_lung")])
def test_lungs_that_are_not_plausible_are_padded(found):
    fits = [Preprocessing(64, 73, fit=fit) for fit in ("pad", "lungs")]
    assert input_window(fits[1], Shape(3, 4), found, 256) == input_window(fits[0], Shape(3, 4), None, 256)


def test_inputs_show_the_square_and_black_outside():
    image = Decoded(noise(), Shape(200, 100))
    (padded,) = frame_images([image], [None], Preprocessing(128, 146, fit="pad"), find=False)
    assert not padded.pixels[:32].any()
    assert not padded.pixels[96:].any()
    expected = cv2.resize(image.square, (128, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(padded.pixels[32:96].astype(int) - expected).max() <= 1
    (cropped,) = frame_images([image], [lungs()], Preprocessing(192, 219, fit="lungs", margin=0.0), find=False)
    assert (
        cropped.pixels[32:160, :][0] == cv2.resize(image.square[:, 32:224], (192, 128), interpolation=cv2.INTER_AREA)[0]
    ).all()


def test_pixels_of_squashed_inputs_are_unchanged(phantom_archive):
    path = next(phantom_archive.glob("train/NORMAL/*.jpeg"))
    (found,) = load_images([NOTHING | {"uri": str(path)}], Preprocessing(64, 73), find=False)
    assert isinstance(found, Framed)
    assert (found.pixels == seen_by_network(decode_image(path.read_bytes(), min_size=256), 73, 64)).all()


@pytest.mark.parametrize("fit", ["squash", "pad", "lungs", "lungs-squash"])
def test_scoring_and_training_see_the_same_pixels(fit, phantom_run):
    manifest = read_manifest(str(phantom_run / "manifest.parquet")).slice(0, 6)
    trained = load_inputs(manifest, 64, None, fit)
    listed = [
        NOTHING | {name: row[name] for name in ("uri", "lung_quality", "lung_mask")} for row in manifest.to_pylist()
    ]
    for rows in (listed, [row | {"lung_quality": None, "lung_mask": None} for row in listed]):
        scored = load_images(rows, Preprocessing(64, 73, fit=fit), find=True)
        assert (np.stack([image.pixels for image in scored]) == trained).all()


@pytest.mark.parametrize("fit", OF_LUNGS)
def test_unlisted_images_are_cropped_to_their_lungs(fit, phantom_archive):
    path, preprocessing = next(phantom_archive.rglob("*.jpeg")), Preprocessing(64, 73, fit=fit)
    (found,) = load_images([NOTHING | {"uri": str(path)}], preprocessing, find=True)
    assert found.lungs.quality == "plausible"
    assert (load_image(str(path), None, None, preprocessing) == found.pixels).all()


@pytest.mark.parametrize(
    ("fit", "zones"), [("squash", "image"), ("pad", "image"), *((fit, "lungs") for fit in OF_LUNGS)]
)
def test_zones_are_of_lungs_shown_in_the_input(fit, zones):
    config = ExplainConfig(model="m", out="o", archive=("a",))
    assert zones_of(config, Preprocessing(64, 73, fit=fit)) == zones
    assert config.finds_lungs(fit) == (zones == "lungs")


def test_listed_lungs_are_used_unless_mask_is_damaged():
    row = {"lung_quality": "plausible", "lung_mask": encode_mask(lungs().mask)}
    assert (known_lungs(row).mask == lungs().mask).all()
    assert known_lungs(row | {"lung_quality": "one_lung"}) == Lungs(None, None, "one_lung")
    assert known_lungs({"lung_quality": None, "lung_mask": None}) is None
    assert known_lungs(row | {"lung_mask": b"no mask"}) is None


@pytest.mark.parametrize("window", [(0.0, 0.0, 1.0, 1.0), (0.1, -0.2, 0.9, 1.1), (0.125, 0.25, 0.875, 0.75)])
def test_map_measures_equal_those_of_the_upsampled_map(window):
    """The mask is sampled at 64 points a pixel of the input, as a person would draw it there."""
    size, cells = 40, (5, 5)
    frame = Framed(np.zeros((size, size), np.uint8), window, lungs(), Decoded(noise(), Shape(1, 1)))
    found = map_functionals(frame, cells)
    cam = np.random.default_rng(1).random(cells).astype(np.float32)
    fine = F.interpolate(torch.from_numpy(cam)[None, None], size=(size, size), mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    steps = (np.arange(8 * size) + 0.5) / (8 * size)
    x, y = window[0] + steps * (window[2] - window[0]), window[1] + steps * (window[3] - window[1])

    def share(mask: np.ndarray) -> np.ndarray:
        inside = ((y >= 0) & (y < 1))[:, None] & ((x >= 0) & (x < 1))
        rows, columns = (np.clip((v * 128).astype(int), 0, 127) for v in (y, x))
        return (inside & mask[np.ix_(rows, columns)]).reshape(size, 8, size, 8).mean((1, 3))

    measured = found @ cam.ravel()
    for number, zone in enumerate(zone_masks(lungs())):
        weight = share(zone)
        assert measured[number] == pytest.approx((weight * fine).sum() / weight.sum(), rel=0.02)
    assert measured[6] / measured[7] == pytest.approx((share(lungs().mask) * fine).sum() / fine.sum(), rel=0.02)
    height, width = cells
    centres = [
        (
            window[0] + (c + 0.5) / width * (window[2] - window[0]),
            window[1] + (r + 0.5) / height * (window[3] - window[1]),
        )
        for r in range(height)
        for c in range(width)
    ]
    inside = [0.25 <= cy < 0.75 and (0.125 <= cx < 0.375 or 0.625 <= cx < 0.875) for cx, cy in centres]
    assert found[8].tolist() == inside


def test_implausible_lungs_give_none_and_lungs_outside_nan():
    image = Decoded(noise(), Shape(1, 1))
    blank = np.zeros((40, 40), np.uint8)
    for found in (None, Lungs(None, None, "no_lungs"), Lungs(lungs().right, None, "one_lung")):
        assert map_functionals(Framed(blank, (0, 0, 1, 1), found, image), (5, 5)) is None
    right_half = map_functionals(Framed(blank, (0.0, 0.0, 0.5, 1.0), lungs(), image), (5, 5))
    assert np.isnan(right_half[1:6:2]).all()
    assert np.isfinite(right_half[0:6:2]).all()


def test_image_boxes_become_input_pixels():
    assert box_in_input((0.25, 0.25, 0.75, 0.75), (0.0, -0.5, 1.0, 1.5), 64) == (16, 24, 48, 40)
    assert box_in_input((0.0, 0.0, 0.1, 0.1), (0.5, 0.5, 1.0, 1.0), 64) is None


# ---- a job -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(phantom_archive, tmp_path_factory) -> Path:
    """12 phantoms of another shape, one of them on its head, an image without lungs, and a file that is none."""
    folder = tmp_path_factory.mktemp("frames")
    for number, path in enumerate(sorted(phantom_archive.glob("train/*/*.jpeg"))[:12]):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    cv2.imwrite(str(folder / "head.png"), image[::-1])
    cv2.imwrite(str(folder / "blank.png"), np.tile(np.arange(200, dtype=np.uint8), (100, 1)))
    (folder / "text.png").write_bytes(b"text")
    return folder


@pytest.fixture(scope="module")
def cropping(model, tmp_path_factory) -> Path:
    """The random model, whose input shows the lungs."""
    folder = tmp_path_factory.mktemp("bundle") / "cropping"
    save_bundle(folder, load_bundle(model).model, preprocessing=Preprocessing(64, 73, fit="lungs"), temperature=1.5)
    return folder


@pytest.fixture(scope="module")
def rows(ray_cluster, archive, cropping, tmp_path_factory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("scores")
    explain_archive(
        ExplainConfig(model=str(cropping), out=str(out), archive=(str(archive),), amp="off", render=True, top=2)
    )
    assert (out / "pictures" / "uncertain.png").exists()
    table = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))])
    first = table.column_names.index("crop_x0")
    assert table.column_names[first : first + 8] == [
        "crop_x0",
        "crop_y0",
        "crop_x1",
        "crop_y1",
        "lung_quality",
        "view",
        "lung_share",
        "peak_in_lungs",
    ]
    return {row["image_id"].rpartition("/")[2]: row for row in table.to_pylist()}


def test_images_without_a_manifest_are_cropped_to_lungs(rows, archive):
    for number in range(12):
        row = rows[f"{number}.png"]
        assert (row["lung_quality"], row["view"]) == ("plausible", "frontal")
        height, width = cv2.imread(str(archive / f"{number}.png"), cv2.IMREAD_GRAYSCALE).shape
        x0, y0, x1, y1 = (row[f"crop_{edge}"] for edge in ("x0", "y0", "x1", "y1"))
        assert (x1 - x0) * width == pytest.approx((y1 - y0) * height, rel=0.03)  # square in true pixels, to 1 of 256
        assert (x1 - x0) < 1


def test_images_without_lungs_are_padded_scored_and_marked(rows):
    for name in ("blank.png", "head.png"):
        assert rows[name]["status"] == "ok"
        assert rows[name]["view"] == "doubtful"
        assert rows[name]["lung_quality"] != "plausible"
        assert rows[name]["lung_share"] is rows[name]["peak_in_lungs"] is rows[name]["zone_mean_left_lower"] is None
    # 200 x 100: the whole width, and twice the height.
    assert [rows["blank.png"][f"crop_{edge}"] for edge in ("x0", "y0", "x1", "y1")] == [0, -0.5, 1, 1.5]


def test_a_failed_row_says_nothing_of_lungs(rows):
    row = rows["text.png"]
    assert row["status"] == "failed"
    assert all(row[name] is None for name in ("crop_x0", "lung_quality", "view", "lung_share", "peak_in_lungs"))


def test_zones_and_shares_measure_the_map_in_lungs(rows, archive):
    """Drawn in the open: the stored map is upsampled, the lungs are found again, and both are multiplied pixel by pixel."""
    for number in range(0, 12, 3):
        row = rows[f"{number}.png"]
        (frame,) = load_images(
            [NOTHING | {"uri": str(archive / f"{number}.png")}], Preprocessing(64, 73, fit="lungs"), find=True
        )
        assert not isinstance(frame, Failure)
        cam = torch.tensor(row["cam_mean"]).reshape(1, 1, 2, 2)
        fine = F.interpolate(cam, size=(64, 64), mode="bilinear", align_corners=False)[0, 0].numpy()
        x0, y0, x1, y1 = (row[f"crop_{edge}"] for edge in ("x0", "y0", "x1", "y1"))
        steps = (np.arange(64) + 0.5) / 64
        x, y = x0 + steps * (x1 - x0), y0 + steps * (y1 - y0)
        inside = ((y >= 0) & (y < 1))[:, None] & ((x >= 0) & (x < 1))
        at = np.ix_(*(np.clip((v * 128).astype(int), 0, 127) for v in (y, x)))
        mask = inside & frame.lungs.mask[at]
        assert row["lung_share"] == pytest.approx((mask * fine).sum() / fine.sum(), abs=0.02)
        for zone, area in zip(ZONES, zone_masks(frame.lungs), strict=True):
            weight = inside & area[at]
            assert row[f"zone_mean_{zone}"] == pytest.approx((weight * fine).sum() / weight.sum(), rel=0.05)


def test_a_missing_segmenter_is_reported_in_one_sentence(ray_cluster, archive, cropping, tmp_path, monkeypatch):
    def gone(package: str) -> Path:
        return tmp_path / "nowhere"

    segmenter.own_segmenter.cache_clear()
    monkeypatch.setattr(segmenter_file, "files", gone)
    with pytest.raises(
        ModelError, match=r"the lung segmenter of this installation cannot be read .* install pneumo_ray again"
    ):
        explain_archive(ExplainConfig(model=str(cropping), out=str(tmp_path / "out"), archive=(str(archive),)))
    assert not (tmp_path / "out").exists()
    segmenter.own_segmenter.cache_clear()


@pytest.mark.faults
def test_zones_are_of_known_lungs_or_the_image(ray_cluster, phantom_run, phantom_archive, model, tmp_path):
    shared = {"model": str(model), "amp": "off", "passes": 2}
    explain_archive(ExplainConfig(**shared, out=str(tmp_path / "a"), manifest=str(phantom_run / "manifest.parquet")))
    explain_archive(ExplainConfig(**shared, out=str(tmp_path / "b"), archive=(str(phantom_archive / "test"),)))
    modes = {}
    for out in ("a", "b"):
        table = pq.read_table(next((tmp_path / out).glob("*.parquet")))
        modes[out] = (
            table.schema.metadata[b"method"].decode(),
            table["lung_share"].null_count,
            table["crop_x0"][0].as_py(),
        )
    assert '"zones": "lungs"' in modes["a"][0]
    assert '"zones": "image"' in modes["b"][0]
    assert modes["a"][1] == 0
    assert modes["b"][1] > 0
    assert modes["a"][2] == modes["b"][2] == pytest.approx(4 / 73)


def test_label_and_score_views_do_not_conflict(phantom_run, cropping, tmp_path):
    """Projection of a label table: AP and PA are subgroups of the evaluation."""
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    place = manifest.column_names.index("view")
    manifest = manifest.set_column(place, "view", pa.array(["AP", "PA"] * (len(manifest) // 2)))
    write_manifest(manifest, str(tmp_path / "m.parquet"))
    explain_archive(
        ExplainConfig(model=str(cropping), out=str(tmp_path / "scores"), manifest=str(tmp_path / "m.parquet"), passes=2)
    )
    found = match(read_scores(str(tmp_path / "scores")), manifest, "m")
    assert set(found.table["view"].to_pylist()) == {"AP", "PA"}
    assert set(found.table["lung_quality"].to_pylist()) == {"plausible"}
    write_evaluation(
        EvaluateConfig(
            scores=str(tmp_path / "scores"), manifest=str(tmp_path / "m.parquet"), out=str(tmp_path / "report")
        )
    )
    page = (tmp_path / "report" / "report.html").read_text()
    windows = [[float(edge) for edge in found.split(",")] for found in re.findall(r'"window": \[([^]]*)\]', page)]
    assert windows
    assert all(0 < x1 - x0 < 1 for x0, _, x1, _ in windows)


@pytest.mark.parametrize("case", ["folder", "manifest", "no lungs", "same", "given", "squash"])
def test_lungs_of_another_segmenter_are_warned_of(case, tmp_path, model, capfd):
    """Where the model is given lungs: of the manifest, else those that the installation finds; a table's are nobody's."""
    bundle, own = load_bundle(model), segmenter.own_segmenter().hash
    trained = own if case in ("same", "manifest") else "a" * 64
    save_bundle(
        tmp_path / "model",
        bundle.model,
        preprocessing=Preprocessing(64, 73, fit="squash" if case == "squash" else "lungs"),
        temperature=1.0,
        operating_point=bundle.operating_point,
        provenance={"manifest": {"segmenter": trained}},
    )
    archive: dict[str, object] = {"archive": ("a",)}
    if case in ("manifest", "no lungs", "given"):
        row: dict[str, object] = {
            "image_id": "a",
            "uri": "/a.jpg",
            "status": "ok",
            "lung_mask": encode_mask(np.eye(8) > 0),
        }
        row["lung_quality"] = None if case == "no lungs" else "plausible"
        rows = pa.Table.from_pylist([row], schema=pa.unify_schemas([SCHEMA, pa.schema(LUNG_FIELDS)]))
        rows = rows.replace_schema_metadata({"segmenter": "b" * 64} if case == "manifest" else None)
        write_manifest(rows, str(tmp_path / "manifest.parquet"))
        archive = {"manifest": str(tmp_path / "manifest.parquet")}
    config = ExplainConfig(model=str(tmp_path / "model"), out="o", **archive)
    models = models_of(config)
    check_method(config.resolved(models.site, "image", models.posterior), models)
    warned = "".join(capfd.readouterr())
    expected = {
        "folder": f"aaaaaaaaaaaa found.*{own[:12]}, that of this installation",
        "manifest": "bbbbbbbbbbbb, that of the manifest",
    }
    expected["no lungs"] = expected["folder"]
    assert (re.search(expected[case], warned) is not None) if case in expected else "segmenter" not in warned
