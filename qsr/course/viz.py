"""Pictures of pictures: the demo, and a figure of crops side by side.

A comparison of enlargements is easily made to flatter. Three rules keep these honest: all methods
show the same crop at the same zoom; a pixel of the result is a square of the figure, never smoothed
again; and the decibels beside a crop are those of the whole picture, not of the crop that was
chosen.

    demo("demo")                       the bundled photograph by every model and depth
    before_after([Scene(...), ...])    crops side by side, for a page or a paper

The figures and sliders of notebooks, in `viewers`, have their names here too: `viz.Frames`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..images.data import make_pair, photo
from ..images.metrics import psnr_y
from ..images.picture import from_array
from ..images.tensors import to_uint8
from ..images.writing import write
from ..infer import enlarge
from ..models import zoo
from ..scores import bicubic
from .viewers import DARK, LIGHT, write_figure
from .viewers import PALETTE as PALETTE
from .viewers import STYLE as STYLE
from .viewers import Compare as Compare
from .viewers import Frames as Frames
from .viewers import figure as figure
from .viewers import live as live
from .viewers import own_picture as own_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Crop = tuple[int, int, int, int]  # top, left, height, width in pixels

# The demo -----------------------------------------------------------------------------------------

FACE: Crop = (66, 168, 100, 116)  # of the bundled photograph


def demo(folder: str | os.PathLike) -> tuple[list[dict], Path]:
    """Enlarge the bundled photograph by bicubic and by every model at each of its trained depths.

    The photograph is shrunk by MATLAB's bicubic first, so that the truth is known. Writes the
    original, the inputs and all results as PNG into `folder` (made if need be; files of these names
    are replaced), and before_after.png with its twin before_after_dark.png.
    Returns the rows of the table, {scale, model, blocks, psnr_y, bytes, ms}, and the figure's path.
    blocks and bytes (of the model file, which holds all depths) are None for bicubic; psnr_y is in
    dB; ms is the best of three runs after one to warm up. Progress goes to stderr.
    Raises ValueError if the folder cannot be written to, or qsr came without models.
    """
    folder = Path(folder)
    jobs = _jobs()
    if not jobs:
        raise ValueError(f"there are no models in {zoo.FOLDER}; install qsr again.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made a folder: {error.strerror}; name another folder."
        ) from error
    hr = to_uint8(photo().rgb[0])
    _write(hr[None] / 255, folder / "original.png")
    rows, figure_rows = [], []
    with tqdm(total=sum(map(len, jobs.values())), desc="enlarging", unit="picture") as bar:
        for scale, runs in jobs.items():
            pair = make_pair("photo", hr, scale)
            _write(pair.lr, folder / f"x{scale}-input.png")
            results = []
            for row, run in runs:
                sr, ms = _best_ms(run, pair.lr)
                row |= {"psnr_y": psnr_y(sr, pair.hr, crop=scale).item(), "ms": ms}
                depth = f"-{row['blocks']}-blocks" if row["blocks"] else ""
                _write(sr, folder / f"x{scale}-{row['model']}{depth}.png")
                results.append((row, sr))
                bar.update()
            rows += [row for row, _ in results]
            figure_rows.append(_figure_row(scale, pair.hr, results))
    for name, dark in (("before_after.png", False), ("before_after_dark.png", True)):
        write_figure(before_after(figure_rows, dark=dark), folder / name)
    return rows, folder / "before_after.png"


def _jobs() -> dict[int, list[tuple[dict, Callable[[Tensor], Tensor]]]]:
    """{scale: what to run, bicubic first}, each a row of the table to be filled and a function."""
    jobs: dict[int, list] = {}
    for name in zoo.names():
        model = zoo.load(name)
        scale = model.config.scale
        size = zoo.path_of(name).stat().st_size
        if scale not in jobs:
            row = {"scale": scale, "model": "bicubic", "blocks": None, "bytes": None}
            jobs[scale] = [(row, lambda lr, scale=scale: bicubic(lr, scale))]
        for blocks in sorted(model.config.depths):
            row = {"scale": scale, "model": name, "blocks": blocks, "bytes": size}
            jobs[scale].append((row, lambda lr, m=model, b=blocks: enlarge(lr, m, b)))
    return dict(sorted(jobs.items()))


def _best_ms(run: Callable[[Tensor], Tensor], lr: Tensor) -> tuple[Tensor, float]:
    """run(lr) and the least milliseconds of three times, after one to warm up.

    The least, not the mean: other processes can only add to the time.
    """
    sr = run(lr)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run(lr)
        times.append(time.perf_counter() - began)
    return sr, 1000 * min(times)


def _figure_row(scale: int, hr: Tensor, results: list[tuple[dict, Tensor]]) -> Scene:
    """Bicubic beside the low-bit network that comes closest to the original."""
    (_, baseline), *networks = results
    low = [(row, sr) for row, sr in networks if zoo.card(row["model"])["bits"] != zoo.FULL]
    best, sr = max(low, key=lambda result: result[0]["psnr_y"])
    weights, _, activations = zoo.card(best["model"])["bits"].partition("/")
    bits = weights if weights == activations else f"{weights}/{activations}"
    label = f"{bits}-bit network, {best['blocks']} blocks"
    return Scene(scale, hr, {"bicubic": baseline, label: sr}, FACE)


def _write(picture: Tensor, path: Path) -> None:
    array = to_uint8(picture)[0].permute(1, 2, 0).numpy()
    write(from_array(array), path, overwrite=True)


# Crops side by side -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A row of `before_after`: one scene by several methods.

    scale: by how much they enlarged. original: float RGB [1, 3, H, W] in [0, 1].
    enlarged: {label: a picture of the same shape}. crop: the part to show.
    Raises ValueError if the crop leaves the picture.
    """

    scale: int
    original: Tensor
    enlarged: Mapping[str, Tensor]
    crop: Crop

    def __post_init__(self) -> None:
        top, left, height, width = self.crop
        rows, columns = self.original.shape[-2:]
        inside = 0 <= top < top + height <= rows and 0 <= left < left + width <= columns
        if not inside:
            raise ValueError(
                f"`crop` is {self.crop} (top, left, height, width) and the picture {rows} x "
                f"{columns}; a crop lies inside the picture. Move or shrink it."
            )

    def panels(self) -> list[tuple[str, str, np.ndarray]]:
        """[(label, PSNR-Y of the whole picture, crop as uint8 [h, w, 3])], the original last."""
        top, left, height, width = self.crop
        panels = []
        for label, picture in {**self.enlarged, "original": self.original}.items():
            score = ""
            if picture is not self.original:
                score = f"{psnr_y(picture, self.original, crop=self.scale).item():.2f} dB"
            shown = to_uint8(picture[0, :, top : top + height, left : left + width])
            panels.append((label, score, shown.permute(1, 2, 0).cpu().numpy()))
        return panels


def before_after(rows: Sequence[Scene], zoom: int = 3, dark: bool = False) -> Figure:
    """A figure of crops: one row per scene or scale, one column per method, the original last.

    Above each crop stands its label, and the PSNR-Y of the whole picture. A pixel is a square of
    zoom x zoom pixels of the figure when it is saved at its own dpi. dark: for dark pages.
    Raises ValueError for no rows.
    """
    from matplotlib.figure import Figure  # here, so that `import qsr` stays fast

    if not rows:
        raise ValueError("`rows` is empty; a figure needs at least one row of pictures.")
    page = DARK if dark else LIGHT
    panels = [row.panels() for row in rows]
    # Everything is placed in whole pixels, or crops would be resampled.
    gap, head, side, dpi = 16, 30, 44, 100
    cell_height = zoom * max(row.crop[2] for row in rows)
    cell_width = zoom * max(row.crop[3] for row in rows)
    columns = max(map(len, panels))
    width = side + columns * cell_width + columns * gap
    height = len(rows) * (head + cell_height) + gap
    size = (width / dpi, height / dpi)
    # matplotlib knows "none", its types do not.
    figure = Figure(figsize=size, dpi=dpi, facecolor=page.paper, layout="none")  # type: ignore[arg-type]

    def text(x: float, y: float, words: str, size: float, colour: str, **options) -> None:
        figure.text(x / width, 1 - y / height, words, fontsize=size, color=colour, **options)

    for i, (row, cells) in enumerate(zip(rows, panels, strict=True)):
        top = i * (head + cell_height) + head
        text(
            side / 2, top + cell_height / 2, f"×{row.scale}", 15, page.ink, ha="center", va="center"
        )
        for j, (label, score, crop) in enumerate(cells):
            left = side + j * (cell_width + gap)
            h, w = zoom * crop.shape[0], zoom * crop.shape[1]
            box = (left / width, 1 - (top + h) / height, w / width, h / height)
            axes = figure.add_axes(box)
            axes.imshow(crop, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            text(left, top - 8, label, 11, page.ink)
            text(left + w, top - 8, score, 11, page.faint, ha="right")
    return figure
