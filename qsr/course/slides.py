"""Slides for a lecture from the notebooks: `python -m qsr.course.slides FOLDER NOTEBOOK ...`.

A heading begins a slide, and what comes after it, a text with its cell, lies on slides below that
one: a lecturer who goes to the right passes over what there is no time for. What a hall does not
need is left out: imports, exercises and all that follows them, controls that want a kernel. Of a
long or a folded cell only what it shows is seen. nbconvert makes the pages (`make slides`);
reveal.js and KaTeX, which lie in docs/assets, are copied beside them, and nothing is fetched when
they are shown.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..system.files import replacing
from .student import source_of, tags

ASSETS = Path(__file__).parents[2] / "docs" / "assets"
LINES = 18  # of code that a hall can read on a slide
WORDS = 7  # lines of text that leave room for a cell below them
LEFT_OUT = {"install", "live", "exercise", "hint", "solution", "check"}

TEMPLATE = """\
{%- extends 'reveal/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<link rel="stylesheet" href="assets/katex/katex.min.css">
<script src="assets/katex/katex.min.js"></script>
<script src="assets/katex/auto-render.min.js"></script>
<script src="assets/reveal/reveal.js"></script>
{%- endblock -%}
{%- block footer_js -%}
<script>
for (const part of document.querySelectorAll(".jp-RenderedMarkdown"))
  renderMathInElement(part, {delimiters: [{left: "$$", right: "$$", display: true},
                                          {left: "$", right: "$", display: false}]});
Reveal.initialize({width: 960, height: 700, margin: 0.04, center: false, hash: true,
                   slideNumber: "c/t", transition: "none"});
// What is higher than a slide is made smaller as a whole.
function fit() {
  const slide = Reveal.getCurrentSlide();
  slide.style.zoom = 1;
  slide.style.zoom = Math.min(1, 680 / slide.scrollHeight);
}
Reveal.on("ready", fit);
Reveal.on("slidechanged", fit);
</script>
{%- endblock -%}
"""

STYLE = """\
.reveal { font: 24px/1.4 sans-serif; color: #222; }
.reveal .slides { text-align: left; }
.reveal h1 { font-size: 1.9em; } .reveal h2 { font-size: 1.5em; } .reveal h3 { font-size: 1.2em; }
.reveal img { max-height: 560px; max-width: 100%; }
.reveal .jp-Notebook-cell { padding: 0; }
.reveal .jp-Cell :is(.jp-InputPrompt, .jp-OutputPrompt) { display: none; }
.reveal pre { font-size: 17px; width: 100%; box-shadow: none; margin: 0; }
.reveal section > * { width: 100%; }
"""


def slides_of(notebook: dict) -> dict:
    """A copy of a notebook (nbformat 4, parsed JSON) with what is shown, marked as slides."""
    shown: list[dict] = []
    for cell in copy.deepcopy(notebook["cells"]):
        source = source_of(cell)
        if "## Exercises" in source:
            break
        code = cell["cell_type"] == "code"
        if tags(cell) & LEFT_OUT or (code and source.startswith(("import ", "from "))):
            continue
        if code and ("folded" in tags(cell) or len(source.splitlines()) > LINES):
            cell["metadata"]["transient"] = {"remove_source": True}  # nbconvert asks for this
            if not cell["outputs"]:
                continue
        kind = "slide" if not code and source.startswith("#") else "subslide"
        above = shown[-1] if shown else cell
        if (
            code
            and above["cell_type"] == "markdown"
            and len(source_of(above).splitlines()) <= WORDS
        ):
            kind = "-"  # on the slide of its text
        cell["metadata"]["slideshow"] = {"slide_type": kind}
        shown.append(cell)
    return {**notebook, "cells": shown}


def page(notebook: dict) -> str:
    """The slides of a notebook as HTML that has its assets beside it."""
    import nbformat  # here, because only the lab extra has these
    from jinja2 import DictLoader
    from nbconvert import SlidesExporter

    exporter = SlidesExporter(
        extra_loaders=[DictLoader({"slides.html.j2": TEMPLATE})],
        template_file="slides.html.j2",
        reveal_url_prefix="assets/reveal",
    )
    html, _ = exporter.from_notebook_node(nbformat.reads(json.dumps(slides_of(notebook)), 4))
    # A slide is a section to reveal.js, so nothing inside of one may be.
    for old, new in (
        ("<section data-stop", "<article data-stop"),
        ("</p></section>", "</p></article>"),
    ):
        html = html.replace(old, new)
    html = html.replace("querySelectorAll('section')", "querySelectorAll('article')")
    # nbconvert's own template names a theme; ours is a few lines.
    html = html.replace("assets/reveal/dist/reveal.css", "assets/reveal/reveal.css")
    return re.sub(r"<link [^>]*/dist/theme/[^>]*>", f"<style>{STYLE}</style>", html)


def write(folder: str | os.PathLike, notebooks: Sequence[str | os.PathLike]) -> list[Path]:
    """Write the slides of notebooks into a folder, with assets; their paths.

    Raises ValueError (one line) for a notebook that cannot be read, or without a checkout.
    """
    if not ASSETS.is_dir():
        raise ValueError(f"{ASSETS.parents[1]} is no checkout of qsr; slides are made from one.")
    folder = Path(folder)
    for name in ("reveal", "katex"):
        shutil.copytree(ASSETS / name, folder / "assets" / name, dirs_exist_ok=True)
    written = []
    for path in map(Path, notebooks):
        try:
            html = page(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        with replacing(folder / f"{path.stem}.html") as temporary:
            temporary.write_text(html, encoding="utf-8")
        written.append(folder / f"{path.stem}.html")
    return written


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m qsr.course.slides FOLDER NOTEBOOK ...")
    try:
        for new in write(sys.argv[1], sys.argv[2:]):
            print(new)
    except (OSError, ValueError) as error:
        sys.exit(f"qsr.course.slides: {error}")
