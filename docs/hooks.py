"""What the site needs beyond its plugins; mkdocs calls the functions `on_...` while it builds.

- `*` in the navigation, and a tutorial's number before its title;
- what is made while building, so that it cannot be out of date: the slider of the home page, the
  table of notebooks, the scores of the models, Tables 1 and 2;
- tutorials: no cells that need a kernel, code that only draws folded, links to open or keep the
  notebook, links to notebooks, pages and sources that lead there on the site too; no solutions,
  neither in pages nor in the files to keep, but with QSR_SOLUTIONS=1 folded ones, for instructors,
  and with them the page of answers to open questions;
- the versions in each page's footer.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from html import escape
from importlib.metadata import version
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from mkdocs.structure.toc import get_toc
from pathspec import GitIgnoreSpec

import qsr
from qsr.course import student
from qsr.course.student import links
from qsr.course.viewers import Compare
from qsr.images.data import make_pair, photo
from qsr.images.tensors import to_uint8
from qsr.models import zoo
from qsr.paper import baselines, baselines_report, gap, heldout, table1, table1_report, table2
from qsr.paper.costs import RULES
from qsr.scores import bicubic

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = Path(__file__).parent / "tutorials"
MODEL = "quantsr-c-x4-w4a4"  # on the home page
SETS = ("Set5", "Set14", "B100")  # of the table of models
ANSWERS = "answers.md"  # to open questions: a page for instructors alone
GOAL = re.compile(r"^\d\. .*(?:\n +.*)*", re.MULTILINE)  # in the first cell of a notebook
COLUMN = 700  # pixels: a picture that is wider consists of several
TAKES = re.compile(r"\*\*Takes\*\* about (\d+) seconds")


def on_config(config):
    docs = Path(config.docs_dir)
    pages = sorted([*docs.rglob("*.md"), *docs.glob("tutorials/*.ipynb")])
    config.nav = _expanded(config.nav, [page.relative_to(docs).as_posix() for page in pages])
    if not _with_solutions():
        config.nav = _without(config.nav, ANSWERS)
        config.exclude_docs += GitIgnoreSpec.from_lines([ANSWERS])
    config.copyright = _built_from()
    return config


def on_page_markdown(markdown, page, **_):
    if page.file.src_uri == "log.md":  # parts of an entry, which stand on lines without gaps
        parts = r"^(Setting|Result|Verdict|Also tried)\b"
        markdown = re.sub(parts, r"\n**\1**", markdown, flags=re.MULTILINE)
    for mark, make in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def on_page_content(html, page, config, **_):
    if not page.file.src_uri.endswith(".ipynb"):
        return re.sub(r"<p>(<img [^>]*>)</p>", r'<p class="scrolls">\1</p>', html)
    page.toc = get_toc(headings(html))
    name, repository = Path(page.file.src_uri).name, config.extra["repository"]
    return tutorial(html, name, repository, _with_solutions())


def on_post_build(config):
    """The notebooks that a page lets its reader keep, the sources that they link to, and the
    questions with their keys."""
    site = Path(config.site_dir)
    for path in TUTORIALS.glob("*.ipynb"):
        for link in links(json.loads(path.read_text("utf-8"))):
            if _page_of(link) is None:
                copy = site / _source_page(link)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((ROOT / link).read_bytes())
    if _with_solutions():
        return
    (site / "questions.gift").unlink(missing_ok=True)
    for path in site.rglob("*.ipynb"):
        notebook = student.read(TUTORIALS / path.name)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _with_solutions() -> bool:
    return os.environ.get("QSR_SOLUTIONS") == "1"


# Navigation and footer ----------------------------------------------------------------------------


def _expanded(nav, pages: list[str]):
    """The navigation with each pattern replaced by the pages it stands for that are not named."""
    if isinstance(nav, dict):
        return {title: _expanded(part, pages) for title, part in nav.items()}
    if not isinstance(nav, list):
        return nav
    entries = []
    for entry in nav:
        if isinstance(entry, str) and "*" in entry:
            entries += [_titled(p) for p in pages if fnmatch(p, entry) and p not in nav]
        else:
            entries.append(_expanded(entry, pages))
    return entries


def _without(nav, page: str):
    """The navigation without a page."""
    if isinstance(nav, dict):
        return {title: _without(part, page) for title, part in nav.items() if part != page}
    if not isinstance(nav, list):
        return nav
    parts = [_without(part, page) for part in nav if part != page]
    return [part for part in parts if part != {}]


def _titled(page: str):
    """A tutorial with its number and title; other pages have their title in themselves."""
    if not page.endswith(".ipynb"):
        return page
    return {_numbered_title(TUTORIALS / Path(page).name): page}


def _numbered_title(notebook: Path) -> str:
    number = notebook.name.partition("_")[0]
    title = _first_cell(notebook).splitlines()[0].removeprefix("# ")
    return f"{number} {title.replace('`', '')}"  # which a page's title would show as they are


def _first_cell(notebook: Path) -> str:
    return "".join(json.loads(notebook.read_text())["cells"][0]["source"])


def _built_from() -> str:
    """The versions for the footer, and the commit where there is one."""
    built = f"qsr {qsr.__version__}, built with torch {version('torch')}"
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=commit %h of %cs"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        return built
    return f"{built}, {commit}"


# Made while building ------------------------------------------------------------------------------


@functools.cache
def _slider() -> str:
    """Bicubic beside the network, on the photograph that comes with qsr; its scores below."""
    pair = make_pair("photo", to_uint8(photo().rgb[0]), scale=4)
    plain, sr = bicubic(pair.lr, scale=4), qsr.upscale(pair.lr, qsr.load(MODEL))
    scores = [qsr.psnr_y(x, pair.hr, crop=4).item() for x in (plain, sr)]
    size = zoo.path_of(MODEL).stat().st_size
    slider = Compare(plain, sr, ("bicubic ×4", "4-bit network ×4"), quality=85)
    return (
        slider._repr_html_().strip()
        + "\n\n*Drag on the picture, or move the slider with the arrow keys. A photograph of "
        f"128 × 96 pixels, enlarged four times. PSNR-Y: bicubic {scores[0]:.2f} dB, network "
        f"{scores[1]:.2f} dB. The network is the file `{MODEL}.qsr` of {size / 1e6:.1f} MB, which "
        "comes with qsr. Photograph: NASA.*"
    )


def _syllabus() -> str:
    """The notebooks, with what their first cells promise."""
    rows = []
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        text = _first_cell(path)
        goals = (" ".join(goal.split()) for goal in GOAL.findall(text))  # "1. say how ..."
        seconds = TAKES.search(text)
        title = f"[{_numbered_title(path)}](tutorials/{path.name})"
        time = f"<br>runs in {seconds[1]} s" if seconds else ""
        rows.append((title + time, "<br>".join(goals)))
    return _table(("notebook", "after it you can"), rows)


def _models() -> str:
    """The models that come with qsr at their deepest, by their cards; PSNR-Y in dB."""
    cards = [zoo.card(name) for name in zoo.names()]
    heads = ("model", "scale", "bits", "depths", "bytes", *SETS)
    rows = []
    for card in cards:
        link = f"[`{card['name']}`](models.md#{card['name']})"
        depths = ", ".join(map(str, card["depths"]))
        deepest = card["scores"][str(card["depths"][0])]
        cells = (f"{deepest[name][0]:.2f}" for name in SETS)
        size = f"{card['bytes']:,}"
        rows.append((link, f"x{card['scale']}", card["bits"], depths, size, *cells))
    total = sum(card["bytes"] for card in cards)
    return _table(heads, rows, right=4) + f"\n\n{len(cards)} files, {total / 1e6:.1f} MB in all."


def _cards() -> str:
    """Each model's card: how it was trained, its scores at each depth, its file."""
    parts = []
    for card in map(zoo.card, zoo.names()):
        sets = list(card["scores"][str(card["depths"][0])])
        rows = [
            (blocks, *(f"{psnr:.3f} / {ssim:.4f}" for psnr, ssim in scores.values()))
            for blocks, scores in card["scores"].items()
        ]
        parts += [f"### {card['name']}", card["training"]]
        parts.append(_table(("blocks", *sets), rows, right=0))
        if card["packed_minus_trained"]:
            drift = max(abs(d["mean_psnr"]) for d in card["packed_minus_trained"].values())
            worst = max(d["worst_psnr"] for d in card["packed_minus_trained"].values())
            parts.append(
                f"Packed against the float network that was trained, on up to 20 pictures of each "
                f"set: at most {drift:.4f} dB on a mean, {worst:.3f} dB on one picture."
            )
        parts.append(f"{card['bytes']:,} bytes, sha256 `{card['sha256']}`")
    return "\n\n".join(parts)


@functools.cache
def _table2() -> str:
    """Parameters and operations of Table 2 as printed, and as counted by each rule."""
    tables = []
    for name, unit, title in (
        ("parameters", 1e3, "Parameters, thousands of 32 bit"),
        ("ops", 1e9, "Operations, 10⁹ multiply-accumulates of 32 bit"),
    ):
        rows = []
        for row in table2.table2_rows():
            printed, cell = row.printed, row.cells[name]
            counted = (f"{getattr(row.costs[rule], name) / unit:,.2f}" for rule in RULES)
            bits = f"{printed.bits}/{printed.bits}"
            paper = f"{cell.printed} {cell.verdict}"
            rows.append((printed.method, bits, printed.blocks, paper, *counted))
        heads = ("network", "bits", "blocks", "paper", *RULES)
        tables.append(f"**{title}**\n\n" + _table(heads, rows, right=2))
    return "\n\n".join(tables)


def _table1() -> str:
    """Table 1 of the paper beside ours, by model cards and records: no test pictures are here."""
    return table1_report.markdown(table1.table1(here=False))


def _baselines() -> str:
    """The methods of the paper on equal terms, by their records; the figure if there is one."""
    found = baselines.read()
    figure = ""
    if (ROOT / "docs" / "images" / "baselines.png").exists():
        alt = "How far each method is below full precision, a dot for each seed"
        figure = (
            f"![{alt}](images/baselines.png#only-light)"
            f"![{alt}](images/baselines_dark.png#only-dark)\n\n"
        )
    return figure + baselines_report.text(found)


def _figures() -> str:
    """The figures that `make figures` left in docs/images, each with its caption."""
    parts = []
    for path in sorted((ROOT / "docs" / "images").glob("figure[0-9].json")):
        made = json.loads(path.read_text())
        parts.append(f"**Figure {path.stem[-1]}**\n\n![{made['alt']}](images/{path.stem}.png)")
        parts.append(f"*{made['caption']}*")
    return "\n\n".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence], right: int | None = None) -> str:
    """A table in Markdown; columns from number `right` on are flush right."""
    rules = ["---:" if right is not None and i >= right else "---" for i in range(len(heads))]
    lines = (heads, rules, *rows)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


MADE = {
    "<!-- slider -->": _slider,
    "<!-- syllabus -->": _syllabus,
    "<!-- models -->": _models,
    "<!-- cards -->": _cards,
    "<!-- table 1 -->": _table1,
    "<!-- table 2 -->": _table2,
    "<!-- figures -->": _figures,
    "<!-- baselines -->": _baselines,
    "<!-- held out -->": heldout.text,
    "<!-- gap -->": gap.text,
}


# Tutorials ----------------------------------------------------------------------------------------


def tutorial(html: str, name: str, repository: str, solutions: bool) -> str:
    """The page of a notebook as it goes into the site.

    html: the cells as mkdocs-jupyter renders them. name: the notebook's file, which lies beside the
    page. repository: "owner/name" on GitHub, or "". solutions: whether they are shown, folded.
    """
    page = BeautifulSoup(html, "html.parser")
    # What is for those who run it: the word on installing, and cells that need a kernel, whose
    # twin for the site follows them.
    for cell in _cells(page, "install") + _cells(page, "live"):
        cell.decompose()
    for cell in () if solutions else _cells(page, "solution"):
        cell.decompose()
    for cell in _cells(page, "solution"):
        _fold(page, cell, "Show a solution")
    for cell in _cells(page, "folded"):
        _fold(page, cell.select_one(".jp-Cell-inputWrapper"), "Show the code")
    for link in page.select("a[href]"):
        link["href"] = _on_site(link["href"])
    # The tags above cells; MathJax from a server, since KaTeX renders the formulas here.
    for part in page.select(".celltoolbar, script[src], script[type='text/x-mathjax-config']"):
        part.decompose()
    for mark in page.select(".anchor-link"):
        mark.string = ""  # its ¶ would be in what a search finds
        mark["aria-label"] = "Link to this heading"
    for image in page.select(".jp-OutputArea-output img[width]"):
        _may_scroll(page, image)
    for frames in page.select("section[data-stop]"):  # their width is in the style of the box
        width = int(re.search(r"max-width:(\d+)px", frames.parent["style"])[1])
        if frames.img["src"].startswith("data:image/png") or width > COLUMN:  # no mere photograph
            frames.img["style"] += f"; min-width:{min(width, COLUMN)}px"
            _may_scroll(page, frames.img)
    page.h1.insert_after(BeautifulSoup(_links(name, repository), "html.parser"))
    return str(page)


def _may_scroll(page: BeautifulSoup, image: Tag) -> None:
    image.wrap(page.new_tag("div", attrs={"class": "scrolls"}))


def _fold(page: BeautifulSoup, part: Tag, words: str) -> None:
    details = page.new_tag("details", attrs={"class": "folded"})
    summary = page.new_tag("summary")
    summary.string = words
    part.wrap(details).insert(0, summary)


def _on_site(address: str) -> str:
    """Where a link of a notebook leads on the site: a notebook's page, a page, a source's copy."""
    if address.endswith(".ipynb"):
        return f"../{Path(address).stem}/"
    if not address.startswith("../"):
        return address
    path, mark, part = address.removeprefix("../").partition("#")
    page = _page_of(path)
    return f"../../{_source_page(path) if page is None else f'{page}/'}{mark}{part}"


def _page_of(path: str) -> str | None:
    """The page of the site that shows a file of the repository, if one does."""
    pages = Path(__file__).parent.rglob("*.md")
    found = (page for page in pages if page.resolve() == (ROOT / path).resolve())
    names = (page.relative_to(Path(__file__).parent).with_suffix("").as_posix() for page in found)
    return next(names, None)


def _source_page(path: str) -> str:
    """Where the site has a copy of a source, which browsers show as a text."""
    return f"sources/{path}.txt"


def headings(html: str) -> list[dict]:
    """The headings of a page as a tree; mkdocs-jupyter's own loses words set as code."""
    tree: list[dict] = []
    for tag in BeautifulSoup(html, "html.parser").select(":is(h1, h2, h3)[id]"):
        if tag.a is not None:
            tag.a.decompose()  # the mark that links to the heading
        entry = {
            "level": int(tag.name[1]),
            "id": tag["id"],
            "name": escape(tag.text),
            "children": [],
        }
        siblings = tree
        while siblings and siblings[-1]["level"] < entry["level"]:
            siblings = siblings[-1]["children"]
        siblings.append(entry)
    return tree


def _cells(page: BeautifulSoup, tag: str) -> list[Tag]:
    """The cells with a tag; mkdocs-jupyter puts a code cell into two elements: the outer ones."""
    found = {}
    for part in page.select(f".celltag_{tag}"):
        around = [e for e in (part, *part.parents) if "jp-Notebook-cell" in e.get("class", ())]
        found[id(around[-1])] = around[-1]
    return list(found.values())


def _links(name: str, repository: str) -> str:
    links = [f'<a href="{name}" download>Download this notebook</a>']
    if repository:
        colab = "https://colab.research.google.com/github"
        address = f"{colab}/{repository}/blob/main/tutorials/{name}"
        links.insert(0, f'<a href="{address}">Open in Colab</a>')
    return f'<p class="notebook-links">{" · ".join(links)}</p>'
