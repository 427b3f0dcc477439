"""Every tutorial is committed as it runs: whole, with outputs, and free of traces of one machine.

That its cells still run is nbval's part (`make test`); a notebook without outputs would pass there.
The Python of README.md is run here.
"""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
MAX_BYTES = 700_000  # the site and a clone carry every version of every notebook
DATA_URI = re.compile(r"data:image/\w+;base64,[\w+/=]+")
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'`=(\[,])(?:/[A-Za-z][\w.-]*){2,}|\b[A-Z]:\\""", re.M)


def text_of(notebook: dict) -> str:
    """All text in a notebook: sources, printed lines, HTML without the pictures inside."""
    texts = []
    for cell in notebook["cells"]:
        texts.append("".join(cell["source"]))
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("text", "")))
            for kind, data in output.get("data", {}).items():
                if kind.startswith("text/"):
                    texts.append(DATA_URI.sub("", "".join(data)))
    return "\n".join(texts)


def test_absolute_paths_are_recognised():
    for path in ("/home/me/photo.png", 'open("/tmp/x")', r"C:\Users\me", "in /usr/lib/python3"):
        assert ABSOLUTE_PATH.search(path), path
    for text in ("</div>", "a / b", "dB/SSIM", "qsr/zoo/x.qsr", "https://a.org/b/c", "4/4 bits"):
        assert not ABSOLUTE_PATH.search(text), text


def test_there_are_tutorials():
    assert TUTORIALS


@pytest.fixture(params=TUTORIALS, ids=lambda path: path.stem)
def notebook(request) -> dict:
    return json.loads(request.param.read_text())


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_a_tutorial_begins_with_what_it_teaches_and_how_long_it_takes(notebook):
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    text = "".join(first["source"])
    assert text.startswith("# ") and "**Needs**" in text
    assert re.search(r"\*\*Takes\*\* about \d+ seconds", text)


def test_a_tutorial_was_run_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_a_tutorial_has_outputs_and_no_errors(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", "a warning or a progress bar: " + output["text"][0]


def test_a_tutorial_asserts_what_it_claims(notebook):
    assert any("assert " in "".join(cell["source"]) for cell in code_cells(notebook))


def test_a_tutorial_names_no_place_of_one_machine(notebook):
    found = ABSOLUTE_PATH.search(text_of(notebook))
    assert not found, found
    assert "widgets" not in notebook["metadata"], "stored widget state: blank on the site"


def test_lines_of_code_fit_the_site(notebook):
    lines = [line for c in code_cells(notebook) for line in "".join(c["source"]).splitlines()]
    assert max(map(len, lines)) <= 79


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_small(path):
    assert path.stat().st_size < MAX_BYTES


SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_python_of_the_readme_runs(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (12, 8), "teal").save("photo.jpg")
    exec(snippet, {})


def test_the_readme_s_pictures_and_pages_exist():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r'(?:src|srcset)="([^"]+)"|\]\(([^)#:]+)\)', text)
    assert named
    for picture, page in named:
        assert (ROOT / (picture or page)).exists(), picture or page
