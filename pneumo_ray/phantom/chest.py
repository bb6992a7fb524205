"""The anatomy of a phantom radiograph: trunk, ribs, spine, heart, diaphragm, vessels and gas, as attenuations.

Shapes are drawn in chest units and summed (after the analytic phantoms of tomography: Shepp and Logan, 1974).
"""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatImage = NDArray[np.float32]
FloatArray = NDArray[np.float64]

_SIDES = np.array([-1.0, 1.0])  # the image's left (the patient's right), then its right
_HALF_SPINE = 0.14  # chest units left out of the lungs' outline on either side of the midline


class Canvas:
    """Turns shapes in chest units (1 = half the width of the rib cage, y down, 0 = mid-chest) into masks in [0, 1]."""

    def __init__(self, view: np.random.Generator, image_size: int) -> None:
        self.width = image_size
        self.height = round(image_size * view.uniform(0.8, 1.1))
        self.unit = image_size / 2 / view.uniform(1.2, 1.5)  # pixels
        angle = np.deg2rad(np.clip(view.normal(0, 2.0), -5, 5))
        self._turn = self.unit * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self.center = np.array([self.width, self.height]) / 2 + self.unit * view.normal(0, [0.05, 0.06])
        # The part of the image that the collimator leaves open, float32 [H, W].
        self.field = np.ones((self.height, self.width), np.float32)
        if view.random() < 0.35:
            left, right, above, below = (view.uniform(0, 0.06, 4) * (view.random(4) < 0.6) * self.width).astype(int)
            self.field[:] = 0
            self.field[above : self.height - below, left : self.width - right] = 1
            self.field = cv2.GaussianBlur(self.field, (0, 0), 0.8, borderType=cv2.BORDER_REPLICATE)

    def blank(self) -> NDArray[np.uint8]:
        """Return an empty mask to draw on, at twice the resolution of the image."""
        return np.zeros((2 * self.height, 2 * self.width), np.uint8)

    def _fixed(self, points: FloatArray) -> list[NDArray[np.int32]]:
        pixels = 2 * (points @ self._turn + self.center)
        return list(np.round(16 * pixels).astype(np.int32).reshape(-1, *points.shape[-2:]))  # four fractional bits

    def fill(self, mask: NDArray[np.uint8], polygons: FloatArray, value: float = 1.0) -> None:
        """Paint polygons [..., m, 2] in chest units, which must not overlap each other."""
        cv2.fillPoly(mask, self._fixed(polygons), round(255 * value), cv2.LINE_AA, 4)

    def stroke(self, mask: NDArray[np.uint8], curves: FloatArray, width: float, value: float = 1.0) -> None:
        """Paint lines along curves [..., m, 2]; curves and width in chest units."""
        thickness = max(1, round(2 * width * self.unit))
        cv2.polylines(mask, self._fixed(curves), False, round(255 * value), thickness, cv2.LINE_8, 4)

    def bone(self, mask: NDArray[np.uint8], curves: FloatArray, width: float, value: float = 1.0) -> None:
        """Paint long bones along curves [..., m, 2], brighter at the edges, where the beam runs along the cortex."""
        self.stroke(mask, curves, width, value)
        self.stroke(mask, curves, 0.6 * width, 0.6 * value)

    def finish(self, mask: NDArray[np.uint8], softness: float) -> FloatImage:
        """Return the mask at the resolution of the image, blurred by `softness` chest units."""
        small = cv2.resize(mask, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return self.blur(small, softness).astype(np.float32) * np.float32(
            1 / 255
        )  # blurring uint8 is several times faster

    def blur(self, image: FloatImage, softness: float) -> FloatImage:
        """Return the image blurred by a Gaussian whose sigma is `softness` chest units."""
        sigma = softness * self.unit
        step = max(
            1, int(sigma / 2)
        )  # a wide Gaussian is computed on a smaller image, with the same result at less cost
        small = cv2.resize(image, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA) if step > 1 else image
        taps = 2 * int(np.ceil(2.5 * sigma / step)) + 1
        small = cv2.GaussianBlur(small, (taps, taps), sigma / step, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, (self.width, self.height)) if step > 1 else small

    def texture(self, rng: np.random.Generator, cell: float) -> FloatImage:
        """Return cloudy noise, its variance near 1, whose largest clouds are `cell` chest units wide."""
        # From coarse to fine, each octave on the smallest grid that holds it; one step to full size at the end.
        total = np.zeros((1, 1), np.float32)
        for octave in range(3):
            step = max(1.0, cell * self.unit / 2**octave)
            grid = rng.standard_normal((int(self.height / step) + 2, int(self.width / step) + 2), np.float32)
            total = np.float32(0.6**octave) * grid + cv2.resize(total, grid.shape[::-1], interpolation=cv2.INTER_CUBIC)
        return cv2.resize(total, (self.width, self.height), interpolation=cv2.INTER_CUBIC)


def _smooth(points: ArrayLike, rounds: int = 3) -> FloatArray:
    """Round the corners of an open curve [n, 2] by Chaikin's corner cutting; its ends stay."""
    curve = np.asarray(points, np.float64)
    for _ in range(rounds):
        cut = np.stack([0.75 * curve[:-1] + 0.25 * curve[1:], 0.25 * curve[:-1] + 0.75 * curve[1:]], axis=1)
        curve = np.concatenate([curve[:1], cut.reshape(-1, 2), curve[-1:]])
    return curve


class _Chest:
    """The dimensions of one chest in one image, in chest units."""

    def __init__(self, body: np.random.Generator, view: np.random.Generator) -> None:
        lung_height = body.uniform(1.25, 1.6) * view.uniform(0.92, 1.06)  # the second factor is the depth of breath
        self.top = -0.54 * lung_height
        self.dome = 0.46 * lung_height
        self.hilum = self.top + 0.42 * lung_height
        self.shoulder = self.top - body.uniform(0.0, 0.12)
        self.breadth = 1 + view.normal(0, 0.025) * _SIDES  # rotation of the child makes one lung wider
        self._taper, self._slant = body.uniform(0.5, 0.62), body.uniform(2.2, 3.2)

    def cage(self, y: ArrayLike) -> FloatArray:
        """Return the half-width of the rib cage at height y."""
        depth = np.clip((np.asarray(y) - self.top) / (self.dome + 0.3 - self.top), 0, 1)
        return 1 - self._taper * (1 - depth) ** self._slant


def draw_chest(
    canvas: Canvas, body: np.random.Generator, view: np.random.Generator
) -> tuple[FloatImage, FloatImage, FloatImage]:
    """Draw a healthy chest.

    Returns:
        Its attenuation (0 = open air, about 1 = spine); the air in its lungs (0 to 1); and its lungs as annotators
        outline them (share of each pixel): from the domes up, with what lies behind the heart, cut along the spine.
    """
    chest = _Chest(body, view)
    density, trunk = _draw_trunk(canvas, body, view, chest)
    lungs, belly, hearts = canvas.blank(), canvas.blank(), canvas.blank()

    # Each lung runs from the apex along the ribs to the costophrenic angle, then over the dome to the midline.
    domes = chest.dome + np.array([0.0, body.uniform(0.02, 0.1)])  # the liver lifts the right one
    floors = []
    for side, dome, wide in zip(_SIDES, domes, chest.breadth, strict=True):
        peak, fall = body.uniform(0.38, 0.5), body.uniform(0.25, 0.42)
        x = np.linspace(0.0, 1.0, 24)
        drop = np.where(x > peak, fall * (np.abs(x - peak) / (1 - peak)) ** 2.4, 0.1 * ((peak - x) / peak) ** 2)
        floor = np.stack([x * wide, dome + drop], axis=1)
        y = np.linspace(chest.top + 0.08, dome + fall, 24)
        wall = np.stack([wide * (chest.cage(y) - 0.03), y], axis=1)
        apex = [(0.13, chest.top + 0.22), (0.17, chest.top + 0.02), (0.3, chest.top - 0.05), wall[0]]
        canvas.fill(lungs, np.concatenate([_smooth(apex), wall, floor[::-1]]) * [side, 1])
        floors.append(floor * [side, 1])
    outlined = lungs.copy()
    canvas.fill(
        outlined, np.array([(-_HALF_SPINE, -3.0), (_HALF_SPINE, -3.0), (_HALF_SPINE, 3.0), (-_HALF_SPINE, 3.0)]), 0
    )
    floor = np.concatenate([floors[0][::-1], floors[1]])
    canvas.fill(belly, np.concatenate([[(-0.97, 2.4)], floor, [(0.97, 2.4)]]))

    # Heart, great vessels and, in some, thymus.
    size, shift = body.uniform(0.88, 1.12), np.array([view.normal(0, 0.025), 0])
    thymus = body.uniform(0.0, 0.1) * (body.random() < 0.5)
    top, middle, bottom = chest.top, chest.hilum, chest.dome + 0.16
    right = [(-0.13, -2.4), (-0.15 - thymus, top - 0.1), (-0.16 - thymus, middle - 0.1), (-0.2, middle + 0.1)]
    right += [(-0.36 * size, middle + 0.35), (-0.3 * size, bottom)]
    border = [(0.56 * size, bottom), (0.68 * size, bottom - 0.22), (0.44 * size, middle + 0.22), (0.22, middle)]
    left = [(0.23 + thymus, middle - 0.14), (0.14 + thymus, middle - 0.3), (0.13, top - 0.1), (0.12, -2.4)]
    canvas.fill(hearts, np.concatenate([_smooth(right), _smooth(border + left)]) + shift)
    heart, under = canvas.finish(hearts, 0.02), canvas.finish(belly, 0.012) * trunk

    air = canvas.finish(lungs, 0.018)
    air *= (1 - 0.92 * heart) * (1 - 0.92 * under) * np.minimum(1, 0.5 + 0.55 * canvas.blur(air, 0.12))
    density += 0.18 * heart + (0.19 + 0.09 * canvas.blur(under, 0.2)) * under
    density += _draw_skeleton(canvas, body, chest) * trunk
    density += _draw_vessels(canvas, body, chest, shift) * air
    density -= _draw_gas(canvas, body, view, chest) * trunk
    return density - 0.4 * air, air, canvas.finish(outlined, 0.002)


def _draw_trunk(
    canvas: Canvas, body: np.random.Generator, view: np.random.Generator, chest: _Chest
) -> tuple[FloatImage, FloatImage]:
    """Return the attenuation of soft tissue, arms, shoulder girdle and perhaps the chin; and the mask of the trunk."""
    trunk, limbs, long_bones, blades, head = (canvas.blank() for _ in range(5))
    fat, waist, shoulder = body.uniform(0.08, 0.2), body.uniform(0.93, 1.05), chest.shoulder
    outline = [(waist + fat, 2.4), (1.0 + fat, chest.dome), (0.98 + fat, 0.1), (0.98 + fat, -0.25)]
    outline += [(1.15 + fat, chest.top + 0.12), (1.05 + fat, shoulder - 0.1), (0.55, shoulder - 0.28)]
    half = _smooth([*outline, (0.36, shoulder - 0.45), (0.34, -2.4)])
    canvas.fill(trunk, np.concatenate([half, half[::-1] * [-1, 1]]))
    raised = view.random() < 0.45
    rise = body.uniform(0.02, 0.1) + 0.12 * raised
    for side in _SIDES:
        mirror = np.array([side, 1])
        joint = np.array([1.1 + 0.6 * fat, shoulder + 0.12])
        angle = view.uniform(-1.4, -0.9) if raised else view.uniform(0.75, 1.25)
        arm = np.array([joint, joint + 1.6 * np.array([np.cos(angle), np.sin(angle)])]) * mirror
        canvas.stroke(limbs, arm, 0.36 + fat)
        canvas.bone(long_bones, arm, 0.14, 0.8)
        canvas.stroke(long_bones, np.array([arm[0], arm[0] + 0.02]), 0.22, 0.6)
        blade = np.array([(0.98, shoulder + 0.05), (1.1, shoulder + 0.3), (0.9, 0.02), (0.72, shoulder + 0.3)])
        blade = (blade + view.normal(0, 0.03, 2)) * mirror
        canvas.fill(blades, _smooth(np.concatenate([blade, blade[:1]]), 2), 0.35)
        canvas.stroke(blades, blade[1:3], 0.03, 0.8)
        collar = [(0.09, chest.top + 0.14), (0.2, chest.top + 0.03), (0.42, chest.top + 0.0)]
        collar += [(0.66, chest.top - 0.06), (0.8, shoulder - rise), (1.0, shoulder - rise)]
        canvas.bone(long_bones, _smooth(np.array(collar) * mirror), 0.07, 0.75)
    if view.random() < 0.4:
        t = np.linspace(0, np.pi, 40)
        jaw = np.stack([0.6 * np.cos(t), 0.8 * np.sin(t) ** 0.8 - 0.8], axis=1)
        jaw += [view.normal(0, 0.1), shoulder - view.uniform(0.1, 0.3)]
        canvas.fill(head, jaw, 0.6)
        canvas.stroke(head, jaw - [0, 0.06], 0.06, 0.9)
    mask = canvas.finish(trunk, 0.03)
    density = 0.22 * np.maximum(mask, 0.8 * canvas.finish(limbs, 0.03)) + 0.26 * canvas.blur(mask, 0.22)
    density += (0.25 + 0.02 * canvas.texture(body, 0.5)) * canvas.finish(long_bones, 0.008)
    density += 0.018 * canvas.texture(body, 0.5) * mask
    return density + 0.11 * canvas.finish(blades, 0.015) + 0.28 * canvas.finish(head, 0.025), mask


def _draw_skeleton(canvas: Canvas, body: np.random.Generator, chest: _Chest) -> FloatImage:
    """Return the attenuation of ribs and spine.

    A rib is a circle around the chest in a plane that tilts forward. Seen from the front, it runs along x = a sin t,
    y = y0 + k (1 - cos t) from the spine (t = 0) over the flank (90 degrees, end on and so bright) to the front.
    """
    back, front, flank, column, vertebrae = (canvas.blank() for _ in range(5))
    spacing = (chest.dome + 0.28 - chest.top) / body.uniform(8.6, 9.6)
    width = spacing * body.uniform(0.36, 0.44)
    rib = np.arange(12)[:, None, None]  # curves are [rib, side, point, xy]
    y0 = chest.top - 0.03 + spacing * rib + body.normal(0, 0.008, (12, 2, 1))
    k = body.uniform(0.85, 1.2) * (0.12 + 0.022 * rib)
    a = (_SIDES * chest.breadth)[:, None] * chest.cage(y0 + k) * np.where(rib < 10, 1, 0.87)

    def arc(first: float, last: float) -> FloatArray:
        t = np.deg2rad(np.linspace(first, last, 16))
        # Ribs leave the spine a little upwards before they fall.
        return np.stack([a * np.sin(t), y0 + k * (1 - np.cos(t)) - 0.035 * np.maximum(np.sin(2 * t), 0)], axis=-1)

    canvas.bone(back, arc(5, 90), width)
    canvas.bone(front, arc(90, 145), width, 0.8)
    canvas.stroke(flank, arc(68, 110), 0.3 * width)
    ribs = 0.1 * canvas.finish(back, 0.008) + 0.06 * canvas.finish(front, 0.012) + 0.17 * canvas.finish(flank, 0.015)

    half, bend, sway = body.uniform(0.105, 0.13), body.normal(0, 0.012), body.uniform(0, np.pi)
    y = np.arange(chest.top - 0.03 - 7 * spacing, 2.2, spacing)
    middle = np.stack([bend * np.sin(2.2 * y + sway), y], axis=-1)[:, None]  # [vertebra, 1, xy]
    canvas.stroke(column, middle[:, 0], 2 * half)
    tall = 0.37 * spacing
    block = [(-half, -tall), (0, -0.8 * tall), (half, -tall), (half, tall), (0, 0.8 * tall), (-half, tall)]
    canvas.fill(vertebrae, middle + _smooth(block, 1), 0.6)
    for x, first, last in ((-0.6 * half, -0.04, 0.0), (0.6 * half, -0.04, 0.0), (0.0, 0.02, 0.07)):  # pedicles, process
        canvas.stroke(vertebrae, middle + np.array([(x, first), (x, last)]), 0.035, 0.95)
    return ribs + 0.1 * canvas.finish(column, 0.03) + 0.12 * canvas.finish(vertebrae, 0.013)


def _draw_vessels(canvas: Canvas, body: np.random.Generator, chest: _Chest, shift: FloatArray) -> FloatImage:
    """Return the attenuation of the hila and the vessels that branch from them, which are present in both classes."""
    tree, hila = canvas.blank(), canvas.blank()
    roots = np.stack([_SIDES * body.uniform(0.24, 0.3, 2), chest.hilum + body.uniform(0.1, 0.2, 2)], axis=1) + shift
    for root, side in zip(roots, _SIDES, strict=True):
        canvas.stroke(hila, root + np.array([(0, -0.12), (side * 0.06, 0.14)]), body.uniform(0.1, 0.2))
    # Seven twigs on each side, which grow a little and fork, five times over.
    sides, tips = np.repeat(_SIDES, 7), np.repeat(roots, 7, axis=0)
    angles = np.tile(np.linspace(-1.35, 1.4, 7), 2) + body.normal(0, 0.12, 14)
    for width in 0.04 * 0.72 ** np.arange(5):
        turns = angles[:, None] + np.cumsum(body.normal(0, 0.13, (len(tips), 4)), axis=1)
        steps = np.stack([sides[:, None] * np.cos(turns), np.sin(turns)], axis=-1)
        steps *= body.uniform(0.03, 0.055, (len(tips), 1, 1))
        paths = tips[:, None] + np.concatenate([np.zeros((len(tips), 1, 2)), np.cumsum(steps, axis=1)], axis=1)
        canvas.stroke(tree, paths, width, min(1.0, 0.35 + 16 * width))
        tips, sides = np.repeat(paths[:, -1], 2, axis=0), np.repeat(sides, 2)
        angles = np.repeat(turns[:, -1], 2) + np.tile([-1, 1], len(turns)) * body.uniform(0.2, 0.5, len(tips))
    vessels = 0.09 * canvas.finish(tree, 0.008) + 0.11 * canvas.finish(hila, 0.07)
    return body.uniform(0.5, 1.2) * vessels + 0.02 * canvas.texture(body, 0.16)


def _draw_gas(canvas: Canvas, body: np.random.Generator, view: np.random.Generator, chest: _Chest) -> FloatImage:
    """Return the attenuation removed by air in the trachea and gas in the stomach."""
    gas = canvas.blank()
    x, carina = body.normal(-0.03, 0.012), chest.hilum - 0.02
    canvas.stroke(gas, _smooth([(0.0, chest.top - 0.7), (x, chest.top), (x - 0.01, carina)]), 0.1, 0.55)
    for side in _SIDES:
        canvas.stroke(gas, np.array([(x, carina), (x + side * 0.17, carina + 0.16)]), 0.06, 0.35)
    if view.random() < 0.6:
        t = np.linspace(0, 2 * np.pi, 40)
        wobble = 1 + 0.12 * np.sin(2 * t + view.uniform(0, 6)) + 0.07 * np.sin(3 * t + view.uniform(0, 6))
        bubble = wobble * np.stack([view.uniform(0.12, 0.32) * np.cos(t), view.uniform(0.07, 0.2) * np.sin(t)])
        canvas.fill(gas, bubble.T + np.array([view.uniform(0.4, 0.65), chest.dome + view.uniform(0.25, 0.42)]))
    return 0.22 * canvas.finish(gas, 0.022)
