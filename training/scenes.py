"""Draw street scenes with exact labels: extra training pictures, sample pictures and test material.

What stands in the street is told in metres; `training.canvas` projects it into picture and labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.canvas import NEAREST, SUPERSAMPLING, Camera, Canvas, Colour, Flat, Floats, Point, develop, noise, shade

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

STREET_LENGTH = 110.0
# How strongly fine and coarse noise change the brightness of each class, in the order of the class ids.
FINE_TEXTURE = np.array([0.0, 0.03, 0.02, 0.04, 0.045, 0.2, 0.01, 0.08, 0.01, 0.05, 0.04], np.float32)
COARSE_TEXTURE = np.array([0.0, 0.06, 0.05, 0.05, 0.06, 0.16, 0.03, 0.1, 0.04, 0.06, 0.06], np.float32)

DARK: Colour = (34, 35, 38)
WHITE: Colour = (208, 207, 200)
RED: Colour = (158, 36, 36)
FACADES = ((134, 92, 74), (150, 118, 92), (172, 160, 138), (188, 182, 170), (120, 82, 68), (196, 184, 150))
ROOFS = ((92, 74, 66), (82, 84, 90), (112, 76, 60))
GLASS = ((58, 64, 72), (44, 48, 54), (96, 104, 112))
PAINTS = ((150, 153, 158), (40, 42, 48), (110, 28, 30), (36, 52, 92), (205, 205, 202), (84, 90, 96), (52, 78, 66))
WOODS = ((104, 84, 64), (70, 74, 70), (128, 116, 100))
LEAVES = ((74, 88, 50), (58, 76, 46), (92, 96, 56))
CLOTHES = ((38, 40, 48), (64, 70, 92), (98, 90, 80), (122, 44, 42), (150, 146, 140), (52, 66, 54), (30, 30, 32))
SKINS = ((196, 156, 132), (168, 124, 98), (112, 78, 60))
TURNS = [step * math.tau / 20 for step in range(21)]


@dataclass(frozen=True)
class Street:
    """A canvas with the street's layout: the kerbs and the house fronts as x in metres, left then right."""

    canvas: Canvas
    rng: np.random.Generator
    kerbs: Flat
    fronts: Flat

    def pick(self, colours: Sequence[Colour]) -> Colour:
        """One of the colours, made a little lighter or darker."""
        return shade(colours[int(self.rng.integers(len(colours)))], self.rng.uniform(0.85, 1.12))

    def some(self, low: float, high: float, most: int) -> list[float]:
        """None to `most` random numbers between low and high."""
        return [float(number) for number in self.rng.uniform(low, high, self.rng.integers(most + 1))]

    def ground(self) -> None:
        """Trees that close the street, pavement, road with its markings and repairs."""
        floor, rng, (left, right), whole = self.canvas.floor, self.rng, self.kerbs, (NEAREST, STREET_LENGTH)
        for x in rng.uniform(-30, 30, 12).tolist():
            self.tree(x, STREET_LENGTH)
        self.canvas.box((0, 0, STREET_LENGTH), (-99, 99), (-0.5, 2.5), (76, 82, 66), TREE)
        slab, tarmac = shade((132, 128, 124), rng.uniform(0.85, 1.1)), shade((92, 93, 96), rng.uniform(0.8, 1.25))
        floor((-99, 99), whole, slab, PAVEMENT)
        for z in np.geomspace(2.5, 40, 26).tolist():
            floor((-60, 60), (z, z + 0.03), shade(slab, 0.86), PAVEMENT)
        floor(self.kerbs, whole, tarmac, ROAD)
        for z in self.some(4, 40, 6):
            x, size = rng.uniform(left, right - 1), rng.uniform(0.4, 1.6)
            floor((x, min(x + size, right)), (z, z + 4 * size), shade(tarmac, rng.uniform(0.84, 1.1)), ROAD)
        for edge, out in ((left, -1), (right, 1)):
            floor((edge, edge + 0.16 * out), whole, shade(slab, 1.22), PAVEMENT)
            floor((edge, edge - 0.22 * out), whole, shade(tarmac, 0.8), ROAD)
            for inset in (0.34, 0.52) if rng.random() < 0.5 else ():
                floor((edge - inset * out, edge - (inset + 0.1) * out), whole, (176, 156, 84), ROAD)
        middle = (left + right) / 2
        for z in np.arange(NEAREST + rng.uniform(0, 6), 70, rng.choice([4.0, 6.0, 9.0])).tolist():
            floor((middle - 0.06, middle + 0.06), (z, z + 2.2), WHITE, ROAD)

    def house(self, side: int, near: float, far: float) -> None:
        """A terraced house: gable end, roof, front with plinth, doors and windows."""
        rng, out, floors = self.rng, 1.0 if side else -1.0, int(self.rng.integers(2, 5))
        x, top, colour = self.fronts[side] + out * rng.uniform(0, 0.5), floors * 2.9 + 0.5, self.pick(FACADES)
        ridge, rise, end = x + 4.5 * out, top + rng.uniform(1.2, 3.2), x + 9 * out
        slope: list[Point] = [(x, top, near), (ridge, rise, near), (ridge, rise, far), (x, top, far)]
        self.canvas.fill(slope, self.pick(ROOFS), BUILDING)
        gable: list[Point] = [(x, 0, near), *slope[:2], (end, top, near), (end, 0, near)]
        self.canvas.fill(gable, shade(colour, 0.8), BUILDING)
        wall = partial(self.canvas.wall, x, label=BUILDING)
        for ys, light in (((0, top), 1.0), ((0, 0.5), 0.7), ((top - 0.25, top), 1.15)):
            wall((near, far), ys, shade(colour, light * (1.0 if side else 0.9)))
        if rng.random() < 0.35:
            wall((near + 0.3, far - 0.3), (2.5, 3.1), self.pick(PAINTS))
        pitch, door = rng.uniform(2.0, 3.2), int(rng.integers(3))
        for column, z in enumerate(np.arange(near + 0.6, min(far, 75.0) - 1.3, pitch).tolist()):
            for low in (1.0 + 2.9 * floor for floor in range(floors)):
                if low > 1 or column % 4 != door:
                    self.window(wall, (z, z + pitch * 0.48), low)
                else:
                    wall((z, z + 1.0), (0, 2.2), shade(self.pick(PAINTS), 0.6))

    def window(self, wall: Callable[[Flat, Flat, Colour], None], zs: Flat, low: float) -> None:
        """A window of 1.5 m height with its frame; bars and sky reflection only where they can be seen."""
        glass, (near, far) = self.pick(GLASS), zs
        wall((near - 0.1, far + 0.1), (low - 0.12, low + 1.6), (186, 182, 174))
        wall(zs, (low, low + 1.5), glass)
        if near < 35:
            wall(zs, (low + 1.0, low + 1.5), shade(glass, 1.3))
            wall(zs, (low + 0.71, low + 0.79), (176, 172, 166))

    def row(self, side: int) -> None:
        """One side of the street from far to near: houses, and gardens with trees behind a fence."""
        x, rng, out = self.fronts[side], self.rng, 1.0 if side else -1.0
        edges = np.cumsum(np.r_[rng.uniform(1.5, 4.0), rng.uniform(6, 15, 12)]).tolist()
        for near, far in reversed(list(pairwise(edges))):
            if rng.random() < 0.75:
                self.house(side, near, far)
                continue
            for z in np.linspace(far, near + 1, 3).tolist():
                self.tree(x + out * rng.uniform(2.0, 5.0), z)
            self.fence(x, near, far)

    def fence(self, x: float, near: float, far: float) -> None:
        """Boards or railings along the street."""
        height, wood, boarded = self.rng.uniform(1.0, 1.8), self.pick(WOODS), self.rng.random() < 0.5
        # CamVid labels railings as a whole, with what is seen between the bars.
        panel = [(x, 0.0, near), (x, 0.0, far), (x, height, far), (x, height, near)]
        self.canvas.fill(panel, wood, FENCE, 255 if boarded else 0)
        for z in np.arange(near, far, 1.2 if boarded else 0.3)[::-1].tolist():
            self.canvas.line([(x, 0, z), (x, height, z)], 0.06, shade(wood, 0.75), FENCE)
        for y in (height * 0.15, height * 0.95):
            rail = [(x, y, near), (x, y, far), (x, y + 0.06, far), (x, y + 0.06, near)]
            self.canvas.fill(rail, shade(wood, 0.9), FENCE)

    def tree(self, x: float, z: float) -> None:
        """Trunk, boughs and a crown of many blobs, lighter towards its top."""
        canvas, rng, bark, leaf = self.canvas, self.rng, self.pick(WOODS), self.pick(LEAVES)
        height, spread, count = rng.uniform(4.5, 9.0), rng.uniform(1.3, 2.6), 130 if z < 30 else 60
        trunk = [(-0.18, 0), (0.18, 0), (0.1, height * 0.7), (-0.1, height * 0.7)]
        canvas.face((x, 0, z), trunk, shade(bark, 0.7), TREE)
        for reach in (-0.6, 0.5):
            path = [(x, height * 0.4, z), (x + spread * reach, height * 0.75, z)]
            canvas.line(path, 0.1, shade(bark, 0.7), TREE)
        angle, away = rng.uniform(0, math.tau, count), np.sqrt(np.linspace(0.2, 1, count) * rng.random(count))
        sizes = spread * np.linspace(0.34, 0.07, count) * rng.uniform(0.7, 1.3, count)
        across, up = np.cos(angle) * away * spread, np.sin(angle) * away
        blobs = np.stack([across, up, sizes, rng.uniform(0.7, 1.15, count) * (0.95 + 0.35 * up)], axis=1)
        for dx, dy, size, light in blobs.tolist():
            canvas.disc((x + dx, height * (0.7 + 0.33 * dy), z), (size, size * 0.8), shade(leaf, light), TREE)

    def lamp(self, x: float, z: float) -> None:
        """A street lamp that leans over the road."""
        height, inward = self.rng.uniform(5.5, 8.5), -math.copysign(self.rng.uniform(0.8, 1.6), x)
        grey, head = self.pick(((96, 98, 98), (70, 74, 72), (120, 118, 112))), (x + inward, height + 0.3, z)
        self.canvas.line([(x, 0, z), (x, height, z), head], 0.13, grey, POLE)
        self.canvas.line([(x, 0, z), (x, 1.2, z)], 0.22, grey, POLE)
        self.canvas.disc(head, (0.38, 0.12), shade(grey, 1.2), POLE)

    def sign(self, x: float, z: float) -> None:
        """A round, triangular or square sign, or a traffic light, on its pole."""
        canvas, kind, top = self.canvas, self.rng.integers(4), (x, self.rng.uniform(2.2, 3.0), z)
        canvas.line([(x, 0, z), top], 0.09, (104, 106, 106), POLE)
        if kind == 0:
            canvas.disc(top, (0.36, 0.36), RED, SIGN)
            canvas.disc(top, (0.26, 0.26), WHITE, SIGN)
        elif kind == 1:
            canvas.face(top, [(-0.42, -0.3), (0.42, -0.3), (0, 0.45)], RED, SIGN)
            canvas.face(top, [(-0.26, -0.2), (0.26, -0.2), (0, 0.26)], WHITE, SIGN)
        elif kind == 2:
            canvas.box(top, (-0.6, 0.6), (-0.4, 0.4), WHITE, SIGN)
            canvas.box(top, (-0.54, 0.54), (-0.34, 0.34), (40, 66, 116), SIGN)
            canvas.box(top, (-0.4, 0.4), (-0.05, 0.08), WHITE, SIGN)
        else:
            canvas.box(top, (-0.22, 0.22), (-0.5, 0.5), DARK, SIGN)
            for rise, colour in ((0.3, (206, 60, 46)), (0.0, (84, 62, 30)), (-0.3, (30, 70, 46))):
                canvas.disc((x, top[1] + rise, z), (0.1, 0.1), colour, SIGN)

    def car(self, x: float, z: float) -> None:
        """A car seen from its end: the left half of the road drives ahead, the right half comes towards us."""
        canvas, rng, colour, oncoming = self.canvas, self.rng, self.pick(PAINTS), x > sum(self.kerbs) / 2
        half, tall, far, origin = rng.uniform(0.8, 0.9), rng.uniform(1.4, 1.65), z + rng.uniform(3.6, 4.3), (x, 0.0, z)
        belt, box = tall * 0.62, partial(canvas.box, origin, label=CAR)
        for grow, alpha in ((1.25, 70), (1.05, 130)):
            canvas.floor((x - half * grow, x + half * grow), (z - 0.3, far), (24, 24, 26), ROAD, alpha)
        self.flank((x - math.copysign(half, x), z, far), belt, tall, shade(colour, 0.72))
        for tyre in (-0.84, 0.6):
            box((tyre * half, (tyre + 0.24) * half), (0, 0.4), (24, 24, 26))
        cabin = [(-half * 0.94, belt), (half * 0.94, belt), (half * 0.72, tall), (-half * 0.72, tall)]
        canvas.face(origin, cabin, shade(colour, 0.95), CAR)
        canvas.face(origin, [(dx * 0.88, dy * 0.96 + 0.02) for dx, dy in cabin], (52, 58, 64), CAR)
        right = [(half * 0.9, 0.2), (half, 0.3), (half, belt * 0.85), (half * 0.94, belt)]
        canvas.face(origin, [*right, *((-dx, dy) for dx, dy in reversed(right))], colour, CAR)
        box((-half * 0.9, half * 0.9), (belt - 0.08, belt - 0.02), shade(colour, 1.25))
        box((-half * 0.98, half * 0.98), (0.24, 0.48), shade(colour, 0.6))
        box((-0.26, 0.26), (0.46, 0.57), WHITE if oncoming else (196, 170, 70))
        for edge in (-0.97, 0.67):
            box((edge * half, (edge + 0.3) * half), (0.58, 0.78), WHITE if oncoming else RED)

    def flank(self, place: Point, belt: float, tall: float, colour: Colour) -> None:
        """The side of a car at (x, near z, far z), up to its window sill (belt) and its roof (tall)."""
        x, near, far = place
        slim, fill = x + math.copysign(0.2, x), partial(self.canvas.fill, label=CAR)
        fill([(x, belt, near), (slim, tall, near + 0.2), (slim, tall, far - 1.6), (x, belt, far - 0.8)], colour)
        glass = [(x, belt, near + 0.5), (slim, tall - 0.1, near + 0.6), (slim, tall - 0.1, far - 1.7)]
        fill([*glass, (x, belt, far - 1.1)], (46, 50, 56))
        fill([(x, 0.25, near), (x, belt, near), (x, belt, far - 0.8), (x, 0.7, far), (x, 0.25, far)], colour)
        for hub in (near + 0.75, far - 0.75):
            for radius, tone in ((0.32, 24.0), (0.18, 120.0)):
                rim = [(x, 0.32 + radius * math.sin(turn), hub + radius * math.cos(turn)) for turn in TURNS]
                fill(rim, (tone, tone, tone))

    def person(self, x: float, z: float, y: float = 0.0, label: int = PEDESTRIAN) -> None:
        """A walker, or the rider of a bicycle with the feet y metres above the road."""
        canvas, rng, coat, legs = self.canvas, self.rng, self.pick(CLOTHES), self.pick(CLOTHES)
        size, stride, wide = rng.uniform(0.88, 1.05), rng.uniform(0.04, 0.26), rng.uniform(0.19, 0.26)
        for foot in (-stride, stride):
            bends = ((0.3, 0.85 * size), (0.8, 0.45 * size), (1.0, 0.03))
            joints = [(x + foot * bend, y + up, z) for bend, up in bends]
            canvas.line(joints, 0.16, shade(legs, 1.0 if foot > 0 else 0.8), label)
            canvas.disc((x + foot, y + 0.05, z), (0.12, 0.06), DARK, label)
        right = [(wide * 0.85, 0.78 * size), (wide, 1.36 * size), (wide * 0.5, 1.46 * size)]
        canvas.face((x, y, z), [*right, *((-dx, dy) for dx, dy in reversed(right))], coat, label)
        for arm in (-wide, wide):
            joints = [(x + arm * bend, y + up * size, z) for bend, up in ((0.9, 1.36), (1.25, 1.08), (1.0, 0.82))]
            canvas.line(joints, 0.1, shade(coat, 0.82), label)
        canvas.disc((x, y + 1.64 * size, z), (0.11, 0.14), shade(self.pick(WOODS), 0.5), label)
        canvas.disc((x + 0.02, y + 1.61 * size, z), (0.085, 0.115), self.pick(SKINS), label)

    def bicyclist(self, x: float, z: float) -> None:
        """A rider on a bicycle; seen from behind, a bicycle is its side view squeezed."""
        squeeze = float(self.rng.choice([0.15, -0.3, 0.9, -0.9]))
        for hub in (-0.5, 0.5):
            rim = [(x + (hub + 0.34 * math.cos(turn)) * squeeze, 0.34 + 0.34 * math.sin(turn), z) for turn in TURNS]
            self.canvas.line(rim, 0.06, DARK, BICYCLIST)
        tubes = [(-0.5, 0.34), (-0.15, 0.85), (0.35, 0.9), (0.0, 0.32), (-0.15, 0.85), (0.35, 0.95), (0.5, 0.34)]
        self.canvas.line([(x + dx * squeeze, dy, z) for dx, dy in tubes], 0.05, self.pick(PAINTS), BICYCLIST)
        self.canvas.box((x + 0.35 * squeeze, 1.05, z), (-0.26, 0.26), (0, 0.05), DARK, BICYCLIST)
        self.person(x, z, 0.22, BICYCLIST)

    def things(self, side: int) -> list[tuple[float, Callable[[], None]]]:
        """What stands or moves on one side: distances in metres with the calls that draw each thing."""
        rng, some, kerb, out = self.rng, self.some, self.kerbs[side], 1.0 if side else -1.0
        width, lane = abs(self.fronts[side] - kerb), abs(kerb - sum(self.kerbs) / 2)
        lamps = np.arange(rng.uniform(8, 20), 90, rng.uniform(18, 30)).tolist()
        parked = np.arange(rng.uniform(6, 22), rng.uniform(25, 60), rng.uniform(5.2, 7.5)).tolist()
        groups: list[tuple[Callable[[float, float], None], list[float], Flat]] = [
            (self.lamp, lamps, (0.4, 0.5)), (self.tree, some(9, 70, 3), (0.8, 1.0)),
            (self.sign, some(7, 30, 2), (0.4, 0.6)),
            (self.person, some(6, 32, 4), (0.3, width - 0.4)), (self.bicyclist, some(6, 22, 1), (-1.6, -0.5)),
            (self.car, parked if rng.random() < 0.5 else some(8, 50, 2), (-1.1, -1.0)),
            (self.car, some(8, 50, 1), (-lane + 0.9, -lane + 1.1)),
        ]  # fmt: skip
        if rng.random() < 0.2:
            groups.append((lambda x, z: self.fence(x, z, z + 9), [rng.uniform(6, 20)], (0.2, 0.3)))
        return [(z, partial(draw, kerb + out * rng.uniform(*xs), z)) for draw, zs, xs in groups for z in zs]


def _sky(rng: np.random.Generator, width: int, height: int, base: Colour) -> Image.Image:
    """RGB picture of a sky that grows paler towards the horizon, with soft clouds."""
    clouds = sum((noise(rng, width, height, width / parts) / parts**0.7 for parts in (3, 7, 16)), np.float32(0))
    cover = (0.25 + 0.55 * np.linspace(0, 1.6, height, dtype=np.float32)[:, None] + 0.6 * clouds).clip(0, 1)[..., None]
    light = np.array((0.74, 0.86, 1.0), np.float32) * (1 - cover) + np.float32(1.06) * cover
    return Image.fromarray((light * np.array(base, np.float32)).clip(0, 255).astype(np.uint8))


def _texture(rng: np.random.Generator, mask: NDArray[np.uint8]) -> Floats:
    """How much lighter or darker the surface of each labelled pixel is, around 0: float32 [H, W]."""
    height, width = mask.shape
    texture: Floats = FINE_TEXTURE[mask] * noise(rng, width, height, 1.6)
    texture += COARSE_TEXTURE[mask] * noise(rng, width, height, width / 40)
    return texture


def draw_street(seed: int, width: int = 480, height: int = 360) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the street of a seed: always the same pixels for the same seed and size.

    Returns the image as uint8 RGB [height, width, 3] and the mask as uint8 [height, width] with CamVid's class ids
    0 to 10 (sky, building, pole, road, pavement, tree, sign symbol, fence, car, pedestrian, bicyclist) everywhere.
    """
    rng, size = np.random.default_rng(seed), (width * SUPERSAMPLING, height * SUPERSAMPLING)
    vanish, horizon, focal = size[0] * rng.uniform(0.4, 0.6), size[1] * rng.uniform(0.4, 0.52), rng.uniform(0.8, 1.05)
    camera, grey = Camera(vanish, horizon, size[0] * focal, rng.uniform(1.3, 1.7)), rng.uniform(190, 238)
    sky: Colour = (grey, grey + rng.uniform(0, 6), grey + rng.uniform(2, 14))
    canvas = Canvas(_sky(rng, width, height, sky).resize(size), SKY, camera, shade(sky, 0.85))
    kerbs, paths = (-rng.uniform(2.0, 4.2), rng.uniform(4.6, 7.0)), rng.uniform(1.8, 4.5, 2).tolist()
    street = Street(canvas, rng, kerbs, (kerbs[0] - paths[0], kerbs[1] + paths[1]))
    street.ground()
    street.row(0)
    street.row(1)
    for _, draw in sorted(street.things(0) + street.things(1), key=lambda thing: -thing[0]):
        draw()
    mask = np.asarray(canvas.labels, np.uint8)[::SUPERSAMPLING, ::SUPERSAMPLING].copy()
    return develop(rng, canvas.image.reduce(SUPERSAMPLING), _texture(rng, mask)), mask
