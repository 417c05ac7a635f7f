"""Draw the four paintings that serve as style images, at twice the size, and reduce them: lengths
are in picture heights, colours and tones run from 0 to 1, angles are clockwise (y points down)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFilter
from scipy.spatial import KDTree  # type: ignore[import-untyped]

Array = NDArray[np.float64]
SIZE = (768, 608)
LANCZOS = Image.Resampling.LANCZOS
WIDTH, HEIGHT = SIZE[0] * 2, SIZE[1] * 2
CORNER = (WIDTH / HEIGHT, 1.0)
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH] / HEIGHT

NIGHT = ["#040820", "#0f2363", "#1d4a9c", "#2e86a8", "#8fb79a", "#e0a92f", "#fbd84b", "#fff6c4"]
HILL = ["#04070f", "#0b1d2c", "#17423f", "#4d7a3c", "#c8962d", "#f4cc5c"]
WHIRLS = [(0.34, 0.33, 0.21), (0.97, 0.20, 0.14), (0.77, 0.54, 0.10), (0.07, 0.09, 0.07)]
BRUSHES = [(0.036, 0.17, 1900, 12), (0.022, 0.11, 4200, 9), (0.012, 0.06, 4200, 6)]

SKY = ["#fff3a0", "#ffd23a", "#ff9a1f", "#e8431f", "#b3123f", "#6a1b8f", "#2433b5", "#0f5fc0"]
GRASS = ["#e0d83a", "#a8cf3a", "#3fae4a", "#0f8f60", "#0c6b6f", "#0a4f5a"]
STREAM = ["#ffe9a0", "#a8ece8", "#3fb9e4", "#1779c4", "#e8f6e0"]
SUN = np.array([0.80, 0.33])
RINGS = [(0, 1), (0.075, 10), (0.16, 16), (0.24, 19), (0.34, 21), (0.45, 26), (0.6, 30), (0.8, 34)]

PAPER, INK = "#f0e4ca", "#22160f"
PENS = [(0.08, 0.0, 0.0065), (0.32, 1.0, 0.0065), (0.50, -0.7, 0.006), (0.72, 1.75, 0.006)]
SHORTEST = 4  # steps of a line worth drawing
FORMS = [(0.2, 0.88, 0.5, 0.4, 0.0), (1.1, 0.88, 0.62, 0.38, 0.0)]  # x, y, radii, raggedness
FORMS += [(0.53 + 0.04 * i, 0.57 - 0.012 * i, 0.02, 0.085, 0.3) for i in range(5)]
FORMS += [(0.62, 1.0, 0.42, 0.34, 0.0), (0.1, 1.02, 0.42, 0.36, 0.0), (0.27, 0.64, 0.06, 0.07, 0.4)]
FORMS += [(0.37, 0.69, 0.05, 0.06, 0.4), (1.05, 1.16, 0.7, 0.44, 0.0), (1.0, 0.6, 0.04, 0.2, 0.2)]
FORMS += [(x, y, 0.15, 0.12, 0.4) for x, y in ((1, 0.24), (1.13, 0.38), (0.88, 0.36), (1, 0.43))]

DUSK = ["#fffbd0", "#ffe066", "#ffb02e", "#f4713c", "#d8658f", "#8a6bc0", "#4a72c8", "#27509f"]
HEADLAND = ["#e0709a", "#7a3fb0", "#4a2f9f"]
WATER = ["#f7a07a", "#b08ac0", "#4a86c8", "#1f6fb0", "#15408f", "#0f2f6f"]
MEADOW = ["#0b1f3f", "#0d4a3a", "#1f7a3a", "#6fae3a", "#e0c83a", "#f08a2a"]
PURE = ["#fff4b8", "#ffe81a", "#ffb000", "#ff7a1a", "#e8281e", "#d6246e", "#f7a8b8", "#7a2fa0"]
PURE += ["#2b3fb0", "#15205f", "#1f7fd6", "#8fd0f0", "#12a089", "#2f9e3a", "#0d4a3a", "#a8d84a"]
DOTS = [(0.0115, 0.0135), (0.0075, 0.0105), (0.0045, 0.0090)]


def levels(colours: Array) -> NDArray[np.uint8]:
    """The colours in 256 levels."""
    return (colours.clip(0, 1) * 255).astype(np.uint8)


def ramp(colours: list[str], position: Array) -> Array:
    """The colours at `position` (0 to 1) along a ramp of equal steps."""
    stops = np.linspace(0, 1, len(colours))
    channels = np.transpose([ImageColor.getrgb(colour) for colour in colours]) / 255
    return np.stack([np.interp(position, stops, channel) for channel in channels], axis=-1)


def noise(rng: np.random.Generator, across: int, down: int) -> Array:
    """Smooth noise between about -1 and 1, with that many bumps across and down."""
    bumps = Image.fromarray(rng.uniform(-1, 1, (down, across)).astype(np.float32))
    return np.asarray(bumps.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64)


def at(field: Array, points: Array) -> Array:
    """The values of `field` at `points` (..., 2); those outside take the nearest on the border."""
    column, row = np.moveaxis((points * HEIGHT).astype(int), -1, 0)
    return np.asarray(field[row.clip(0, HEIGHT - 1), column.clip(0, WIDTH - 1)])


def trace(angle: Array, starts: Array, length: Array, steps: int) -> Array:
    """Paths (n, steps, 2) from `starts` along the flow of `angle`, each of its own `length`."""
    paths = [starts]
    while len(paths) < steps:
        heading = at(angle, paths[-1])
        step = np.stack([np.cos(heading), np.sin(heading)], axis=-1) / steps
        paths.append(paths[-1] + step * length[:, None])
    return np.stack(paths, axis=1)


def brushwork() -> Image.Image:
    """Luminous whirls in a night sky over a dark hill, in thick oil: three brushes, large to small,
    follow the flow, each stroke a bundle of bristles of varied colour, lit from the top left."""
    rng = np.random.default_rng(1889)
    light = 0.18 + 0.13 * noise(rng, 5, 11) + 0.32 * np.exp(-(((Y - 0.70) / 0.09) ** 2))
    across, along = np.ones_like(X), 0.7 * np.sin(5.5 * X + 3 * Y)
    for x, y, radius in WHIRLS:
        dx, dy = (X - x) / radius, (Y - y) / radius
        away = np.hypot(dx, dy)
        pull = 4 * np.exp(-(away**2) / 1.2) / (away + 0.05)
        across, along = across - pull * (dy + 0.25 * dx), along + pull * (dx - 0.25 * dy)
        arms = 0.6 + np.sin(2 * np.arctan2(dy, dx) - 9 * away)
        light += np.exp(-((away / 0.33) ** 2)) + 0.38 * arms * np.exp(-(away**2))
    depth = Y - 0.80 + 0.13 * np.sin(2.6 * X + 0.3) - 0.03 * np.sin(9 * X)
    slope = np.arctan(0.27 * np.cos(9 * X) - 0.34 * np.cos(2.6 * X + 0.3))
    field = 0.33 + 0.3 * np.sin(46 * depth + 9 * X + 2 * noise(rng, 6, 4)) + 0.2 * noise(rng, 9, 9)
    colours = np.where(depth[..., None] > 0, ramp(HILL, field), ramp(NIGHT, light))
    angle = np.where(depth > 0, slope + 4 * depth * np.sin(5 * X), np.arctan2(along, across))
    image = Image.new("RGB", (WIDTH, HEIGHT))
    paint = ImageDraw.Draw(image)
    for breadth, reach, count, bristles in BRUSHES:
        starts = rng.uniform(-0.06, CORNER, (count, 2))
        paths = trace(angle, starts, reach * rng.uniform(0.5, 1.1, count), 12)
        heading, width = at(angle, paths), round(breadth * HEIGHT / bristles) + 1
        sides = np.stack([-np.sin(heading), np.cos(heading)], axis=-1) * breadth
        bases = at(colours, paths[:, 6]) + rng.normal(0, 0.07, (count, 1))
        for path, side, base in zip(paths, sides, rng.normal(bases, 0.05), strict=True):
            for offset in np.linspace(-0.5, 0.5, bristles):
                line = (path + side * offset)[rng.integers(0, 3) : rng.integers(9, 13)] * HEIGHT
                colour = levels(base + rng.normal(0, 0.055)).tolist()
                paint.line(line.ravel().tolist(), tuple(colour), width)
    relief = image.convert("L").filter(ImageFilter.GaussianBlur(1.6))
    lit = np.asarray(image) / 255 + np.add(*np.gradient(np.asarray(relief) / 128))[..., None]
    return Image.fromarray(levels(lit)).resize(SIZE, LANCZOS)


def glass() -> Image.Image:
    """A leaded window, the sun's rays over hills and a stream: each shape is cut into the Voronoi
    cells of its own seeds; the distance to their borders gives round lead and glowing panes."""
    rng = np.random.default_rng(1140)
    radius = np.concatenate([rng.normal(r, 0.04 * r, n) for r, n in RINGS])
    turn = np.concatenate([rng.normal(np.arange(n) * 2 * np.pi / n, 0.05) for _, n in RINGS])
    rings = SUN + np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    bank = Y - 0.70 - 0.10 * np.sin(3.6 * X + 0.9)
    bend = np.abs(X - 0.52 - 0.16 * np.sin(8.5 * (Y - 0.52)))
    shapes = [  # each over those before: the distance from its outline, above 0 inside
        (SKY, rings, np.full(X.shape, np.inf)),
        (SKY, rings, 0.115 - np.hypot(X - SUN[0], Y - SUN[1])),
        (SKY[4:], rng.uniform(0, CORNER, (190, 2)), Y - 0.62 + 0.08 * np.sin(5.2 * X + 2.2)),
        (GRASS, rng.uniform(0, CORNER, (130, 2)), bank),
        (STREAM, rng.uniform(0, CORNER, (260, 2)), np.minimum(0.42 * Y - 0.264 - bend, bank)),
    ]
    edge, pane, traits = np.full(X.shape, np.inf), np.zeros((*X.shape, 3)), np.zeros((*X.shape, 2))
    for colours, seeds, inside in shapes:
        within = inside > 0
        near, owner = KDTree(seeds).query(np.stack([X[within], Y[within]], axis=1), k=2)
        apart = np.linalg.norm(seeds[owner[:, 0]] - seeds[owner[:, 1]], axis=1)
        border = (near[:, 1] ** 2 - near[:, 0] ** 2) / (2 * apart)
        edge = np.minimum(edge, -0.5 * inside)
        edge[within] = np.minimum(border, 0.5 * inside[within])
        away = rng.normal(np.hypot(*(seeds - SUN).T) * 1.15, 0.1)
        pane[within] = ramp(colours, away)[owner[:, 0]]
        traits[within] = rng.uniform((0.0028, 0), (0.0058, np.pi), seeds.shape)[owner[:, 0]]
    width, turn = np.moveaxis(traits, -1, 0)
    u, v = X * np.cos(turn) + Y * np.sin(turn), Y * np.cos(turn) - X * np.sin(turn)
    light = 0.96 + 0.08 * np.sin(110 * u + 6 * noise(rng, 14, 11)) + 0.17 * np.sin(9 * v + 7 * turn)
    light += 0.12 * noise(rng, 60, 48) + 0.9 * np.clip(noise(rng, 190, 150) - 0.72, 0, 1)
    light *= 1.1 - 0.5 * np.exp(-edge / 0.014)
    pane = pane * light[..., None] + 0.35 * np.clip(light - 0.98, 0, 1)[..., None]
    lead = 0.05 + 0.24 * np.clip(1 - edge / width, 0, 1) ** 2 + 0.04 * noise(rng, 240, 190)
    window = np.where((edge < width)[..., None], lead[..., None], pane)
    return Image.fromarray(levels(window)).resize(SIZE, LANCZOS)


def hatching() -> Image.Image:
    """Hills and trees under a low sun, in pen and ink: one to four layers of wobbly lines follow
    the form or cross it where it is dark enough, swelling with the tone and keeping apart."""
    rng = np.random.default_rng(1505)
    sunward = np.hypot(X - 0.25, Y - 0.2)
    dark = (sunward > 0.07) * np.minimum(0.6 * sunward + 0.2 * noise(rng, 5, 9), 0.66)
    angle = np.arctan2(Y - 0.2, X - 0.25) + np.pi / 2
    for x, y, wide, tall, ragged in FORMS:
        across, along, tree = (X - x) / wide, (Y - y) / tall, ragged > 0
        bumps = noise(rng, 60, 48) if tree else noise(rng, 9, 12)
        away = np.hypot(across, along) + ragged * bumps
        dark += tree * 0.3 * np.exp(-(np.hypot(across - 0.4, along - 0.3) ** 6))
        shade = 0.12 + (0.5 if tree else 1.5) * (along + 1) + 0.38 * across + 0.28 * bumps
        shade = np.where((1 - away) * min(wide, tall) < 0.008, 0.9, shade)
        flow = 1.2 * bumps - 0.9 if ragged > 0.3 else np.arctan2(-across / wide, along / tall)
        dark, angle = np.where(away < 1, (shade, flow), (dark, angle))
    angle += 0.12 * noise(rng, 40, 32) + 0.05 * noise(rng, 150, 120)
    grain = 0.02 * noise(rng, 300, 240) + 0.015 * noise(rng, 8, 6)
    image = Image.fromarray(levels(ramp([PAPER], dark) + grain[..., None]))
    pen = ImageDraw.Draw(image)
    for threshold, turn, gap in PENS:
        taken = np.zeros((HEIGHT, WIDTH))
        starts, lengths = rng.uniform(0, CORNER, (30000, 2)), rng.uniform(0.06, 0.16, 30000)
        paths = trace(angle + turn, starts, lengths, 28)
        tones = at(dark, paths) - threshold
        for path, tone in zip((paths * HEIGHT).astype(int).tolist(), tones, strict=True):
            free = (tone > 0) & (at(taken, np.array(path) / HEIGHT) == 0)
            length = len(free) if free.all() else int(free.argmin())
            ends, depths = path[1 : length * (length > SHORTEST)], tone.clip(0, 0.65)
            for (x, y), end, depth in zip(path, ends, depths, strict=False):
                pen.line((x, y, *end), INK, round(2 + 3.6 * depth))
                reach = round(gap * HEIGHT * (1.25 - 0.7 * depth))
                taken[*(slice(max(c - reach, 0), max(c + reach, 0)) for c in (y, x))] = 1
    return image.resize(SIZE, LANCZOS)


def dots() -> Image.Image:
    """A low sun over water, seen from under a tree, in three layers of dots, large to small: each
    takes the pure colour nearest to the scene's or, now and then, to its complement's."""
    rng = np.random.default_rng(1886)
    sunward, depth = np.hypot(0.8 * (X - 0.66), Y - 0.30), Y - 0.52
    path = np.abs(X - 0.66) < 0.035 + 0.35 * depth + 0.05 * noise(rng, 12, 80)
    ridge = 0.11 * np.exp(-(((X - 1.26) / 0.3) ** 2)) + 0.06 * np.exp(-(((X - 0.3) / 0.2) ** 2))
    bank = Y - 0.93 + 0.20 * np.exp(-((X / 0.42) ** 2)) - 0.03 * np.sin(5 * X)
    crown = np.hypot((X - 0.13) / 0.27, (Y - 0.20) / 0.25) + 0.4 * noise(rng, 14, 11)
    scene = ramp(DUSK, (sunward > 0.06) * (0.16 + 1.05 * sunward + 0.13 * noise(rng, 5, 14)))
    for where, colours, position in (
        (depth > -ridge, HEADLAND, 9 * (depth + ridge)),
        (depth > 0, WATER, 0.35 + 1.1 * depth + 0.25 * noise(rng, 9, 70)),
        (path & (depth > 0), DUSK, 0.12 + 0.2 * noise(rng, 20, 90)),
        ((np.abs(X - 0.99) < 0.33 * (Y - 0.40)) & (Y < 0.58), DUSK, (X - 0.945) * 3),
        ((np.abs(X - 0.15 - 0.03 * np.sin(4 * Y)) < 0.02) & (Y > 0.2), MEADOW, 0.2 * X),
        (bank > 0, MEADOW, 0.15 + 2.2 * bank + 0.3 * noise(rng, 22, 30)),
        (crown < 0.9, MEADOW, 0.25 + 1.1 * (X - 0.13) + 0.4 * noise(rng, 24, 19)),
    ):
        scene[where] = ramp(colours, position[where])
    image, pure = Image.new("RGB", (WIDTH, HEIGHT)), ramp(PURE, np.linspace(0, 1, len(PURE)))
    brush = ImageDraw.Draw(image)
    for radius, gap in DOTS:
        grid = np.mgrid[0 : CORNER[0] : gap, 0:1:gap].reshape(2, -1).T
        centres = rng.normal(rng.permutation(grid), gap / 3)
        wanted = rng.normal(at(scene, centres), 0.13)
        opposite = wanted.max(axis=1, keepdims=True) - 0.8 * wanted
        wanted = np.where(rng.random((len(centres), 1)) < 0.06, opposite, wanted)
        colours = pure[((wanted[:, None] - pure) ** 2).sum(axis=2).argmin(axis=1)]
        sizes = radius * HEIGHT * rng.uniform(0.55, 1.2, (len(centres), 1))
        for centre, size, colour in zip(centres * HEIGHT, sizes, levels(colours), strict=True):
            brush.ellipse((*(centre - size), *(centre + size)), tuple(colour.tolist()))
    return image.resize(SIZE, LANCZOS)


PAINTINGS = {painting.__name__: painting for painting in (brushwork, glass, hatching, dots)}

if __name__ == "__main__":
    for name, draw in PAINTINGS.items():
        draw().save(Path(__file__).with_name(f"{name}.jpg"), quality=86, optimize=True)
