"""The site builds without a warning, leads nowhere in vain, and says what the code says."""

import importlib.util
import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from PIL import Image

import qsr

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Addresses(HTMLParser):
    """What a page links to or shows, and the anchors in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.links.update(values[name] for name in ("href", "src") if values.get(name))
        self.anchors.update(values[name] for name in ("id", "name") if values.get(name))


def broken_links(site: Path) -> list[str]:
    """Links of all pages of a site that lead to no file or no anchor in it, "page -> link"."""
    # 404.html is shown at any address, so its links are those of a site at the root of a server.
    pages = {p.relative_to(site).as_posix(): Addresses(p) for p in site.rglob("*.html")}
    broken = []
    for name, page in sorted(pages.items()):
        for link in sorted(page.links):
            if urlparse(link).scheme:
                continue
            target, anchor = urldefrag(urljoin(f"/{name}", link))
            file = unquote(urlparse(target).path).removeprefix("/")
            if file == "" or file.endswith(("/", "/.")):
                file = f"{file.removesuffix('.')}index.html"
            exists = (site / file).is_file()
            if exists and anchor and file in pages:
                exists = unquote(anchor) in pages[file].anchors
            if not exists:
                broken.append(f"{name} -> {link}")
    return broken


def test_no_link_inside_the_site_is_broken(site):
    assert broken_links(site) == []


def test_a_broken_link_would_be_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h1 id="top">x</h1><a href="../b/">y</a>')
    (tmp_path / "index.html").write_text('<a href="a/#top"></a><a href="a/#bottom"></a>')
    assert broken_links(tmp_path) == ["a/index.html -> ../b/", "index.html -> a/#bottom"]


def test_no_page_names_anything_that_is_fetched_from_elsewhere(site):
    # Links may lead elsewhere; what a browser loads by itself may not.
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?!data:)([^"]*//[^"]*)"'
            r'|<link\b[^>]*\brel="(?:stylesheet|preconnect|icon)"[^>]*\bhref="([^"]*//[^"]*)"',
            page.read_text(),
        )
        assert not loaded, (page, loaded)


def test_the_home_page_is_small(site):
    assert (site / "index.html").stat().st_size < 400_000


def test_each_page_says_what_it_was_built_from(site):
    for name in ("index.html", "api/quantizer/index.html"):
        assert f"qsr {qsr.__version__}, built with torch" in (site / name).read_text()


def test_each_public_module_has_a_page_that_the_index_names(site):
    modules = [p.stem for p in (ROOT / "qsr").glob("[a-z]*.py")]
    index = (site / "api" / "index.html").read_text()
    for name in modules:
        page = (site / "api" / name / "index.html").read_text()
        assert f'id="qsr.{name}.' in page, "a page without a function or class"
        assert f'href="{name}/"' in index


# All of qsr ---------------------------------------------------------------------------------------


def test_all_of_qsr_names_all_of_qsr():
    text = (DOCS / "all-of-qsr.md").read_text()
    shown = set(re.findall(r"\bqsr\.(\w+)", text))
    init = (ROOT / "qsr" / "__init__.py").read_text()
    promised = set(re.findall(r"import \w+ as (\w+)", init))
    assert len(promised) > 30
    assert promised <= shown, f"not on the page: {', '.join(sorted(promised - shown))}"


@pytest.mark.parametrize(("page", "least"), [("all-of-qsr.md", 10), ("training.md", 1)])
def test_the_examples_of_a_page_run_from_top_to_bottom(page, least, tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    assert len(snippets) >= least
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (12, 8), "teal").save("photo.jpg")
    (tmp_path / "page.py").write_text("\n".join(snippets))
    runpy.run_path("page.py")


# Tutorials ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("qsr_docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(tag: str, source: str) -> str:
    """A code cell as mkdocs-jupyter renders it: one element in another, both with the tags."""
    start = f'<div class="jp-Cell jp-Notebook-cell celltag_{tag}">'
    toolbar = f'<div class="celltoolbar">{tag}</div>'
    return f"{start}{start}{toolbar}<pre>{source}</pre></div></div>"


CELLS = (
    '<div><h1>Title</h1><script src="https://example.org/mathjax.js"></script>'
    + cell("install", "pip install")
    + cell("live", "IntSlider()")
    + cell("solution", "a = 1")
    + cell("check", "b = 2")
    + '<div class="jp-Cell jp-Notebook-cell"><p class="celltag_solution">Both.</p></div></div>'
)


def test_a_tutorial_shows_no_cells_that_need_a_kernel_and_folds_solutions(hooks):
    page = hooks.tutorial(CELLS, "01_x.ipynb", "")
    for gone in ("pip install", "IntSlider", "mathjax", "celltoolbar"):
        assert gone not in page
    folded = re.findall(r"<details.*?>(.*?)</details>", page, re.S)
    assert [part.count("Show a solution") for part in folded] == [1, 1]
    assert "a = 1" in folded[0] and "Both." in folded[1]
    assert "b = 2" in page and not any("b = 2" in part for part in folded)


def test_a_tutorial_links_to_colab_only_where_there_is_a_public_repository(hooks):
    assert "colab" not in hooks.tutorial(CELLS, "01_x.ipynb", "")
    address = "https://colab.research.google.com/github/me/qsr/blob/main/tutorials/01_x.ipynb"
    assert f'href="{address}"' in hooks.tutorial(CELLS, "01_x.ipynb", "me/qsr")


def test_the_contents_of_a_tutorial_keep_words_set_as_code(hooks):
    html = """<h1 id="a">From <code>round</code><a href="#a">¶</a></h1><h3 id="b">b</h3>
    <h2 id="c">c</h2><h3 id="d">d</h3><h2 id="e">e</h2><h4 id="f">f</h4>"""
    (top,) = hooks.headings(html)
    assert (top["name"], top["id"]) == ("From round", "a")
    assert [entry["id"] for entry in top["children"]] == ["b", "c", "e"]
    assert [entry["id"] for entry in top["children"][1]["children"]] == ["d"]


def test_each_tutorial_is_on_the_site_with_its_outputs(site):
    notebooks = sorted((ROOT / "tutorials").glob("*.ipynb"))
    assert notebooks
    course = (site / "course" / "index.html").read_text()
    for path in notebooks:
        page = (site / "tutorials" / path.stem / "index.html").read_text()
        assert (site / "tutorials" / path.stem / path.name).read_bytes() == path.read_bytes()
        assert f'href="../tutorials/{path.stem}/"' in course
        cells = json.loads(path.read_text())["cells"]
        last = "".join(cells[-1]["outputs"][0]["text"]).strip()
        assert last in page


def test_the_folders_shown_through_links_are_those_of_the_repository():
    for link, target in (
        ("tutorials", "tutorials"),
        ("changelog.md", "CHANGELOG.md"),
        ("contributing.md", "CONTRIBUTING.md"),
        ("kernels.md", "csrc/README.md"),
    ):
        assert (DOCS / link).is_symlink() and (DOCS / link).resolve() == ROOT / target
