"""Synthetic chest radiographs of children with the true boxes of their opacities, so that everything runs without data.

An image is a sum of attenuations drawn as shapes (after the analytic phantoms of tomography: Shepp and Logan, 1974).
Pneumonia replaces some air in the lungs by fluid and changes nothing else, so there is no shortcut between the classes.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.phantom.chest import Canvas, FloatImage, draw_chest
from pneumo_ray.phantom.config import PhantomConfig, check_drawing

_DRAWING_VERSION = 2  # raise it when the images change; otherwise an archive of older code counts as current
_TEST_FRACTION = 0.2
_JPEG_QUALITY = 90
_ONE_BIT = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9]
# Independent random streams. Body and pathogen belong to the patient; everything else is drawn for each image.
_BODY, _GERM, _VIEW, _GRAIN, _OPACITY, _ARCHIVE = range(6)


def draw_radiograph(
    seed: int, index: int, *, pneumonia: bool, image_size: int, difficulty: float, patient: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draw one chest radiograph, frontal view, the patient's left on the right of the image.

    Every draw is keyed by (seed, index, patient), never by the order of calls. The chest does not depend on
    `pneumonia`: drawn both ways, the images are equal outside the boxes and pneumonia is brighter inside.

    Args:
        seed: seed of the archive, not negative.
        index: number of the image, not negative.
        pneumonia: whether to draw opacities.
        image_size: width in pixels; the height is drawn between 0.8 and 1.1 times this.
        difficulty: 0 makes the opacities obvious, 1 barely visible.
        patient: number that keys the body; None gives each index its own body.

    Returns:
        The image, uint8 [H, W], and the boxes of its opacities, int32 [n, 4], as half-open pixels (x0, y0, x1, y1);
        n is 1 to 3 with pneumonia and 0 without.

    Raises:
        ConfigError: if seed, image_size or difficulty is out of range.
    """
    check_drawing("", seed, image_size, difficulty)
    image, boxes, _ = _draw(seed, index, pneumonia, image_size, difficulty, patient)
    return image, boxes


def draw_lungs(seed: int, index: int, *, image_size: int, patient: int | None = None) -> NDArray[np.bool_]:
    """Return the true lungs of the radiograph that `draw_radiograph` draws with the same arguments, bool [H, W].

    They are outlined as annotators do: with what lies behind the heart, cut along the spine. Pneumonia does not move
    them, and a part that the collimator hides counts.

    Raises:
        ConfigError: if seed or image_size is out of range.
    """
    check_drawing("", seed, image_size, 0.5)
    return _draw(seed, index, False, image_size, 0.5, patient)[2]


def pneumonia_subtype(seed: int, patient: int) -> str:
    """Return "bacteria" (one or two dense, lobar opacities) or "virus" (two or three diffuse ones) for this patient."""
    return "bacteria" if _rng(seed, _GERM, patient).random() < 0.6 else "virus"


def write_phantom_archive(out: Path, config: PhantomConfig, progress: Callable[[int], None] | None = None) -> Path:
    """Write a phantom archive in Kermany's layout, with the true boxes beside it.

    The folders are `{train,test}/{NORMAL,PNEUMONIA}`; names follow Kermany (`IM-0115-0001.jpeg`,
    `person12_bacteria_46.jpeg`), one number is one patient, and no patient is in both train and test.
    `boxes.parquet` has one row per box: image_id (path relative to `out`), x0, y0, x1, y1 (half-open pixels), and width
    and height of the image; `lungs.parquet` one row per image: image_id and mask_png, its true lungs as a 1-bit PNG of the
    image's size. `phantom.json` keeps the config. `out` appears when everything is written.

    Args:
        out: folder to make.
        config: what to draw.
        progress: called after each image with the number of images written so far.

    Returns:
        `out`. If it already holds an archive of this config, nothing is done.

    Raises:
        ConfigError: if `out` holds something else.
        StorageError: if the folder cannot be written.
    """
    out = Path(out)
    stamp = {"drawing_version": _DRAWING_VERSION, **dataclasses.asdict(config)}
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if _read_stamp(out) == stamp:
            return out
        raise ConfigError(f"{out} exists and does not hold this phantom archive; choose another folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            building = Path(scratch) / out.name
            _write_images(building, config, progress)
            (building / "phantom.json").write_text(json.dumps(stamp, indent=2) + "\n")
            building.rename(out)
    except OSError as error:
        raise StorageError(f"cannot write the phantom archive to {out}: {error}; choose another folder") from error
    return out


# ---- the archive -----------------------------------------------------------------------------------------------------


def _read_stamp(folder: Path) -> object:
    try:
        return json.loads((folder / "phantom.json").read_text())
    except (OSError, ValueError):
        return None


def _plan_archive(config: PhantomConfig) -> Iterator[tuple[str, int, int, bool]]:
    """Yield (image_id, index, patient, pneumonia) of every image."""
    rng = _rng(config.seed, _ARCHIVE, 0)
    # Numbers are assigned at random over both classes, so that they carry no information about the class.
    patients = iter((rng.permutation(config.num_images) + 1).tolist())
    index = 0
    for pneumonia, num_images in enumerate(config.class_counts):
        done, num_test = 0, max(1, round(_TEST_FRACTION * num_images))
        while done < num_images:
            patient = next(patients)
            folder = "test" if done < num_test else "train"
            num_views = 1 + int(rng.binomial(2, (config.images_per_patient - 1) / 2))
            for view in range(1, min(num_views, num_images - done) + 1):
                if pneumonia:
                    name = f"PNEUMONIA/person{patient}_{pneumonia_subtype(config.seed, patient)}_{index + 1}"
                else:
                    name = f"NORMAL/IM-{patient:04d}-{view:04d}"
                yield f"{folder}/{name}.jpeg", index, patient, bool(pneumonia)
                index += 1
                done += 1


def _write_images(root: Path, config: PhantomConfig, progress: Callable[[int], None] | None) -> None:
    rows: list[tuple[str | int, ...]] = []
    masks: list[tuple[str, bytes]] = []
    for image_id, index, patient, pneumonia in _plan_archive(config):
        size, difficulty = config.image_size, config.difficulty
        image, boxes, lungs = _draw(config.seed, index, pneumonia, size, difficulty, patient)
        path = root / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())
        masks.append((image_id, cv2.imencode(".png", 255 * lungs.astype(np.uint8), _ONE_BIT)[1].tobytes()))
        rows += [(image_id, *box, image.shape[1], image.shape[0]) for box in boxes.tolist()]
        if progress is not None:
            progress(index + 1)
    numbers = ("x0", "y0", "x1", "y1", "width", "height")
    schema = pa.schema([("image_id", pa.string()), *((name, pa.int32()) for name in numbers)])
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
    pq.write_table(pa.table(columns, schema=schema), root / "boxes.parquet")
    names, contents = zip(*masks, strict=True)
    pq.write_table(pa.table({"image_id": names, "mask_png": contents}), root / "lungs.parquet")


# ---- the image -----------------------------------------------------------------------------------------------------


def _rng(seed: int, stream: int, number: int) -> np.random.Generator:
    # Philox counts upwards from the lowest counter word, so streams that differ in the highest words never meet.
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, stream, number]))


def _draw(
    seed: int, index: int, pneumonia: bool, image_size: int, difficulty: float, patient: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.bool_]]:
    """Return the image, the boxes of its opacities, and its lungs."""
    patient = index if patient is None else patient
    view = _rng(seed, _VIEW, index)
    canvas = Canvas(view, image_size)
    density, air, lungs = draw_chest(canvas, _rng(seed, _BODY, patient), view)
    boxes = np.zeros((0, 4), np.int32)
    if pneumonia:
        subtype = pneumonia_subtype(seed, patient)
        opacities = _draw_opacities(canvas, _rng(seed, _OPACITY, index), air * canvas.field, subtype)
        boxes = np.array([_bounding_box(opacity) for opacity in opacities], np.int32)
        density = density + _opacity_strength(difficulty) * np.max(opacities, axis=0)
    return _expose(canvas, view, _rng(seed, _GRAIN, index), density), boxes, lungs >= 0.5


def _opacity_strength(difficulty: float) -> float:
    """Return the attenuation of a lung full of fluid; air removes 0.4, of which 0.36 is restored."""
    return 0.36 - 0.31 * difficulty


def _draw_opacities(canvas: Canvas, rng: np.random.Generator, air: FloatImage, subtype: str) -> list[FloatImage]:
    """Return one map [H, W] for each opacity: the share of air that fluid replaces, exactly zero outside its box."""
    lobar = subtype == "bacteria"
    count = rng.integers(1, 3) if lobar else rng.integers(2, 4)
    lung = np.argwhere(air > 0.6)[:, ::-1]  # pixels (x, y)
    opacities: list[FloatImage] = []
    spots: list[NDArray[np.intp]] = []
    while len(opacities) < count:
        # Of several places in the lungs use the one farthest from the earlier opacities, so that they rarely merge.
        candidates = lung[rng.integers(0, len(lung), 5)]
        distances = [min((float(np.hypot(*(c - spot))) for spot in spots), default=0.0) for c in candidates]
        spot = candidates[int(np.argmax(distances))]
        # A stretched circle with a wobbling outline, in the complex plane.
        t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        waves = np.sin(np.arange(2, 7)[:, None] * t + rng.uniform(0, 2 * np.pi, (5, 1)))
        wobble = np.clip(1 + rng.normal(0, [0.14, 0.1, 0.08, 0.07, 0.06]) @ waves, 0.5, 1.6)
        stretch, turn = rng.uniform(0.75, 1.3), np.exp(1j * rng.uniform(0, np.pi))
        radius = rng.uniform(0.22, 0.36) if lobar else rng.uniform(0.18, 0.32)  # chest units
        outline = canvas.unit * radius * wobble * (stretch * np.cos(t) + 1j * np.sin(t) / stretch) * turn
        blob = np.zeros(air.shape, np.uint8)
        corners = np.stack([outline.real, outline.imag], axis=1) + spot
        cv2.fillPoly(blob, [np.round(16 * corners).astype(np.int32)], 255, cv2.LINE_AA, 4)
        blob[:, (np.arange(canvas.width) < canvas.center[0]) != (spot[0] < canvas.center[0])] = 0  # one lung only
        fluid = canvas.blur(blob.astype(np.float32) / np.float32(255), radius * (0.2 if lobar else 0.38))
        fluid *= np.clip(1 + (0.13 if lobar else 0.25) * canvas.texture(rng, 0.12), 0.3, 1.4) * (1.0 if lobar else 0.85)
        # Subtracting a constant ends the soft edge, and the box, where a reader would end it; heart and
        # liver have less air than that in front of them, so no invisible part of an opacity on them widens its box.
        opacity = np.maximum(np.minimum(fluid, 1) * air - 0.1, 0) / 0.9
        if opacity.max() > 0.4:  # otherwise it is on the edge of the lung and too faint to be visible
            opacities.append(opacity)
            spots.append(spot)
    return opacities


def _bounding_box(opacity: FloatImage) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _expose(
    canvas: Canvas, view: np.random.Generator, grain: np.random.Generator, density: FloatImage
) -> NDArray[np.uint8]:
    """Turn attenuation into an image: tone curve, noise, collimation, side marker, all independent of the chest."""
    gamma, gain, black = view.uniform(0.8, 1.35), view.uniform(0.8, 1.08), view.uniform(-0.02, 0.04)
    tone = np.maximum(density * np.float32(gain), 0) ** np.float32(gamma)
    image = 285 * (1 - np.exp(-1.7 * tone)) + 255 * black
    noise = cv2.GaussianBlur(grain.standard_normal(density.shape, np.float32), (0, 0), 0.6)
    image += np.float32(view.uniform(2.0, 6.0)) * noise
    image *= canvas.field
    if view.random() < 0.7:
        letter, x = ("R", view.uniform(0.015, 0.05)) if view.random() < 0.8 else ("L", view.uniform(0.91, 0.94))
        font = int(view.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX]))
        at = (int(x * canvas.width), int(view.uniform(0.08, 0.45) * canvas.height))
        mark = np.zeros(density.shape, np.uint8)
        cv2.putText(mark, letter, at, font, view.uniform(0.5, 0.9) * canvas.width / 320, 255, 1, cv2.LINE_AA)
        image = np.maximum(image, view.uniform(0.8, 1.0) * mark)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
