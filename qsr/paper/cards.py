"""Model cards: what a file scores, and how its integers differ from the graph it was trained as.

A card is written when a network is packed, and believed from then on: by `qsr models`, Table 1 and
README. Whether it is true can be asked at any time, as the file is here: score it again. And when
what a score counts has changed, all cards are made again, from the files alone: what the kernels
compute is compared with `unpack`'s training graph, which packs to the same bits.

    scored(model, sets), compared(model, sets)     what a card holds
    again(names, sets)                             what cards say, and what files score now
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..backbone import QuantSR
from ..images.data import list_sets, pairs
from ..infer import Model
from ..integer.packing import PackedModel
from ..integer.unpacking import unpack
from ..models import zoo
from ..scores import Agreement, Scores, agreement, evaluate
from . import report
from .rows import fitting

AGREED = 20  # pictures of a set on which a packed network is compared with its training graph
WINDOW = 48  # rows and columns of their lr, in the middle, where codes are compared


def scored(model: Model, sets: Sequence[str]) -> dict[int, dict[str, Scores]]:
    """{depth: {set: scores}} of a model at each of its depths, with progress on stderr."""
    return {
        depth: {name: evaluate(model, name, blocks=depth, progress=True) for name in sets}
        for depth in model.config.depths
    }


def compared(model: Model, sets: Sequence[str], net: QuantSR | None = None) -> dict[str, Agreement]:
    """{set: how a packed network differs from its training graph}; empty in full precision, which
    is not packed. Slow, so of the first 20 pictures of a set.

    net: the graph (None: that of `unpack`).
    """
    if not isinstance(model, PackedModel):
        return {}
    net = unpack(model) if net is None else net
    some = {name: list(itertools.islice(pairs(name, net.config.scale), AGREED)) for name in sets}
    return {
        name: agreement(net, model, pictures, window=WINDOW, progress=True)
        for name, pictures in some.items()
    }


@dataclass(frozen=True)
class Line:
    """A model at one depth on one set, PSNR-Y in dB: on its card (None: not there), and now."""

    name: str
    blocks: int
    set: str
    card: float | None
    psnr_y: float

    @property
    def difference(self) -> float | None:
        """Now - the card, in dB; the card has three decimals."""
        return None if self.card is None else round(self.psnr_y - self.card, 3) + 0.0  # no -0


def chosen(patterns: Sequence[str] = ()) -> list[str]:
    """The models that come with qsr whose names fit one of the patterns; none given: all.

    Raises ValueError for a pattern that fits none.

    >>> chosen(["srresnet-*"])
    ['srresnet-x2', 'srresnet-x4']
    """
    return fitting(zoo.names(), patterns, "no model is called {pattern}; there are {names}.")


def again(names: Sequence[str], sets: Sequence[str] = (), write: bool = False) -> Iterator[Line]:
    """Score models that come with qsr again. Yields a line for each depth and set.

    sets: none given, those of the cards that are here. write: also write each card with what was
    found, how the model was trained as it stands there; then all its sets are needed, as a card
    with fewer would have lost something. Raises ValueError before anything is scored.
    """
    here, wanted = list_sets(), {}
    for name in names:
        own = _sets_of(zoo.card(name))
        if write and (lost := [s for s in own if sets and s not in sets]):
            raise ValueError(f"the card of {name} has {', '.join(lost)} too, and would lose it.")
        if write and (missing := [s for s in sets or own if s not in here]):
            raise ValueError(
                f"the card of {name} needs {', '.join(missing)}; set QSR_DATA to a folder with it."
            )
        wanted[name] = sets or [s for s in own if s in here]
    for name, there in wanted.items():
        card, model = zoo.card(name), zoo.load(name)
        scores = scored(model, there)
        yield from _lines(card, scores)
        if write:
            agreed = compared(model, there)
            zoo.write_card(zoo.path_of(name), model, card["training"], scores, agreed)


def text(lines: Sequence[Line]) -> str:
    """The lines as a table in Markdown, and how far cards and files are apart."""
    rows = [
        (
            line.name,
            line.blocks,
            line.set,
            "-" if line.card is None else f"{line.card:.3f}",
            f"{line.psnr_y:.3f}",
            "-" if line.difference is None else f"{line.difference:+.3f}",
        )
        for line in lines
    ]
    apart = [abs(line.difference) for line in lines if line.difference is not None]
    most = f"at most {max(apart):.3f} dB apart" if apart else "on no card"
    notes = [f"PSNR-Y in dB. {len(lines)} scores, {most}."]
    head = ("model", "blocks", "set", "card", "now", "difference")
    table = report.markdown(head, rows, right=3, aligned=True)
    return "\n\n".join([table, "\n".join(report.notes(notes))])


def _sets_of(card: Mapping) -> tuple[str, ...]:
    """The sets that a card has scores of, in its order."""
    return tuple(dict.fromkeys(s for scores in card["scores"].values() for s in scores))


def _lines(card: Mapping, scores: Mapping[int, Mapping[str, Scores]]) -> Iterator[Line]:
    for depth, of in scores.items():
        said = card["scores"].get(str(depth), {})
        for name, found in of.items():
            yield Line(card["name"], depth, name, said.get(name, [None])[0], found.psnr_y)
