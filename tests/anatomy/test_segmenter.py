"""The segmenter's file, and what the shipped one finds: on phantoms always, on real radiographs where they are at hand."""

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.anatomy.lungs import MASK_SIZE, PLAUSIBLE, lung_quality, lungs_of
from pneumo_ray.anatomy.masks import decode_mask, resize_mask
from pneumo_ray.anatomy.network import LungNet, standardised
from pneumo_ray.anatomy.objective import dice, mask_loss
from pneumo_ray.anatomy.segmenter import load_segmenter, own_segmenter, save_segmenter
from pneumo_ray.data.dataset import CACHE_SIZE, square
from pneumo_ray.errors import DecodeError, ModelError
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.phantom.synthetic import draw_lungs, draw_radiograph

REAL = Path(__file__).parents[3] / "shared" / "data"
SHIPPED = Path(__file__).parents[2] / "pneumo_ray" / "anatomy" / "lungs.safetensors"


def as_seen(path: Path) -> np.ndarray:
    return resize_grey(square(path.read_bytes(), CACHE_SIZE), MASK_SIZE)


def small_network() -> LungNet:
    torch.manual_seed(0)
    network = LungNet((4, 8))
    network.train()
    network(torch.rand(4, MASK_SIZE, MASK_SIZE) * 255)  # statistics that are not those of a fresh network
    return network.eval()


def header(data: bytes) -> dict:
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


# ---- the file --------------------------------------------------------------------------------------------------------


def test_shipped_file_is_small_and_states_its_hash():
    assert SHIPPED.stat().st_size < 1_500_000
    description = json.loads(header(SHIPPED.read_bytes())["__metadata__"]["description"])
    assert own_segmenter().hash == description["hash"]
    assert own_segmenter().provenance == description["provenance"]


def test_network_has_under_half_a_million_parameters():
    assert sum(parameter.numel() for parameter in LungNet().parameters()) == 338_404
    stored = {name: value for name, value in header(SHIPPED.read_bytes()).items() if name != "__metadata__"}
    statistics = sum(np.prod(v["shape"]) for name, v in stored.items() if "running" in name)
    assert sum(np.prod(v["shape"]) for v in stored.values()) - statistics == 338_404


def test_saved_network_answers_as_before(tmp_path):
    network, path = small_network(), str(tmp_path / "lungs.safetensors")
    digest = save_segmenter(path, network, {"epoch": 3})
    segmenter = load_segmenter(path)
    assert (segmenter.hash, segmenter.provenance) == (digest, {"epoch": 3})
    images = np.random.default_rng(0).integers(0, 256, (5, MASK_SIZE, MASK_SIZE), np.uint8)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    # The shipped form folds the normalisation and computes in bfloat16 where the CPU has it.
    assert np.abs(segmenter.logits(images) - expected).max() < 0.05 * np.abs(expected).max()


def test_same_network_makes_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_segmenter(str(tmp_path / name), small_network(), {"epoch": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_changed_weight_is_refused(tmp_path):
    path = tmp_path / "lungs.safetensors"
    save_segmenter(str(path), small_network(), {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="changed"):
        load_segmenter(str(path))


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"\x08" + bytes(7) + b"{}      ", b"\xff" * 64])
def test_foreign_files_are_refused(tmp_path, data):
    path = tmp_path / "lungs.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is not a lung segmenter"):
        load_segmenter(str(path))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be read \(No such file"):
        load_segmenter(str(tmp_path / "gone"))


# ---- what it computes ------------------------------------------------------------------------------------------------


def test_contrast_and_brightness_change_nothing():
    image = torch.from_numpy(draw_radiograph(0, 1, pneumonia=False, image_size=128, difficulty=0.5)[0]).float()[None]
    torch.testing.assert_close(standardised(0.3 * image + 70), standardised(image), atol=2e-3, rtol=1e-3)
    assert standardised(torch.full((1, 4, 4), 9.0)).abs().max() == 0


def test_answers_do_not_depend_on_the_batch():
    images = np.stack(
        [resize_grey(draw_radiograph(5, i, pneumonia=True, image_size=128, difficulty=0.5)[0], 128) for i in range(3)]
    )
    images = np.concatenate([images] * 12)[:35]
    images.flags.writeable = False
    together = own_segmenter().find(images)
    alone = np.concatenate([own_segmenter().find(images[i : i + 1]) for i in range(3)])
    assert dice(together[:3], alone).min() > 0.999
    assert own_segmenter().find(images[:0]).shape == (0, MASK_SIZE, MASK_SIZE)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 64, 64), np.uint8), np.zeros((1, 128, 128), np.float32), np.zeros((128, 128), np.uint8)]
)
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8"):
        own_segmenter().find(images)


def test_dice_of_known_areas():
    a, b = np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), bool)
    assert dice(a, b).tolist() == [1.0]
    a[0, :2], b[0, 1:3] = True, True  # 8 and 8 pixels, 4 of them shared
    assert dice(a, b).tolist() == [0.5]


def test_loss_is_least_for_the_mask_itself():
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 2:6] = 1
    right, wrong = mask_loss(20 * (mask - 0.5), mask), mask_loss(-20 * (mask - 0.5), mask)
    assert right < 0.01
    # 10 nats of cross-entropy; 48 wrong and 16 right pixels, none shared: 1 - 32 / (48 + 16 + 32)
    assert float(wrong) == pytest.approx(10 + 1 - 32 / 96, abs=0.01)
    assert mask_loss(torch.full((1, 8, 8), -20.0), torch.zeros(1, 8, 8)) < 0.01


# ---- what the shipped one finds --------------------------------------------------------------------------------------


def test_lungs_of_unseen_phantoms_are_found():
    images, masks = [], []
    for index in range(20):
        images.append(
            resize_grey(draw_radiograph(3, index, pneumonia=index % 2 == 0, image_size=224, difficulty=0.3)[0], 128)
        )
        masks.append(resize_mask(draw_lungs(3, index, image_size=224)) >= 128)
    found = own_segmenter().find(np.stack(images))
    assert dice(found, np.stack(masks)).mean() > 0.95
    assert [lung_quality(mask) for mask in found] == [PLAUSIBLE] * 20


@pytest.mark.parametrize(
    "turned",
    [lambda x: x[:, ::-1], lambda x: 255 - x, lambda x: x.transpose(0, 2, 1)],
    ids=["upside_down", "inverted", "on_its_side"],
)
def test_turned_and_inverted_phantoms_are_doubtful(turned):
    images = np.stack(
        [resize_grey(draw_radiograph(4, i, pneumonia=False, image_size=224, difficulty=0.3)[0], 128) for i in range(12)]
    )
    views = [lungs_of(mask).view for mask in own_segmenter().find(np.ascontiguousarray(turned(images)))]
    assert views == ["doubtful"] * 12


@pytest.fixture(scope="module")
def kermany() -> list[dict]:
    if not (REAL / "kermany_lungs").is_dir():
        pytest.skip("../shared/data/kermany_lungs, masks of real radiographs, is not beside this checkout")
    return pq.read_table(REAL / "kermany_lungs" / "lungs.parquet").to_pylist()


def test_lungs_of_held_out_patients_are_found(kermany):
    """Every fourth image of the patients that MODEL_CARD.md names as held out: the validation rows of `prepare`'s defaults."""
    held_out = set((Path(__file__).parent / "held_out.txt").read_text().split())
    rows = [row for row in kermany if row["image_id"] in held_out and row["mask_png"] is not None][::4]
    assert len(rows) > 100
    images = np.stack([as_seen(REAL / "kermany224" / row["image_id"]) for row in rows])
    masks = np.stack([resize_mask(decode_mask(row["mask_png"])) >= 128 for row in rows])
    found = own_segmenter().find(images)
    assert dice(found, masks).mean() >= 0.94
    assert np.mean([lung_quality(mask) == PLAUSIBLE for mask in found]) >= 0.99


def test_dicom_samples_are_told_apart():
    """index.csv says of each sample whether it is a chest; the segmenter was not trained on any of them."""
    if not (REAL / "dicom").is_dir():
        pytest.skip("../shared/data/dicom, real DICOM radiographs, is not beside this checkout")
    names, images = [], []
    for path in sorted((REAL / "dicom").glob("*.dcm")):
        try:
            images.append(as_seen(path))
            names.append(path.name)
        except DecodeError:
            continue
    lines = [line.split(",") for line in (REAL / "dicom" / "index.csv").read_text().splitlines()[1:]]
    chests = {cells[0] for cells in lines if cells[1] == "yes"}
    views = {
        name: lungs_of(mask).view for name, mask in zip(names, own_segmenter().find(np.stack(images)), strict=True)
    }
    assert views == {name: "frontal" if name in chests else "doubtful" for name in names}
    assert set(views.values()) == {"frontal", "doubtful"}


def test_films_of_another_hospital_are_frontal():
    if not (REAL / "nih").is_dir():
        pytest.skip("../shared/data/nih, films of another hospital, is not beside this checkout")
    paths = sorted((REAL / "nih" / "images").iterdir())[::4]
    images = np.stack([as_seen(path) for path in paths])
    frontal = np.mean([lungs_of(mask).view == "frontal" for mask in own_segmenter().find(images)])
    assert frontal >= 0.96
    upside_down = own_segmenter().find(np.ascontiguousarray(images[:, ::-1]))
    assert np.mean([lungs_of(mask).view == "doubtful" for mask in upside_down]) >= 0.98
