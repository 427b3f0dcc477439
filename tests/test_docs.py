"""The site builds without a warning, leads nowhere in vain, and says what the code says."""

import importlib.util
import json
import pkgutil
import re
import runpy
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import markdown
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from PIL import Image

import qsr
from qsr.course import student
from qsr.system import native
from qsr.train import make_optimizer

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NATIVE = {"qsr._ops", "qsr._C"}  # only there where qsr was compiled while installing


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


def test_the_api_reference_has_every_public_name_and_all_that_its_pages_list(site):
    public = [getattr(qsr, name) for name in " ".join(qsr.NAMES.values()).split()]
    wanted = {f"{each.__module__}.{each.__qualname__}" for each in public}
    for page in (DOCS / "api").glob("*.md"):
        lists = re.findall(
            r"^::: (\S+)\n +options:\n +members:\s+\[(.*?)\]", page.read_text(), re.S | re.M
        )
        wanted |= {
            f"{module}.{name}" for module, some in lists for name in re.findall(r"\w+", some)
        }
    pages = {page.parent.name: page for page in (site / "api").glob("*/index.html")}
    assert wanted <= set().union(*(Addresses(page).anchors for page in pages.values()))
    assert {f"{name}/" for name in pages} <= Addresses(site / "api" / "index.html").links


# Names --------------------------------------------------------------------------------------------

HISTORY = {"log.md", "changelog.md"}  # speak of what was
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.name not in HISTORY)
TEXTS = [ROOT / "README.md", *PAGES, *sorted((ROOT / "tutorials").glob("*.ipynb"))]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_name_of_qsr_in_a_text_exists(path):
    text = path.read_text()
    for name in re.findall(r"`((?:qsr|csrc|docs|tests|benchmarks)/[\w/.-]*[\w/])`", text):
        assert (ROOT / name).exists(), name
    for name in set(re.findall(r"`(qsr(?:\.\w+)+)[`(]", text)) - NATIVE:
        pkgutil.resolve_name(name)


# Walks --------------------------------------------------------------------------------------------


def files_of(call) -> set[str]:
    """The files of qsr that a call passes, as "qsr/infer.py"."""
    package, codes = Path(qsr.__file__).parent, set()
    sys.setprofile(lambda frame, event, argument: codes.add(frame.f_code))
    try:
        call()
    finally:
        sys.setprofile(None)
    files = {Path(code.co_filename) for code in codes if code.co_name != "<module>"}
    inside = (file for file in files if file.is_relative_to(package))
    return {file.relative_to(package.parent).as_posix() for file in inside}


@pytest.mark.skipif(not native.load().native, reason="the walks go through native code")
@pytest.mark.parametrize("call", ["qsr.upscale", "qsr.train_step", "qsr.pack"])
def test_a_walk_names_the_files_that_the_call_passes(call, tmp_path):
    Image.new("RGB", (12, 8), "teal").save(tmp_path / "a.png")
    net = qsr.QuantSR(qsr.quantsr_c(scale=2, bits=4, blocks=2, features=16))
    lr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)
    qsr.calibrate(net, lr)
    model, config = qsr.pack(net), qsr.TrainConfig()
    optimizer = make_optimizer(net, config)
    calls = {
        "qsr.upscale": partial(qsr.upscale, tmp_path / "a.png", model),
        "qsr.train_step": partial(qsr.train_step, net, optimizer, lr, hr, config),
        "qsr.pack": partial(qsr.pack, net),
    }
    text = (DOCS / "walks.md").read_text()
    (walk,) = (part for part in text.split("\n## ") if part.startswith(f"`{call}("))
    rows = set(re.findall(r"^\| \d+\. `([^`]+)`", walk, re.M))
    named = set(re.findall(r"`((?:qsr|csrc)/[^`]+)`", walk))
    assert all((ROOT / name).is_file() for name in named)
    assert {name for name in rows if name.endswith(".py")} <= files_of(calls[call]) <= named


# All of qsr ---------------------------------------------------------------------------------------


def test_all_of_qsr_names_all_of_qsr():
    text = (DOCS / "all-of-qsr.md").read_text()
    shown = set(re.findall(r"\bqsr\.(\w+)", text))
    promised = {*qsr.MODULES, *" ".join(qsr.NAMES.values()).split()}
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
    + '<div class="jp-Cell celltag_folded jp-Notebook-cell">'
    + '<div class="jp-Cell-inputWrapper">draw()</div><p>A figure.</p></div>'
    + '<div class="jp-Cell jp-Notebook-cell"><p class="celltag_solution">Both.</p></div></div>'
)


def test_a_tutorial_shows_no_cells_that_need_a_kernel_and_no_solutions(hooks):
    page = hooks.tutorial(CELLS, "01_x.ipynb", "", solutions=False)
    for gone in ("pip install", "IntSlider", "a = 1", "Both.", "Show a solution"):
        assert gone not in page
    assert "b = 2" in page


def test_code_that_only_draws_is_folded_and_what_it_draws_is_not(hooks):
    page = hooks.tutorial(CELLS, "01_x.ipynb", "", solutions=False)
    (folded,) = re.findall(r"<details.*?>(.*?)</details>", page, re.S)
    assert "draw()" in folded and "Show the code" in folded and "A figure." not in folded


def test_links_of_a_tutorial_lead_to_pages_of_the_site(hooks):
    links = {
        "02_baselines.ipynb": "../02_baselines/",
        "../docs/log.md#a": "../../log/#a",
        "../docs/decisions/README.md": "../../decisions/README/",
        "../csrc/README.md": "../../kernels/",
        "../qsr/layers.py": "../../sources/qsr/layers.py.txt",
        "https://arxiv.org": "https://arxiv.org",
        "#here": "#here",
    }
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    page = hooks.tutorial(f"<div><h1>T</h1>{anchors}</div>", "01_x.ipynb", "", solutions=False)
    assert re.findall(r'<a href="([^"]+)">x', page) == list(links.values())


def test_a_site_for_instructors_folds_solutions(hooks):
    page = hooks.tutorial(CELLS, "01_x.ipynb", "", solutions=True)
    for gone in ("pip install", "IntSlider", "mathjax", "celltoolbar"):
        assert gone not in page
    folded = re.findall(r"<details.*?>(.*?)</details>", page, re.S)
    folded = [part for part in folded if "Show a solution" in part]
    assert len(folded) == 2
    assert "a = 1" in folded[0] and "Both." in folded[1]
    assert "b = 2" in page and not any("b = 2" in part for part in folded)


def test_a_tutorial_links_to_colab_only_where_there_is_a_public_repository(hooks):
    assert "colab" not in hooks.tutorial(CELLS, "01_x.ipynb", "", False)
    address = "https://colab.research.google.com/github/me/qsr/blob/main/tutorials/01_x.ipynb"
    assert f'href="{address}"' in hooks.tutorial(CELLS, "01_x.ipynb", "me/qsr", False)


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
        kept = json.loads((site / "tutorials" / path.stem / path.name).read_text())
        assert kept == student.read(path)
        assert f'href="../tutorials/{path.stem}/"' in course
        cells = json.loads(path.read_text())["cells"]
        last = "".join(cells[-1]["outputs"][0]["text"]).strip()
        assert last in page


def test_answers_to_open_questions_are_on_the_site_for_instructors_alone(site, hooks):
    assert (DOCS / hooks.ANSWERS).exists()
    assert not (site / "answers").exists()
    assert "Answers to open" not in (site / "index.html").read_text()
    nav = [{"Home": "index.md"}, {"Course": ["course.md", {"Answers": hooks.ANSWERS}]}]
    assert hooks._without(nav, hooks.ANSWERS) == [{"Home": "index.md"}, {"Course": ["course.md"]}]


def run_together(page: str) -> list[str]:
    """Paragraphs of a page in which a list begins: a blank line before it is missing."""
    article = BeautifulSoup(page, "html.parser").article
    texts = []
    for paragraph in article.find_all("p") if article else ():
        for part in paragraph.find_all(["code", "script"]):
            part.replace_with("code")
        texts.append(paragraph.get_text())
    return [text for text in texts if re.search(r"\n *(?:[-*+]|\d+\.) \S", text)]


def test_no_list_runs_together_with_the_line_before_it(site):
    pages = sorted(site.rglob("index.html"))
    assert len(pages) > 40
    assert not [
        f"{page.parent.name}: {t}" for page in pages for t in run_together(page.read_text())
    ]
    for list_, found in (("Result:\n- one\n- two", 1), ("Result - one\n\nof `a\n- b` two", 0)):
        page = f"<article>{markdown.markdown(list_)}</article>"
        assert len(run_together(page)) == found


def test_searches_and_titles_show_no_marks_of_markdown(site):
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    assert not [d["location"] for d in found if "¶" in d["title"] + d["text"] or "`" in d["title"]]
    for page in site.rglob("index.html"):
        assert "`" not in re.search(r"<title>(.*?)</title>", page.read_text())[1], page


def test_the_folders_shown_through_links_are_those_of_the_repository():
    for link, target in (
        ("tutorials", "tutorials"),
        ("changelog.md", "CHANGELOG.md"),
        ("contributing.md", "CONTRIBUTING.md"),
        ("kernels.md", "csrc/README.md"),
    ):
        assert (DOCS / link).is_symlink() and (DOCS / link).resolve() == ROOT / target


# Checks of a commit -------------------------------------------------------------------------------


def test_what_is_checked_before_a_commit_is_what_make_lint_checks():
    rule = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = [line.removeprefix("\t$(BIN)/") for line in rule.splitlines()]
    assert [hook["entry"] for hook in local["hooks"]] == commands
