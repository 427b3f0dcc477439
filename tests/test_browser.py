"""The site and JupyterLab as a reader meets them, driven in headless Chromium.

Playwright drives the Chromium of the system and downloads none; without one, tests are skipped.
No request may leave the machine: each page is watched, and what it asks of elsewhere is refused.
"""

import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from qsr.course import slides

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Without sandbox it also starts as root; the others keep it from calling home.
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--no-first-run",
)
PHONE = {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; Debian: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=30_000)  # other tests keep the machine busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A tab, and what went wrong in it: requests to elsewhere (refused), errors on its console."""

    page: Page
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture
def watch(browser):
    """watch(**options): a new window; at the end of the test none may have had a fault."""
    opened = []

    def open_window(**options) -> Watched:
        context = browser.new_context(**options)
        watched = Watched(context.new_page())
        opened.append((context, watched))

        def only_here(route) -> None:
            if urlparse(route.request.url).hostname in ("127.0.0.1", None):
                route.continue_()
            else:
                watched.elsewhere.append(route.request.url)
                route.abort()

        def note(message) -> None:
            if message.type == "error":
                watched.errors.append(f"{message.text} ({message.location.get('url', '')})")

        context.route("**/*", only_here)
        watched.page.on("console", note)
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        return watched

    yield open_window
    for context, watched in opened:
        context.close()
        assert not watched.elsewhere
        assert not watched.errors


# The site -----------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def served(site) -> Iterator[str]:
    """The address of the built site."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pages_of(site: Path) -> list[str]:
    """The pages of the site as paths of addresses."""
    found = (page.parent.relative_to(site).as_posix() for page in site.rglob("index.html"))
    return sorted("" if path == "." else f"{path}/" for path in found)


def test_the_slider_of_the_home_page_moves(served, watch):
    page = watch().page
    page.goto(served)
    slider, picture = page.locator("article input[type=range]"), page.locator("article img").first
    shown = picture.screenshot()
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "70"
    by_key = picture.screenshot()
    assert by_key != shown
    box = picture.bounding_box()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 50)
    page.mouse.up()
    assert 8 <= float(slider.input_value()) <= 12
    assert picture.screenshot() != by_key


def test_search_finds_a_page_by_a_word(served, watch):
    page = watch().page
    page.goto(served)
    page.get_by_role("textbox", name="Search").click()
    page.keyboard.type("popcount")
    page.locator(".md-search-result__link[href*='packed-format']").first.click()
    page.wait_for_url("**/packed-format/**")
    expect(page.locator("article")).to_contain_text("popcount")


def test_every_page_is_whole_on_a_phone(site, served, watch):
    page = watch(viewport=PHONE).page
    for path in pages_of(site):
        answer = page.goto(f"{served}/{path}")
        assert answer.ok, path
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{path} is {width} pixels wide"
        assert page.locator("h1").count() == 1, path
        assert page.locator(".katex-error").count() == 0, path


def test_formulas_of_notebooks_are_set(served, watch):
    page = watch().page
    page.goto(f"{served}/tutorials/{TUTORIALS[0].stem}/")
    expect(page.locator(".katex-display").first).to_be_visible()
    assert "$" not in page.locator(".jp-MarkdownOutput").all_inner_texts()[5]


# Contrast takes axe most of its time, and of the thousands of words on a page most look alike. This
# marks three elements of each look: colour, size and weight of the text, and all that is behind it.
MARK_LOOKS = """() => {
  const counts = new Map(), clear = "rgba(0, 0, 0, 0)";
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    const visible = element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true});
    if (!text || !visible) continue;
    const style = getComputedStyle(element);
    const look = [element.tagName, style.color, style.fontSize, style.fontWeight];
    for (let behind = element; behind; behind = behind.parentElement) {
      const s = getComputedStyle(behind);
      if (s.backgroundColor !== clear || s.backgroundImage !== "none" || s.opacity !== "1")
        look.push(s.backgroundColor, s.backgroundImage, s.opacity);
    }
    const count = (counts.get(look.join()) ?? 0) + 1;
    counts.set(look.join(), count);
    if (count <= 3) element.dataset.look = count;
  }
}"""


def faults_of(page: Page, dark: bool) -> list[str]:
    """Serious faults of accessibility of the page shown; in the dark those of colour alone."""
    page.evaluate(MARK_LOOKS)
    colour = {"runOnly": ["link-in-text-block"]}
    runs = (
        (None, colour if dark else {"rules": {"color-contrast": {"enabled": False}}}),
        ({"include": [["[data-look]"]]}, {"runOnly": ["color-contrast"]}),
    )
    faults = []
    for context, options in runs:
        options = {"resultTypes": ["violations"], **options}
        for fault in Axe().run(page, context=context, options=options).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                faults += [f"{fault['id']}: {node['html'][:200]}" for node in fault["nodes"]]
    return faults


@pytest.mark.parametrize("dark", [False, True])
def test_a_fault_of_accessibility_would_be_found(watch, dark):
    page = watch().page
    page.set_content(
        """<html lang="en"><title>t</title><main><h1 style="color: #ccc; display: none">hidden</h1>
        <p>good <p>good <p>good <p>good <p style="color: #ccc">pale <p style="background: #333">dark
        <p>words in which <a href="#" style="color: #111; text-decoration: none">a link</a> hides
        </main>"""
    )
    found = [fault[:30] for fault in faults_of(page, dark)]
    assert found == [
        'link-in-text-block: <a href="#',
        'color-contrast: <p style="colo',
        'color-contrast: <p style="back',
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_has_no_serious_fault_of_accessibility(site, served, watch, scheme):
    page = watch(color_scheme=scheme).page
    paths = pages_of(site)
    # Decisions are alike, and so are the pages made from docstrings: one with all that they have.
    paths = [p for p in paths if not p.startswith(("api/", "decisions/0"))]
    faults = []
    for path in [*paths, "api/", "api/quantizer/", "decisions/0001-stable-abi-and-one-loader/"]:
        page.goto(f"{served}/{path}")
        faults += [f"{path}: {fault}" for fault in faults_of(page, scheme == "dark")]
    assert not faults, "\n".join(faults)
    assert page.locator("body").get_attribute("data-md-color-scheme") == (
        "slate" if scheme == "dark" else "default"
    )


# On a phone, on paper, in a hall ------------------------------------------------------------------


def test_figures_of_notebooks_keep_their_size_on_a_phone(served, watch):
    page = watch(viewport=PHONE).page
    for path in TUTORIALS:
        page.goto(f"{served}/tutorials/{path.stem}/")
        shrunk = page.evaluate("""() => [...document.querySelectorAll(".scrolls img[width]")]
            .filter(image => image.getBoundingClientRect().width < image.width - 1).length""")
        assert shrunk == 0, path.stem
    assert page.locator(".scrolls img").count()


def test_nothing_is_cut_off_on_paper(site, served, watch):
    page = watch(viewport={"width": 700, "height": 1000}).page  # A4 with margins, at 96 dpi
    page.emulate_media(media="print")
    for path in (
        "log/",
        "reliability/",
        "benchmarks/",
        "instructors/",
        f"tutorials/{TUTORIALS[5].stem}/",
    ):
        page.goto(f"{served}/{path}")
        wide = page.evaluate("""() => [...document.querySelectorAll("article :is(table, pre)")]
            .map(e => [e, e.getBoundingClientRect().right - innerWidth])
            .filter(([e, over]) => Math.max(over, e.scrollWidth - e.clientWidth) > 1)
            .map(([e]) => e.innerText.slice(0, 60))""")
        assert not wide, f"{path}: {wide}"


def test_slides_are_shown_whole_and_their_sliders_move(watch, tmp_path):
    (path,) = slides.write(tmp_path, [p for p in TUTORIALS if p.name.startswith("04b")])
    page = watch(viewport={"width": 960, "height": 700}).page
    page.goto(path.as_uri())
    page.wait_for_function("window.Reveal?.isReady()")
    assert page.locator(".katex").count() and not page.locator(".katex-error").count()
    sliders = 0
    for _ in range(page.evaluate("Reveal.getTotalSlides()")):
        slide = page.locator("section.present:not(.stack)")
        assert slide.evaluate("e => e.getBoundingClientRect().bottom") <= 701
        if slide.locator("article[data-stop]").count():
            shown = slide.locator("article:not([hidden])")
            assert shown.count() == 1
            before = shown.get_attribute("data-stop")
            slide.locator("input[type=range]").fill("1")
            assert shown.get_attribute("data-stop") != before
            sliders += 1
        page.evaluate("Reveal.next()")
    assert sliders


# JupyterLab ---------------------------------------------------------------------------------------


def first_with_a_live_cell() -> Path | None:
    """The first tutorial with a figure whose controls need a kernel."""
    for path in TUTORIALS:
        tags = [cell["metadata"].get("tags", ()) for cell in json.loads(path.read_text())["cells"]]
        if any("live" in of_one and "upload" not in of_one for of_one in tags):
            return path
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """The address of a JupyterLab on copies of the tutorials, with settings of its own."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "tutorials", folder / "tutorials")
    settings = folder / "settings" / "@jupyterlab"
    for name, values in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells in the page
    }.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    env = {**os.environ, **{name: str(folder / path) for name, path in own.items()}}
    env["PYTHONPATH"] = str(ROOT)
    trust = [sys.executable, "-m", "jupyter", "trust", *(folder / "tutorials").glob("*.ipynb")]
    subprocess.run(trust, env=env, check=True, capture_output=True)  # as `make lab`
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = folder / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
            + [f"--port={port}", "--ServerApp.port_retries=0", "--allow-root"]
            + ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder / 'tutorials'}"],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        else:
            pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")
        yield address
    finally:
        server.terminate()  # it ends its kernels
        server.wait(timeout=30)


def open_notebook(page: Page, lab: str, notebook: Path) -> None:
    """Open a notebook and wait for its kernel: before that Lab asks which one to take."""
    page.goto(f"{lab}/lab/tree/{notebook.name}?reset")
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=120_000)


def run_all(page: Page) -> None:
    """Run the open notebook from top to bottom."""
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    # Outputs of an earlier run are there already, so look for the number of this one.
    last = cells.last.locator(".jp-InputPrompt").first
    expect(last).to_have_text(f"[{cells.count()}]:", timeout=300_000)
    wrong = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert wrong.count() == 0, wrong.first.inner_text()
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0


def test_a_notebook_is_alive_in_jupyterlab_before_anything_is_run(lab, watch):
    page = watch(viewport={"width": 1280, "height": 900}).page
    open_notebook(page, lab, TUTORIALS[0])
    output = page.locator(".jp-OutputArea-output", has=page.locator("input[type=range]")).first
    slider = output.locator("input[type=range]")
    shown = output.screenshot()
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "60"
    assert output.screenshot() != shown


def test_a_live_slider_in_jupyterlab_changes_its_figure(lab, watch):
    notebook = first_with_a_live_cell()
    if notebook is None:
        pytest.skip("no tutorial has a cell tagged `live` yet")
    page = watch(viewport={"width": 1280, "height": 900}).page
    open_notebook(page, lab, notebook)
    run_all(page)
    output = page.locator(".jp-OutputArea-output", has=page.locator(".noUi-handle")).first
    figure = output.locator("img").first
    shown = figure.get_attribute("src")
    output.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    expect(figure).not_to_have_attribute("src", shown)


def test_a_photograph_of_a_phone_is_taken_and_enlarged_at_the_top_of_notebook_00(
    lab, watch, tmp_path
):
    turned = Image.Exif()
    turned[274] = 6  # the camera was held upright
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "me.jpg", exif=turned)
    page = watch(viewport={"width": 1280, "height": 900}).page
    open_notebook(page, lab, TUTORIALS[0])
    run_all(page)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="your picture").click()
    chooser.value.set_files(tmp_path / "me.jpg")
    shown = page.locator(".jp-OutputArea-output", has_text="me.jpg: 64 × 96 pixels").first
    expect(shown).to_be_visible(timeout=120_000)
    expect(page.get_by_alt_text("4-bit network ×4: a picture of yours").first).to_be_visible()
