"""A glyph world: 28x28 grey characters drawn from matplotlib's own fonts, in any number.

Every (font, character) pair is rasterised once and kept as a signed distance field; an example
samples its field under a random affine map, and where the field is cut decides the stroke's width.
"""

import functools
import pathlib
import string

import numpy as np
from scipy import ndimage

from tinker.numerics.errors import UserError

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase

# Files by family: a split by family leaves no bold or italic cousin of a held-out face in training.
FONTS = {
    "DejaVu Sans": [f"DejaVuSans{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")],
    "DejaVu Sans Mono": [f"DejaVuSansMono{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")],
    "DejaVu Serif": [f"DejaVuSerif{s}" for s in ("", "-Bold", "-Italic", "-BoldItalic")],
    "STIX": [f"STIXGeneral{s}" for s in ("", "Bol", "Italic", "BolIta")],
    "Computer Modern Roman": ["cmr10", "cmb10", "cmti10"],
    "Computer Modern Sans": ["cmss10"],
    "Computer Modern Typewriter": ["cmtt10"],
}
FONT_NAMES = tuple(font for family in FONTS.values() for font in family)

_PIXELS = 28  # side of an image
_FIELD = 36  # side of a distance field, in pixels of the image: the widest capital fits
_EM = 24.0  # font size in pixels of the image: capitals are about 17 high
_FINE = 4  # the rasteriser's pixels per image pixel
_KEPT = 2  # the field's samples per image pixel


@functools.lru_cache(maxsize=len(FONT_NAMES))
def _face(font):
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    face = FT2Font(str(pathlib.Path(get_data_path(), "fonts", "ttf", f"{font}.ttf")))
    face.set_size(_EM * _FINE, 72)
    return face


@functools.cache
def _distance_field(font, character):
    """Signed distance to the outline in image pixels, positive inside, float32 ``[72, 72]``.

    The character stands at its font's size with the middle of its bounding box in the middle.
    """
    face = _face(font)
    face.clear()
    face.set_text(character, 0.0)
    face.draw_glyphs_to_bitmap(antialiased=True)
    bitmap = np.asarray(face.get_image())
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    bitmap = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = _FIELD * _FINE
    top, left = (side - np.array(bitmap.shape)) // 2
    canvas = np.zeros((side, side), np.uint8)
    canvas[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
    ink = canvas >= 128
    distance = ndimage.distance_transform_edt(ink) - ndimage.distance_transform_edt(~ink)
    step = _FINE // _KEPT
    kept = distance.reshape(side // step, step, side // step, step).mean((1, 3))
    return (kept / _FINE).astype(np.float32)


def _bilinear(fields, index, y, x):
    """Samples ``fields[index]`` at (y, x); beyond the edge the edge's value holds.

    Args:
      fields: ``[fields, height, width]``, float32.
      index: Which field each image reads, ``[batch]``, integers.
      y: Rows, in samples, ``[batch, pixels]``.
      x: Columns, in samples, ``[batch, pixels]``.

    Returns:
      Values, ``[batch, pixels]``, float32.
    """
    height, width = fields.shape[1:]
    y = np.clip(y, 0, height - 1.001)
    x = np.clip(x, 0, width - 1.001)
    row, column = y.astype(np.int32), x.astype(np.int32)
    down, right = y - row, x - column
    corner = index[:, None].astype(np.int32) * (height * width) + row * width + column
    flat = fields.reshape(-1)
    above = flat[corner] * (1 - right) + flat[corner + 1] * right
    below = flat[corner + width] * (1 - right) + flat[corner + width + 1] * right
    return above * (1 - down) + below * down


def fonts_of(split, *, disjoint_fonts, split_seed):
    """The fonts that a split draws from.

    Args:
      split: "train", "validation" or "test".
      disjoint_fonts: Whether two of the seven families are kept for the test split alone.
      split_seed: Which two.

    Returns:
      A tuple of names out of ``FONT_NAMES``.
    """
    if not disjoint_fonts:
        return FONT_NAMES
    held_out = set(np.random.default_rng(split_seed).choice(list(FONTS), 2, replace=False))
    families = [f for f in FONTS if (f in held_out) == (split == "test")]
    return tuple(font for family in families for font in FONTS[family])


def draw_glyphs(
    seed,
    size,
    fonts=FONT_NAMES,
    *,
    classes=10,
    rotation=15.0,
    scale=(0.8, 1.15),
    shear=0.2,
    shift=2.5,
    stroke=(-0.1, 0.7),
    noise=0.08,
):
    """Draws characters under random affine maps, stroke widths and pixel noise.

    The map, the stroke and the font of each example are uniform over their ranges; labels are
    balanced to within one example. The same arguments give the same images.

    Args:
      seed: An integer, or a sequence of them, of which everything is drawn.
      size: Number of images.
      fonts: Names out of ``FONT_NAMES``.
      classes: Number of characters, 2 to 62: digits, then capitals, then small letters; or which,
        a sequence of indices into ``CHARACTERS``.
      rotation: Largest angle either way, degrees.
      scale: Least and largest size, relative to capitals 17 pixels high.
      shear: Largest horizontal shear either way, pixels per pixel of height.
      shift: Largest translation either way on each axis, pixels.
      stroke: Least and largest thickening of each side of a stroke, pixels; negative thins.
      noise: Standard deviation of the Gaussian pixel noise, before clipping to [0, 1].

    Returns:
      A dict of ``image`` float32 ``[size, 28, 28, 1]`` in [0, 1], ink bright, ``label`` int32
      ``[size]``, a place among the classes, and ``font`` int32 ``[size]``, an index into
      ``FONT_NAMES``.

    Raises:
      UserError: If classes is out of range.
    """
    chosen = range(classes) if isinstance(classes, int) else classes
    if not 2 <= (count := len(chosen)) <= len(CHARACTERS):
        raise UserError(f"glyphs: classes must be from 2 to {len(CHARACTERS)}, got {count}")
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(size) % count)
    font = rng.integers(len(fonts), size=size)
    fields = np.stack([_distance_field(f, CHARACTERS[c]) for f in fonts for c in chosen])

    angle = np.deg2rad(rng.uniform(-rotation, rotation, size))
    zoom = rng.uniform(*scale, size)
    slant = rng.uniform(-shear, shear, size)
    offset = rng.uniform(-shift, shift, (2, size))
    thickness = rng.uniform(*stroke, size).astype(np.float32)

    # From a pixel of the image back to a sample of the field: undo shift, rotation, shear, zoom.
    cos, sin = np.cos(angle), np.sin(angle)
    inverse = np.array([[cos, -sin], [sin - slant * cos, cos + slant * sin]]) / zoom
    inverse, offset = inverse.astype(np.float32), offset.astype(np.float32)
    centred = np.arange(_PIXELS, dtype=np.float32) - (_PIXELS - 1) / 2
    pixel_y, pixel_x = (p.reshape(-1) for p in np.meshgrid(centred, centred, indexing="ij"))
    middle = (_FIELD * _KEPT - 1) / 2

    image = np.empty((size, _PIXELS * _PIXELS), np.float32)
    for start in range(0, size, 512):  # a chunk's temporaries stay in cache
        rows = slice(start, start + 512)
        dy = pixel_y - offset[0, rows, None]
        dx = pixel_x - offset[1, rows, None]
        (yy, yx), (xy, xx) = inverse[..., rows, None]
        distance = _bilinear(
            fields,
            font[rows] * count + label[rows],
            (yy * dy + yx * dx) * _KEPT + middle,
            (xy * dy + xx * dx) * _KEPT + middle,
        )
        ink = np.clip(0.5 + distance * zoom[rows, None] + thickness[rows, None], 0, 1)
        grain = rng.standard_normal(ink.shape, dtype=np.float32)
        image[rows] = np.clip(ink + noise * grain, 0, 1)
    return {
        "image": image.reshape(size, _PIXELS, _PIXELS, 1),
        "label": label.astype(np.int32),
        "font": np.array([FONT_NAMES.index(f) for f in fonts], np.int32)[font],
    }
