"""Every tutorial is committed as it runs: whole, with outputs, and free of traces of one machine.

That its cells still run is nbval's part (`make test`); a notebook without outputs would pass there.
Cells are told by their tags: install, live, upload, folded, exercise, hint, solution, check.
The Python of README.md is run here.
"""

import json
import re
import symtable
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import qsr
from qsr.course import exercises
from qsr.course.student import source_of, tags, without_solutions
from qsr.images.reading import read
from qsr.images.writing import to_pil

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
    cells = code_cells(notebook)
    counts = [None if "live" in tags(cell) else i for i, cell in enumerate(cells, start=1)]
    assert [cell["execution_count"] for cell in cells] == counts


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


INSTALL = """\
# Where qsr is missing, install it. Its package will be called quantsr; until
# that is on the index, a clone is the place: nothing is fetched here.
import importlib.util

found = importlib.util.find_spec("qsr")
if found is None or found.origin is None:  # or only a folder of this name
    print("qsr is missing; in a clone of it run: pip install '.[lab]'")"""


def test_a_tutorial_says_how_to_install_qsr_from_a_clone(notebook):
    second = notebook["cells"][1]
    assert "install" in tags(second)
    assert source_of(second) == INSTALL


def test_the_install_cell_speaks_only_where_qsr_is_missing(capsys, monkeypatch):
    exec(INSTALL, {})
    assert capsys.readouterr().out == ""
    for found in (None, SimpleNamespace(origin=None)):  # of a folder without __init__.py
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        exec(INSTALL, {})
        assert capsys.readouterr().out.count("\n") == 1


def cells_tagged(notebook: dict, tag: str) -> list[int]:
    return [i for i, cell in enumerate(notebook["cells"]) if tag in tags(cell)]


def test_an_exercise_is_a_task_a_stub_a_hidden_solution_and_a_check(notebook):
    cells = notebook["cells"]
    exercises = cells_tagged(notebook, "exercise")
    assert 2 <= len(exercises) <= 4
    assert len(exercises) == len(cells_tagged(notebook, "solution"))
    assert len(exercises) == len(cells_tagged(notebook, "check"))
    for i in exercises:
        task, stub, *hint, solution, check = cells[i - 1 : i + 3 + ("hint" in tags(cells[i + 1]))]
        assert "solution" in tags(solution) and "check" in tags(check)
        for folded in hint:
            assert source_of(folded).startswith("<details><summary>A hint</summary>\n")
        assert task["cell_type"] == "markdown"
        assert re.search(r"^ +raise NotImplementedError  # .*line", source_of(stub), re.M)
        assert solution["metadata"]["jupyter"] == {"source_hidden": True}
        assert re.search(r"qsr\.check\([^=]*(exercises\.\w+|mistake=)", source_of(check), re.S)


def test_the_exercises_of_a_tutorial_are_open_and_their_solutions_right(notebook):
    for i in cells_tagged(notebook, "check"):
        (output,) = notebook["cells"][i]["outputs"]
        (line,) = "".join(output["text"]).splitlines()
        assert line.endswith(": not attempted yet; the solution passes the test")


def test_the_exercises_of_the_library_are_those_of_the_notebooks_in_their_order():
    for path in TUTORIALS:
        cells = json.loads(path.read_text())["cells"]
        checks = "".join(source_of(cell) for cell in cells if "check" in tags(cell))
        stubs = "".join(source_of(cell) for cell in cells if "exercise" in tags(cell))
        for one in exercises.every():
            if one.notebook == path.stem:
                assert f"def {one.answer}(" in stubs
        named = re.findall(r"exercises\.(\w+)", checks)
        assert named == [one.name for one in exercises.every() if one.notebook == path.stem]


def test_students_can_have_a_tutorial_without_its_solutions(notebook):
    student = without_solutions(notebook)
    lost = len(notebook["cells"]) - len(student["cells"])
    assert lost == len(cells_tagged(notebook, "solution"))


def test_a_live_part_has_a_twin_that_needs_no_kernel(notebook):
    cells = notebook["cells"]
    for i in cells_tagged(notebook, "live"):
        assert "nbval-ignore-output" in tags(cells[i])
        assert cells[i]["outputs"] == [], "run `make notebooks`, which drops outputs of live cells"
        if "upload" in tags(cells[i]):
            continue  # on a page there is nothing to take a picture of the reader's
        assert "Frames(" in source_of(cells[i + 1]), "the site would show nothing here"
    # Without its kernel a widget is "Error displaying widget: model not found".
    for i, cell in enumerate(cells):
        if "live" not in tags(cell):
            assert "jupyter.widget" not in json.dumps(cell.get("outputs")), f"cell {i} is live"


def test_every_picture_of_a_tutorial_says_what_it_shows(notebook):
    for i, cell in enumerate(notebook["cells"]):
        if "live" in tags(cell):
            continue
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            bare = [kind for kind in data if kind.startswith("image/")]
            assert not bare, f"cell {i}: use viz.figure(fig, alt=...)"
            for image in re.findall(r"<img[^>]*>", "".join(data.get("text/html", ""))):
                assert re.search(r'alt="[^"]+"', image), f"cell {i}"


def test_code_that_only_draws_is_folded_and_what_is_folded_claims_nothing(notebook):
    for cell in code_cells(notebook):
        source = source_of(cell)
        draws = "plt.subplots(" in source or "live" in tags(cell)
        claims = re.search(r"^ *(assert|print)\b", source, re.M)
        if "folded" in tags(cell):
            assert cell["metadata"]["jupyter"] == {"source_hidden": True}, cell["id"]
            assert not claims, cell["id"]
        elif draws and len(source.splitlines()) > 15:
            assert claims, f"{cell['id']} only draws: tag it `folded`, and hide its source"


def test_text_in_figures_is_large_enough_for_a_phone(notebook):
    """10 points are 11 pixels at the 80 dpi of the style; the site does not shrink figures."""
    for cell in code_cells(notebook):
        small = re.search(r"(fontsize|labelsize|[( ]size)=[1-9]\b", source_of(cell))
        assert not small, f"{cell['id']}: {small[0]}"


NAMED = re.compile(r"(?<!\[)\b[Nn]otebook \d\d|(?<![\[\w])`(docs|csrc|qsr)/[\w/-]+\.\w+`")


def test_links_of_a_tutorial_lead_to_what_is_there_and_what_is_named_has_one(notebook):
    folder = ROOT / "tutorials"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([^)\s]+)\)", source_of(cell)):
                assert ":" in link or (folder / link.partition("#")[0]).exists(), link
            bare = NAMED.search(source_of(cell))
            assert not bare or "hint" in tags(cell), f"{cell['id']}: {bare[0]} is named, not linked"


def test_a_tutorial_ends_with_the_time_it_took(notebook):
    text = "".join(notebook["cells"][-1]["outputs"][0]["text"])
    assert re.fullmatch(r"this notebook took \d+ s\n", text)


def lost_to_live_cells(cells: list[dict]) -> list[str]:
    """Names that the functions of `live` cells need and that a later cell gives another meaning.

    A slider calls its functions after the whole notebook ran, with what the names mean by then.
    """
    bodies: dict[str, set[str]] = {}  # function -> names of the notebook that it uses
    needed: set[str] = set()
    lost = []
    for cell in cells:
        source = re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source_of(cell), flags=re.M)
        table = symtable.symtable(source, "cell", "exec")
        bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        lost += sorted(needed & bound)
        functions = [t for t in table.get_children() if not t.get_name().endswith(("comp", "expr"))]
        bodies |= {function.get_name(): global_names(function) for function in functions}
        if "live" in tags(cell):
            found = {s.get_name() for s in table.get_symbols() if s.get_name() in bodies}
            found.update(*map(global_names, functions))
            while more := set().union(*(bodies.get(name, ()) for name in found)) - found:
                found |= more
            needed |= found
    return lost


def global_names(function: symtable.SymbolTable) -> set[str]:
    """The names in a function, and in those inside it, that are not its own."""
    names = {symbol.get_name() for symbol in function.get_symbols() if symbol.is_global()}
    return names.union(*map(global_names, function.get_children()))


def test_a_name_that_a_slider_loses_is_found():
    def cell(source: str, tag: str = "") -> dict:
        return {"source": source, "metadata": {"tags": [tag]}}

    cells = [
        cell("if y:\n    %pip install z\nx, y = 1, 2"),
        cell("def draw(k):\n    fig = scaled(k)\n    return [i + x for i in fig]"),
        cell("def scaled(k):\n    return k * factor"),
        cell("view = Image(draw(y))\ninteract(draw, k=y)\nbutton.observe(lambda c: view)", "live"),
    ]
    assert lost_to_live_cells([*cells, cell("for x in range(3):\n    factor = view = 1")]) == [
        "factor",
        "view",
        "x",
    ]
    assert lost_to_live_cells([*cells, cell("y = fig = i = 3\n\ndef f(x):\n    view = x")]) == []


def test_sliders_still_work_after_the_whole_notebook_ran(notebook):
    assert lost_to_live_cells(code_cells(notebook)) == []


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


def test_a_portrait_of_a_phone_is_upright_in_notebook_00(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: a quarter turn
    Image.new("RGB", (12, 8)).save(tmp_path / "me.jpg", exif=turned)
    cells = code_cells(json.loads((ROOT / "tutorials/00_enlarge_a_photo.ipynb").read_text()))
    (cell,) = (c for c in cells if "read(MY_PICTURE)" in source_of(c))
    shown = SimpleNamespace(Compare=lambda *pictures, **how: None)
    names = {"qsr": qsr, "to_pil": to_pil, "read": read, "viz": shown, "X4": "quantsr-c-x4-w4a4"}
    path = tmp_path / "me.jpg"
    names |= {"MY_PICTURE": path, "picture": read(path), "SLOW": False}
    exec(source_of(cell), names)
    assert names["mine"].size == (8, 12) and names["large"].size == (32, 48)


def test_a_constant_changed_in_notebook_03_is_told_with_the_cell_to_run(tmp_path):
    def fit(net, data, config, folder):
        raise ValueError(f"{folder} holds a run of another network; choose another folder.")

    cells = code_cells(json.loads((ROOT / "tutorials/03_depth_dynamic_training.ipynb").read_text()))
    (cell,) = (c for c in cells if "def train(name" in source_of(c))
    assert any(source_of(c).startswith("folder =") and "\nruns = " in source_of(c) for c in cells)
    names = {"time": time, "qsr": SimpleNamespace(fit=fit), "runs": tmp_path}
    exec(source_of(cell).split("\n\n\n")[0], names)
    with pytest.raises(ValueError, match="run the cell with `runs = ` again"):
        names["train"]("stage1", None, None, None)
