"""The command line: what it prints, what it leaves on the disk, and every bad input in one line."""

import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import qsr
from qsr import cli
from qsr.cli import enlarge as cli_enlarge
from qsr.cli import options as cli_options
from qsr.cli import pipe as cli_pipe
from qsr.cli import train as cli_train
from qsr.cli import use as cli_use
from qsr.cli.arguments import DEFAULT_MODEL
from qsr.cli.making import METHODS
from qsr.images.colour import SRGB, SRGB_CURVE, profile
from qsr.images.data import textures
from qsr.models import zoo
from qsr.models.file import describe
from qsr.paper import table2
from qsr.quantizer import QUANTIZERS
from qsr.runs.checkpoints import list_checkpoints
from qsr.system import files as system_files

torch.set_num_threads(1)  # on small tensors threads only wait for each other

COMMANDS = ["upscale", "demo", "evaluate", "train", "convert", "pack", "export", "data", "bench"]
COMMANDS += ["reproduce", "grade", "models", "info", "completion", "man"]
NESTED = [["data", "list"], ["data", "pack"], ["reproduce", "table1"], ["reproduce", "ablation"]]
NESTED += [["reproduce", name] for name in ("table2", "cards", "figure1", "figure4", "figure5")]
TINY = ["--network-blocks", 2, "--features", 4, "--patch", 8, "--batch", 2]
TINY += ["--steps", 4, "--checkpoint-every", 2]
TRAIN = ["--preset", "quantsr-c-x2-w4a4", *TINY]


def trained(seed=3):
    torch.manual_seed(seed)
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, features=4))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return net.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with trained.qsr and packed.qsr, networks that double."""
    folder = tmp_path_factory.mktemp("models")
    qsr.save(folder / "trained.qsr", trained(), note="a test")
    qsr.save(folder / "packed.qsr", qsr.pack(trained()))
    return folder


@pytest.fixture
def model(models):
    return str(models / "packed.qsr")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in an empty folder, and without QSR_DATA."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QSR_DATA", raising=False)
    return tmp_path


@pytest.fixture
def qsr_command(capsys):
    """Run a command in this process -> (exit code, stdout, stderr)."""

    def run(*args):
        capsys.readouterr()
        try:
            code = cli.main([str(arg) for arg in args])
        except SystemExit as error:  # argparse
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(qsr_command, here):
    """Run a command that must fail: exit code 2, one line, nothing new on the disk -> the line."""

    def run(*args):
        before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
        code, out, err = qsr_command(*args)
        assert code == 2 and out == ""
        assert one_line(err)
        assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
        return err

    return run


def one_line(err):
    return err.startswith("qsr: ") and err.count("\n") == 1 and err.endswith("\n")


def picture(path, width=7, height=5, mode="RGB"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(256, size=(height, width, 4), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


def size(path):
    with Image.open(path) as image:
        return image.size


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


# Every command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), *NESTED])
def test_every_command_has_help_that_fits_a_terminal(qsr_command, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = qsr_command(*command, "--help")
    assert code == 0 and err == ""
    assert out.startswith("usage: qsr") and max(map(len, out.splitlines())) <= 80
    if not command:
        assert list(cli.COMMANDS) == COMMANDS
        assert all(f"    {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), *NESTED])
def test_help_is_there_before_torch(command):
    code = f"import sys\nfrom qsr import cli\ntry:\n    cli.main({[*command, '--help']!r})\n"
    code += "except SystemExit:\n    sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_every_quantizer_can_be_asked_for():
    assert set(METHODS) == set(QUANTIZERS)


def test_the_version_is_that_of_the_package(qsr_command):
    assert qsr_command("--version") == (0, f"qsr {qsr.__version__}\n", "")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["enlarge"],
        ["upscale", "a.png"],
        ["upscale", "a.png", "b.png", "--blok", "3"],
        ["upscale", "a.png", "b.png", "--blocks", "many"],
        ["upscale", "a.png", "b.png", "--overwrite", "--skip-existing"],
        ["train", "--out", "run", "--schedule", "linear"],
        ["reproduce", "table9"],
        ["data"],
        ["data", "pack", "out.zip"],
        ["data", "pack", "out.zip", "in", "--split", "test"],
    ],
)
def test_arguments_that_do_not_exist_exit_with_2(qsr_command, args):
    code, out, err = qsr_command(*args)
    assert code == 2 and out == "" and "error: " in err.splitlines()[-1]


def test_threads_are_1_or_more(refused):
    assert "`--threads` is 0" in refused("models", "--threads", 0)
    assert "`--threads` is -3" in refused("models", "--threads", -3)


def test_threads_are_four_times_as_many_as_the_machine_has_or_fewer(refused, qsr_command):
    most = 4 * (os.cpu_count() or 1)
    assert qsr_command("models", "--threads", most)[0] == 0
    for command in (("models",), ("bench", "kernel"), ("bench", "train")):
        err = refused(*command, "--threads", most + 1)
        assert f"is {most + 1}; it is 1 to {most}" in err
    assert "is 100000;" in refused("upscale", picture("a.png"), "b.png", "--threads", 100_000)


def test_info_says_which_kernels_run(qsr_command):
    code, out, err = qsr_command("info")
    assert code == 0 and err == ""
    for name in ("conv2d", "quantize_pack", *qsr.kernels.available("conv2d")):
        assert name in out
    report = json.loads(qsr_command("info", "--json")[1])
    assert report["kernels"]["conv2d"] == list(qsr.kernels.available("conv2d"))
    assert report["qsr"] == qsr.__version__ and report["native"]


def test_info_empties_the_cache_when_asked(qsr_command, here, monkeypatch):
    monkeypatch.setenv("QSR_CACHE", str(here / "cache"))
    build = here / "cache" / f"{'0' * 16}-{'1' * 16}"
    build.mkdir(parents=True)
    (build / "_ops.so").write_bytes(b"12345")
    code, out, err = qsr_command("info", "--clean", "--json")
    assert code == 0 and err == ""
    assert json.loads(out) == {"cache": str(here / "cache"), "builds": 1, "bytes": 5}
    assert not (here / "cache").exists()
    assert "cache  0 builds removed, 0.0 MB" in qsr_command("info", "--clean")[1]


def test_models_are_listed_with_their_scores(qsr_command, here, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", here)
    packed = qsr.pack(trained())
    qsr.save(here / "mine.qsr", packed)
    scores = qsr.evaluate(packed, [qsr.data.make_pair("a", textures(24)["noise"], 2)])
    zoo.write_card(here / "mine.qsr", packed, "ten steps", {2: {"Set5": scores}}, {})
    code, out, _ = qsr_command("models")
    assert code == 0 and f"Set5 {scores.psnr_y:.2f}/{scores.ssim_y:.4f}" in out
    assert "mine" in out and "x2" in out and "4/4 bits" in out and "ten steps" in out
    (card,) = json.loads(qsr_command("models", "--json")[1])
    assert card == zoo.card("mine")
    (here / "mine.json").unlink()
    code, out, err = qsr_command("models")
    assert code == 2 and one_line(err)


def test_the_default_model_is_one_that_comes_with_qsr():
    assert DEFAULT_MODEL in zoo.names()


def test_reproduce_prints_the_table_as_text_or_json(qsr_command, monkeypatch):
    monkeypatch.setattr(table2, "table2", lambda json: '{"rows": []}' if json else "Table 2")
    assert qsr_command("reproduce", "table2") == (0, "Table 2\n", "")
    assert json.loads(qsr_command("reproduce", "table2", "--json")[1]) == {"rows": []}


def test_demo_prints_its_rows_and_where_the_pictures_are(qsr_command, monkeypatch):
    rows = [
        {"scale": 2, "model": "bicubic", "blocks": None, "psnr_y": 30.0, "bytes": None, "ms": 1.0},
        {"scale": 2, "model": "mine", "blocks": 8, "psnr_y": 31.25, "bytes": 5000, "ms": 9.5},
    ]
    monkeypatch.setattr(cli_use, "demo", lambda out: (rows, Path(out) / "before_after.png"))
    code, out, _ = qsr_command("demo", "--out", "there")
    assert code == 0 and "31.25 dB" in out and "there/before_after.png" in out
    assert json.loads(qsr_command("demo", "--json")[1])["rows"] == rows


# Shells -------------------------------------------------------------------------------------------

COMPLETE = {  # the command that prints what each shell offers after these words
    "bash": 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; '
    'COMP_POINT=${#COMP_LINE}; _shtab_qsr; printf "%s\\n" "${COMPREPLY[@]}"',
    "fish": 'source $argv[1]; complete -C "$argv[2..]"',
}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_commands_and_their_options(qsr_command, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    Path("script").write_text(qsr_command("completion", shell)[1])
    start = [shell, "-c", COMPLETE[shell], *(["bash"] if shell == "bash" else [])]
    for words, offered in (
        (["ups"], "upscale"),
        (["upscale", "--sec"], "--seconds"),
        (["data", "pack", "--max"], "--max-mb"),
        (["completion", "fi"], "fish"),
    ):
        done = subprocess.run(
            [*start, "./script", "qsr", *words], capture_output=True, text=True, timeout=60
        )
        assert offered in [line.split("\t")[0].strip() for line in done.stdout.splitlines()], done


def test_zsh_reads_what_is_made_for_it(qsr_command):
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    Path("_qsr").write_text(qsr_command("completion", "zsh")[1])
    assert Path("_qsr").read_text().startswith("#compdef qsr\n")
    done = subprocess.run(["zsh", "-n", "_qsr"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_the_manual_has_every_command_and_every_option_of_upscale(qsr_command):
    code, page, err = qsr_command("man")
    assert code == 0 and err == "" and page.startswith(".TH QSR")
    plain = page.replace("\\-", "-")
    assert all(f"COMMAND 'qsr {name}'" in plain.replace("\\fI\\,", "") for name in COMMANDS)
    for option in re.findall(r"^  (--[a-z-]+)", qsr_command("upscale", "--help")[1], re.MULTILINE):
        assert f"\\fB{option}\\fR" in plain
    if shutil.which("man"):
        Path("qsr.1").write_text(page)
        done = subprocess.run(
            ["man", "--warnings", "-l", "qsr.1"], capture_output=True, text=True, timeout=60
        )
        assert (
            done.returncode == 0 and done.stderr == "" and "low-bit super-resolution" in done.stdout
        )


# upscale ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.png", "out.webp", "out.jpg", "new/folder/out.png"])
def test_upscale_writes_one_picture(qsr_command, model, name):
    code, out, err = qsr_command("upscale", picture("a.png"), name, "--model", model)
    assert code == 0 and err == "" and name in out and "14 x 10" in out
    assert size(name) == (14, 10)
    assert files(".") == sorted(["a.png", name])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_upscale_writes_what_python_returns(qsr_command, model, mode):
    if mode == "I;16":
        Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000).save("a.png")
    else:
        picture("a.png", mode=mode)
    assert qsr_command("upscale", "a.png", "b.png", "--model", model, "--blocks", 1)[0] == 0
    expected = qsr.upscale("a.png", qsr.load(model), blocks=1)
    with Image.open("b.png") as written:
        assert written.mode == expected.mode
        assert np.array_equal(np.asarray(written), np.asarray(expected))


def test_metadata_is_kept_unless_it_is_to_be_stripped(qsr_command, model):
    exif = Image.Exif()
    exif[0x8298], exif[274] = "mine", 6
    image = Image.new("RGB", (7, 5))
    image.save("a.jpg", exif=exif, dpi=(300, 300), icc_profile=profile(SRGB, SRGB_CURVE))
    args = ["upscale", "a.jpg"]
    assert qsr_command(*args, "kept.png", "--model", model)[0] == 0
    assert qsr_command(*args, "bare.png", "--model", model, "--strip-metadata")[0] == 0
    with Image.open("kept.png") as kept, Image.open("bare.png") as bare:
        assert kept.getexif()[0x8298] == "mine" and kept.getexif()[274] == 1
        assert round(kept.info["dpi"][0]) == 300
        assert not bare.getexif() and "dpi" not in bare.info
        assert np.array_equal(np.asarray(kept), np.asarray(bare))
        assert kept.info["icc_profile"] == bare.info["icc_profile"]
    assert "where the format of OUT holds them" in " ".join(qsr_command("upscale", "-h")[1].split())


def test_what_could_not_be_used_of_a_picture_is_told_in_one_line(qsr_command, model):
    Image.new("CMYK", (9, 9)).save("a.jpg", icc_profile=b"no profile")
    code, _, err = qsr_command("upscale", "a.jpg", "b.jpg", "--model", model)
    assert code == 0 and err.startswith("qsr: a.jpg: the profile of this CMYK picture")
    assert err.count("\n") == 1


def test_upscale_in_little_memory_writes_the_same_bytes(qsr_command, model, monkeypatch):
    monkeypatch.setattr(cli_options, "LEAST_MEMORY", 0)
    picture("a.png", 40, 60)
    assert qsr_command("upscale", "a.png", "whole.png", "--model", model)[0] == 0
    args = ["upscale", "a.png", "strips.png", "--model", model, "--memory", 0.002]
    assert qsr_command(*args)[0] == 0
    assert Path("whole.png").read_bytes() == Path("strips.png").read_bytes()


def test_upscale_takes_files_and_folders_into_a_folder(qsr_command, model):
    picture("in/a.png"), picture("in/B.JPG"), picture("c.webp")
    Path("in/notes.txt").write_text("no picture")
    picture("in/below/d.png")  # folders are not searched to their bottom
    code, out, _ = qsr_command("upscale", "in", "c.webp", "out", "--model", model)
    assert code == 0 and out.count("14 x 10") == 3
    assert files("out") == ["B.JPG", "a.png", "c.webp"]


def test_upscale_of_one_file_into_a_folder_that_exists(qsr_command, model):
    Path("out").mkdir()
    assert qsr_command("upscale", picture("a.png"), "out", "--model", model)[0] == 0
    assert files("out") == ["a.png"]


def test_upscale_never_overwrites_unless_asked(qsr_command, refused, model):
    picture("in/a.png"), picture("in/b.png")
    old = picture("out/b.png", 3, 3)
    err = refused("upscale", "in", "out", "--model", model)
    assert "out/b.png exists" in err and "nothing was done" in err and "--overwrite" in err
    assert "exists" in refused("upscale", "in/a.png", old, "--model", model)
    assert "exists" in refused("upscale", "in/a.png", "in/a.png", "--model", model)
    code, out, _ = qsr_command("upscale", "in", "out", "--model", model, "--skip-existing")
    assert code == 0 and "a.png" in out and "b.png" not in out
    assert size("out/a.png") == (14, 10) and size(old) == (3, 3)
    assert qsr_command("upscale", "in", "out", "--model", model, "--overwrite")[0] == 0
    assert size(old) == (14, 10)


def test_inputs_of_one_name_are_refused(refused, model):
    picture("one/a.png"), picture("two/a.png")
    assert "two inputs are called a.png" in refused("upscale", "one", "two", "o", "--model", model)


def test_several_pictures_do_not_go_to_a_file(refused, model):
    picture("one/a.png"), picture("b.png"), picture("file.png")
    for inputs in (["one"], ["b.png", "one"], ["b.png", "one/a.png"]):
        assert "is a file" in refused("upscale", *inputs, "file.png", "--model", model)


def test_a_bad_picture_in_a_folder_does_not_stop_the_others(qsr_command, model):
    picture("in/a.png"), picture("in/c.png")
    Path("in/b.png").write_text("no picture")
    code, out, err = qsr_command("upscale", "in", "out", "--model", model)
    assert code == 1 and out.count("14 x 10") == 2 and files("out") == ["a.png", "c.png"]
    said = [line for line in err.splitlines() if line.startswith("qsr: ")]
    assert len(said) == 2 and "in/b.png" in said[0] and "2 done, 0 skipped, 1 failed" in said[1]
    assert "Traceback" not in err


def test_a_folder_goes_to_its_end_whatever_its_files_are_called(qsr_command, model, monkeypatch):
    strange = os.fsdecode(b"caf\xe9.png")  # bytes that are no UTF-8
    long = "a" * 246 + ".png"
    for name in (strange, long, "b.jfif", "c.jpe", "d.tif", "e.bmp", "f.gif"):
        kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(Path(name).suffix)
        Path("in").mkdir(exist_ok=True)
        Image.new("RGB", (7, 5), (9, 99, 199)).save(Path("in") / name, kind)
    for name in ("._b.jfif", ".DS_Store", "notes.txt", "film.mov", "more.mov", "README"):
        Path("in", name).write_bytes(b"no picture")
    picture("in/gone.png"), picture("in/below/g.png")
    read_before = cli_enlarge.read

    def read(path):
        Path("in/gone.png").unlink(missing_ok=True)  # after the list of files was made
        return read_before(path)

    monkeypatch.setattr(cli_enlarge, "read", read)
    code, out, err = qsr_command("upscale", "in", "out", "--model", model)
    done = [strange, long, "b.jfif", "c.jpe", "d.png", "e.png", "f.png"]
    assert code == 1 and files("out") == sorted(done)
    assert out.count("14 x 10") == 7 and "caf\\udce9.png" in out
    said = [line for line in err.splitlines() if line.startswith("qsr: ")]
    assert len(said) == 3 and "in/gone.png does not exist" in said[0]
    assert "2 .mov" in said[1] and "1 .txt" in said[1] and "1 without suffix" in said[1]
    assert "1 folder(s), see --recursive" in said[1]
    assert "7 done, 0 skipped, 1 failed" in said[2]


def test_folders_below_a_folder_are_done_as_a_tree_when_asked(qsr_command, model):
    picture("in/a.png"), picture("in/b/a.png"), picture("in/b/c/a.png"), picture("in/.git/a.png")
    args = ["upscale", "in", "in/out", "--recursive", "--model", model]
    assert qsr_command(*args)[0] == 0
    assert files("in/out") == ["a.png", "b/a.png", "b/c/a.png"]
    assert qsr_command(*args, "--skip-existing")[0] == 0  # what lies in OUT is no input
    assert files("in/out") == ["a.png", "b/a.png", "b/c/a.png"]


def test_several_pictures_end_with_a_line_that_counts_them(qsr_command, model):
    picture("in/a.png", 100, 50), picture("in/b.png", 100, 50)
    picture("out/b.png")
    args = ["upscale", "in", "out", "--skip-existing", "--model", model]
    assert re.fullmatch(
        r"qsr: 1 done, 1 skipped, 0 failed; [\d.e+-]+ megapixels written a second\n",
        qsr_command(*args)[2],
    )
    assert qsr_command(*args)[2] == "qsr: 0 done, 2 skipped, 0 failed\n"


# Names, pipes, shares, seconds --------------------------------------------------------------------


def test_suffix_and_format_name_the_pictures_of_a_folder(qsr_command, model):
    picture("in/a.jpg"), picture("in/b.tif"), picture("c.webp")
    args = ["--model", model, "--suffix", "_x2"]
    assert qsr_command("upscale", "in", "c.webp", "same", *args)[0] == 0
    assert files("same") == ["a_x2.jpg", "b_x2.png", "c_x2.webp"]
    assert qsr_command("upscale", "in", "c.webp", "other", "--format", "webp", *args)[0] == 0
    assert files("other") == ["a_x2.webp", "b_x2.webp", "c_x2.webp"]
    with Image.open("other/a_x2.webp") as image:
        assert image.format == "WEBP"


def test_with_a_suffix_results_lie_beside_their_pictures_and_are_no_pictures_again(
    qsr_command, model
):
    picture("in/a.png"), picture("in/below/b.png")
    args = ["upscale", "in", "in", "--recursive", "--suffix", "_x2", "--model", model]
    for _ in range(2):
        assert qsr_command(*args, "--overwrite")[0] == 0
        assert files("in") == ["a.png", "a_x2.png", "below/b.png", "below/b_x2.png"]


def test_names_are_given_once_and_stay_in_their_folder(refused, model):
    picture("in/a.png"), picture("b.png")
    for flags in (["--suffix", "_x2"], ["--format", "png"]):
        assert "leave out" in refused("upscale", "b.png", "c.png", "--model", model, *flags)
    for suffix in ("/x", "/../x", "\0"):
        assert "`--suffix` is" in refused("upscale", "in", "out", "--suffix", suffix)
    picture("in/a.webp")
    err = refused("upscale", "in", "out", "--format", "png", "--model", model)
    assert "two inputs are called a.png" in err


def test_a_picture_comes_from_standard_input_and_goes_to_standard_output(model):
    picture("a.png"), picture("in/b.png")
    whole = [sys.executable, "-m", "qsr", "upscale", "--model", model]
    content = Path("a.png").read_bytes()

    def piped(*args):
        return subprocess.run([*whole, *args], input=content, capture_output=True, timeout=100)

    assert subprocess.run([*whole, "a.png", "b.png"], timeout=100).returncode == 0
    done = piped("-", "-")
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout == Path("b.png").read_bytes()
    done = piped("-", "-", "--format", "jpg")
    assert Image.open(io.BytesIO(done.stdout)).format == "JPEG"


def test_standard_input_is_named_like_a_file(qsr_command, refused, model, monkeypatch):
    picture("clear.png", mode="RGBA"), picture("in/a.png")

    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    give(Path("clear.png").read_bytes())
    assert qsr_command("upscale", "-", "out.png", "--model", model)[0] == 0
    assert size("out.png") == (14, 10)
    give(b"hello, this is no picture")
    assert "standard input is not a readable" in refused("upscale", "-", "b.png", "--model", model)
    give(Path("clear.png").read_bytes())
    err = refused("upscale", "-", "-", "--format", "jpg", "--model", model)
    assert "standard output.jpg: JPEG has no transparency" in err
    assert "name a file" in refused("upscale", "-", "in", "--model", model)
    assert "name it alone" in refused("upscale", "-", "in/a.png", "new", "--model", model)
    assert "one picture" in refused("upscale", "in", "-", "--model", model)


def test_bytes_do_not_go_to_a_screen(refused, model, monkeypatch):
    monkeypatch.setattr(cli_pipe.sys.stdout, "isatty", lambda: True, raising=False)
    assert "a terminal" in refused("upscale", picture("a.png"), "-", "--model", model)


def test_the_shares_of_a_folder_are_all_of_it_once(qsr_command, refused, model):
    for name in "abcde":
        picture(f"in/{name}.png")
    args = ["upscale", "in", "out", "--model", model]
    seen = []
    for share in ("1/3", "2/3", "3/3"):
        assert qsr_command(*args, "--shard", share)[0] == 0  # what others wrote is in nobody's way
        seen.append(len(files("out")))
    assert seen == [2, 4, 5]
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0"):
        assert f"`--shard` is {wrong}" in refused(*args, "--shard", wrong)


def test_in_so_many_seconds_the_deepest_network_that_is_done(
    qsr_command, refused, model, monkeypatch
):
    picture("a.png", 300, 200)
    clock = iter(range(1000))  # each measurement takes a second, for 128 x 128 pixels
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    expected = 300 * 200 / 128**2
    args = ["upscale", "a.png", "--model", model]
    code, _, err = qsr_command(*args, "b.png", "--seconds", expected + 0.01)
    assert code == 0 and err == "qsr: a.png: 2 blocks, about 3.7 s\n"
    assert np.array_equal(np.asarray(Image.open("b.png")), qsr.upscale("a.png", qsr.load(model)))
    err = refused(*args, "c.png", "--seconds", expected - 0.01)
    assert "1 blocks, the fewest, take about 3.7 s for 300 x 200 pixels" in err
    for wrong in (0, -1, "nan"):
        assert "`--seconds` is" in refused(*args, "c.png", "--seconds", wrong)
    assert qsr_command(*args, "c.png", "--seconds", 1, "--blocks", 1)[0] == 2


def test_a_depth_is_taken_when_a_deeper_one_is_too_slow(qsr_command, model, monkeypatch):
    ticks = iter((0, 100, 200, 201))  # 100 s with 2 blocks, then 1 s with 1 block
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    picture("a.png", 128, 128)
    code, _, err = qsr_command("upscale", "a.png", "b.png", "--model", model, "--seconds", 5)
    assert code == 0 and "1 blocks, about 1 s" in err
    assert np.array_equal(
        np.asarray(Image.open("b.png")), np.asarray(qsr.upscale("a.png", qsr.load(model), blocks=1))
    )


# Hostile input ------------------------------------------------------------------------------------


def jpeg():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(24, 24, 3), dtype=np.uint8)).save(
        file, "JPEG"
    )
    return file.getvalue()


def huge_png():
    """The first bytes of a PNG of 30000 x 30000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("text.png", b"hello, this is no picture", "not a readable"),
        ("cut.jpg", jpeg()[:-200], "truncated"),
        ("empty.png", b"", "not a readable"),
        ("huge.png", huge_png(), "pixels, the limit"),
        ("missing.png", None, "missing.png does not exist"),
    ],
)
def test_a_hostile_picture_gives_one_line_and_leaves_nothing(refused, model, name, content, words):
    if content is not None:
        Path(name).write_bytes(content)
    for out in ("out.png", "new/folder/out.png"):
        err = refused("upscale", name, out, "--model", model)
        assert name in err and words in err


def test_places_that_are_no_place_for_a_picture(refused, model):
    picture("a.png")
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("no picture")
    assert "empty has no pictures" in refused("upscale", "empty", "out", "--model", model)
    assert "'.tiff'" in refused("upscale", "a.png", "out.tiff", "--model", model)
    assert "''" in refused("upscale", "a.png", "out", "--model", model)
    assert "a.png is no folder" in refused("upscale", "a.png", "a.png/b.png", "--model", model)
    picture("clear.png", mode="RGBA")
    assert "transparency" in refused("upscale", "clear.png", "new/out.jpg", "--model", model)


def test_numbers_that_make_no_sense(refused, model):
    picture("a.png")
    for flags, words in (
        (["--blocks", 0], "`--blocks` is 0"),
        (["--blocks", 3], "1 to 2"),
        (["--memory", 0.249], "`--memory` is 0.249 GB; it is 0.25 or more"),
        (["--memory", "nan"], "`--memory` is nan"),
    ):
        assert words in refused("upscale", "a.png", "b.png", "--model", model, *flags)


def test_a_call_with_closed_streams_does_its_work(model, monkeypatch):
    picture("a.png")
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["upscale", "a.png", "b.png", "--model", model]) == 0 and Path("b.png").exists()
    assert cli.main(["upscale", "-", "c.png", "--model", model]) == 2  # there is no input
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()


def test_an_empty_name_is_not_taken_for_the_folder_where_one_is(refused, model):
    picture("a.png")
    for args in (
        ("upscale", "a.png", "", "--overwrite", "--model", model),  # would overwrite a.png
        ("upscale", "", "out", "--model", model),
        ("train", *TRAIN, "--out", ""),
        ("evaluate", ""),
    ):
        assert "is empty" in refused(*args)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder closed even to root")
def test_a_read_only_folder_gives_one_line(refused, model):
    assert "/proc/b.png" in refused("upscale", picture("a.png"), "/proc/b.png", "--model", model)


def test_a_closed_folder_is_told_before_the_work(refused, models, monkeypatch):
    picture("a.png"), Path("out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "out")
    monkeypatch.setattr(cli_enlarge, "upscaled_rows", pytest.fail)
    monkeypatch.setattr(cli_train, "fit", pytest.fail)
    model = models / "packed.qsr"
    for out in ("out", "out/b.png", "out/new/b.png"):
        err = refused("upscale", "a.png", out, "--model", model)
        assert "out is closed to writing" in err
    assert "out is closed to writing" in refused("train", "--out", "out/run")


def test_an_error_of_the_system_is_told_with_its_place(refused, model, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device", "new")

    picture("a.png")
    monkeypatch.setattr(Path, "mkdir", full)
    err = refused("upscale", "a.png", "new/b.png", "--model", model)
    assert err == "qsr: new: No space left on device; check that place.\n"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_running_out_of_memory_gives_one_line(refused, model, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(cli_enlarge, "upscaled_rows", fail)
    assert "--memory" in refused("upscale", picture("a.png"), "b.png", "--model", model)


@pytest.mark.parametrize(
    "number, code, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_with_its_code_and_leaves_nothing(
    qsr_command, here, model, monkeypatch, number, code, word
):
    def interrupt(*args, **options):
        assert len(files(here)) == 2  # a temporary one is there
        signal.raise_signal(number)

    monkeypatch.setattr(system_files, "_flush", interrupt)
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background has it ignored
    try:
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        done = qsr_command("upscale", picture("a.png"), "b.png", "--model", model)
        assert done == (code, "", f"qsr: {word}\n") and files(here) == ["a.png"]
        assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    finally:
        signal.signal(signal.SIGINT, ours)


def damaged(content):
    content = bytearray(content)
    content[-1] ^= 1
    return bytes(content)


def test_a_model_that_is_none_gives_one_line(refused, models, tmp_path_factory):
    picture("a.png")
    elsewhere = tmp_path_factory.mktemp("hostile")
    good = (models / "packed.qsr").read_bytes()
    contents = {
        "text": (b"hello, this is no model", "no qsr model"),
        "empty": (b"", "no qsr model"),
        "cut": (good[:-100], "no qsr model"),
        "damaged": (damaged(good), "damaged"),
    }
    for name, (content, words) in contents.items():
        path = elsewhere / f"{name}.qsr"
        path.write_bytes(content)
        for command in (
            ["upscale", "a.png", "b.png", "--model", path],
            ["evaluate", "embedded", "--model", path],
            ["pack", path, "b.qsr"],
            ["train", "--out", "run", "--init", path, *TRAIN],
        ):
            err = refused(*command)
            assert str(path) in err and words in err
    save_file({"weight": torch.zeros(3)}, elsewhere / "foreign.qsr")
    for name, words in (
        (elsewhere / "foreign.qsr", "no qsr model"),
        ("missing.qsr", "does not exist"),
        ("quantsr-z-x4", "no model is called 'quantsr-z-x4'"),
    ):
        assert words in refused("upscale", "a.png", "b.png", "--model", name)
        assert words in refused("pack", name, "b.qsr")


def test_a_model_of_the_zoo_is_known_wherever_a_model_is_taken(qsr_command, models):
    for name in ("srresnet-x2", "zoo:srresnet-x2"):
        assert qsr_command("pack", name, "again.qsr", "--overwrite")[0] == 0
        assert describe("again.qsr") == describe(zoo.path_of("srresnet-x2"))
        args = ["upscale", picture("a.png"), "b.png", "--overwrite", "--model"]
        assert qsr_command(*args, name)[0] == 0
    Path("again.qsr").rename("again")  # a file needs no suffix
    assert qsr_command(*args, "again")[0] == 0


def test_a_model_where_there_is_none_to_take_is_refused_by_name(refused):
    picture("in/a.png")
    for name in ("srresnet-x2", "zoo:srresnet-x2"):
        for command in (
            ["upscale", name, "b.png"],
            ["evaluate", name],
            ["convert", name, "b.qsr"],
            ["train", "--out", "run", "--data", name, *TRAIN],
            ["data", "pack", "b.zip", name],
        ):
            assert f"{name} is a model that comes with qsr, and `" in refused(*command)
    for command in (
        ["upscale", "in/a.png", "b.png", "--model", "srresnet-x2.qsr"],
        ["pack", "srresnet-x2.qsr", "b.qsr"],
        ["export", "--onnx", "srresnet-x2.qsr", "b.onnx"],
        ["train", "--out", "run", "--init", "srresnet-x2.qsr", *TRAIN],
    ):
        assert "'srresnet-x2', without .qsr" in refused(*command)
    assert "is packed already" in refused("pack", DEFAULT_MODEL, "b.qsr")
    assert "no preset is called" in refused("train", "--preset", "srresnet-x2.qsr", "--out", "run")


def test_packing_what_cannot_be_packed_gives_one_line(refused, models, model):
    trained_file = models / "trained.qsr"
    assert "'.png'" in refused("pack", trained_file, "b.png")
    assert "is packed" in refused("pack", model, "b.qsr")
    Path("there.qsr").write_text("mine")
    assert "exists" in refused("pack", trained_file, "there.qsr")
    Path("photos").mkdir()
    err = refused("pack", "photos", "b.qsr")
    assert "photos holds no checkpoint" in err and "Remove" not in err
    Path("run/step-00000001").mkdir(parents=True)
    Path("run/step-00000001/state.json").write_text("{}")
    for name in ("run", "run/step-00000001"):
        assert "no complete checkpoint" in refused("pack", name, "b.qsr")


def test_evaluating_what_cannot_be_scored_gives_one_line(refused, models, model):
    Path("empty").mkdir()
    assert "no set or folder" in refused("evaluate", "Set99", "--model", model)
    assert "no pictures" in refused("evaluate", "empty", "--model", model)
    assert "`scale` is 4" in refused("evaluate", "embedded", "--model", model, "--scale", 4)
    assert "`scale` is not given" in refused("evaluate", "embedded", "--model", "bicubic")
    assert "1 to 2" in refused("evaluate", "embedded", "--model", model, "--blocks", 7)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--preset", "quantsr"], "'quantsr'"),
        (["--preset", "quantsr-c-x5-w4a4"], "`scale` is 5"),
        (["--device", "cuda:99"], "'cuda:99'"),
        (["--device", "toaster"], "'toaster'"),
        (["--data", "Set99"], "'Set99'"),
        (["--patch", 5000], "20000 pixels"),
        (["--steps", 0], "`steps` is 0"),
        (["--learning-rate", -1], "`learning_rate` is -1"),
        (["--seed", -1], "`seed` is -1"),
        (["--init", "missing.qsr"], "missing.qsr"),
        (["--preset", "quantsr-c-x2-w1a1"], "`bits` is 1; it has widths from 2"),
        (["--preset", "quantsr-c-x2-w33a33"], "`bits` is 33; it has widths from 2"),
        (
            ["--depths", 32, 8, 16],
            "`depths` is (32, 8, 16); it starts with all 32 blocks",
        ),
        (["--layer-bits", "body_conv=x"], "'body_conv=x'; it is LAYER=BITS"),
        (["--layer-bits", "head=8"], "'head', which no quantised layer is called"),
        (
            ["--preset", "quantsr-c-x2-w2a2", "--quantizer", "cadyq"],
            "`bits` is 2; it has widths from 2 (weights) and 4 (inputs)",
        ),
        (["--quantizer", "pams"], "`transfer` is 3.9"),
        (["--joint-from", 0], "`rank_by` is 'shortcut'; it is"),
        (["--accumulate", 3], "the batch is 16, and 1 processes with `accumulate` 3"),
        (["--depth-weights", 1, 2], "`depth_weights` is (1.0, 2.0); this run trains"),
    ],
)
def test_training_that_cannot_begin_gives_one_line(refused, flags, words):
    assert words in refused("train", "--out", "run", "--patch", 16, *flags)
    assert not list(Path("run").glob("step-*"))


def test_training_without_a_folder_is_refused(refused):
    assert "`--out` is not given" in refused("train")


def test_the_configuration_is_printed_and_nothing_is_done(qsr_command, here):
    args = ["--preset", "quantsr-c-x2-w2a4", "--quantizer", "lsq", "--ema", 0.9, "--no-joint"]
    code, out, _ = qsr_command("train", "--print-config", *args)
    config = json.loads(out)
    assert code == 0 and files(here) == []
    assert config["network"]["bits"] == [2, 4] and config["network"]["quantizer"] == "lsq"
    assert config["training"]["ema"] == 0.9 and config["training"]["joint"] is False
    assert config["training"]["steps"] == 300_000 and config["call"]["batch"] == 16


def test_a_baseline_is_trained_by_the_recipe_of_its_paper(qsr_command, here):
    args = ["--preset", "quantsr-c-x2-w8a8", "--quantizer", "cadyq", "--init", "some"]
    config = json.loads(qsr_command("train", "--print-config", *args, "--transfer", 5)[1])
    assert config["training"]["bit_weight"] == qsr.CADyQ.recipe["bit_weight"]
    assert config["training"]["transfer"] == 5
    assert config["training"]["warmup"] == 1000  # short, for weights that are trained already


FULL_DISK = """
import resource, signal, sys
from qsr.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# A limit on the size of files makes the write itself fail, as a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
model, trained, *train = sys.argv[1:]
for args in (
    ["upscale", "a.png", "b.png", "--model", model],
    ["pack", trained, "b.qsr"],
    ["train", "--out", "run", "--data", "photos", *train],
    ["data", "pack", "b.zip", "photos"],
):
    code = main(args)
    print("exit", code, flush=True)
"""


def test_a_full_disk_gives_one_line_and_leaves_nothing(here, models):
    picture("a.png", 40, 40), picture("photos/a.png", 32, 32), picture("photos/b.png", 32, 32)
    before = files(here)
    args = [str(models / "packed.qsr"), str(models / "trained.qsr"), *TRAIN]
    done = run(sys.executable, "-c", FULL_DISK, *args)
    assert done.stdout.count("exit 2\n") == 4, done.stderr
    said = [line[line.index("qsr: ") :] for line in done.stderr.splitlines() if "qsr: " in line]
    for line, name in zip(said, ("b.png", "b.qsr", "run/step-00000002", "b.zip"), strict=True):
        assert name in line and "File too large" in line
    assert "Traceback" not in done.stderr
    assert files(here) == before


# data ---------------------------------------------------------------------------------------------


def test_sets_that_cannot_be_packed_give_one_line(refused):
    picture("in/a.png"), picture("in/b.png")
    Path("empty").mkdir()
    Path("there.zip").write_text("mine")
    for args, words in (
        (["out.zip", "Set99"], "'Set99'"),
        (["out.zip", "empty"], "empty has no pictures"),
        (["out.zip", "in", "in/a.png"], "in/a.png is no file made by `qsr data pack`"),
        (["out.zip", "in", "embedded"], "'embedded' comes with qsr"),
        (["out.tar", "in"], "'.tar'"),
        (["there.zip", "in"], "there.zip exists"),
        (["new/out.zip", "in"], "cannot write new/out.zip"),
        (["out.zip", "in", "--max-mb", 0.0005], "in/a.png alone takes"),
        (["out.zip", "in", "--max-mb", 0], "`max_mb` is 0"),
        (["out.zip", "in", "--max-mb", "nan"], "`max_mb` is nan"),
    ):
        assert words in refused("data", "pack", *args)
    assert "there.zip is no file made by" in refused("data", "list", "there.zip")
    picture("one/a.png")  # which is held out
    assert "'train'" in refused("data", "pack", "out.zip", "one", "--split", "train")
    Path("in/c.png").write_text("no picture")
    assert "in/c.png" in refused("data", "pack", "out.zip", "in")


def test_packing_says_how_many_of_how_many_it_took(qsr_command):
    for i in range(6):
        picture(f"in/{i}.png", 20, 20), picture(f"more/{i}.png", 20, 20)
    code, out, err = qsr_command("data", "pack", "out.zip", "in", "more", "--max-mb", 0.01)
    bytes = Path("out.zip").stat().st_size
    assert code == 0 and err == "" and bytes <= 10_000
    assert out.splitlines() == [
        "in  3 of 6 pictures",
        "more  3 of 6 pictures",
        f"out.zip  6 of 12 pictures  {bytes / 1e6:.3f} MB",
    ]
    args = ["data", "pack", "out.zip", "in", "more", "--overwrite", "--json"]
    report = json.loads(qsr_command(*args)[1])
    assert report["bytes"] == Path("out.zip").stat().st_size > bytes
    assert report["sets"]["more"] == {"pictures": 6, "of": 6}
    assert files(".") == sorted([*(f"{a}/{i}.png" for a in ("in", "more") for i in range(6))]) + [
        "out.zip"
    ]


def test_sets_are_listed_and_a_bad_one_does_not_hide_the_others(qsr_command, here, monkeypatch):
    monkeypatch.setenv("QSR_DATA", str(here))
    picture("train/T91/a.png", 1000, 500), picture("train/T91/b.png", 1000, 500)
    code, out, err = qsr_command("data", "list")
    assert code == 0 and err == ""
    assert [line.split()[:4] for line in out.splitlines()[1:]][1] == ["T91", "2", "1", "1.0"]
    rows = json.loads(qsr_command("data", "list", "--json")[1])
    assert [row["set"] for row in rows] == ["embedded", "T91"] and rows[1]["megapixels"] == 1
    Path("train/Bad").mkdir()
    Path("train/Bad/a.png").write_text("no picture")
    code, out, err = qsr_command("data", "list")
    assert code == 2 and one_line(err) and "Bad/a.png" in err and "T91" in out
    code, out, err = qsr_command("data", "list", "--json")
    assert code == 2 and one_line(err) and json.loads(out) == rows
    assert qsr_command("data", "list", "T91")[0] == 0


# Real processes -----------------------------------------------------------------------------------


def run(*args):
    """Run a program that finds this qsr from any folder."""
    env = {**os.environ, "PYTHONPATH": str(Path(qsr.__file__).parents[1])}
    return subprocess.run([*map(str, args)], capture_output=True, text=True, env=env)


def test_the_program_runs_as_a_process_and_returns_its_exit_code(here, model):
    args = ["-m", "qsr.cli", "upscale", picture("a.png"), "b.png", "--model", model]
    done = run(sys.executable, *args)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b.png  14 x 10\n", "")
    done = run(sys.executable, *args)
    assert done.returncode == 2 and done.stdout == "" and one_line(done.stderr)


WITHOUT_TORCH = """
import contextlib, io, runpy, sys
for module in ("qsr", "qsr.cli"):
    for arguments in ("--help", "--version", "trian", ""):
        sys.argv = ["qsr", *arguments.split()]
        with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.suppress(SystemExit):
            runpy.run_module(module, run_name="__main__")
        assert "torch" not in sys.modules, (module, arguments)
        print(err.getvalue())
"""


def test_help_and_a_mistyped_command_do_not_wait_for_torch(here):
    done = run(sys.executable, "-c", WITHOUT_TORCH)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: qsr [-h] [--version] COMMAND ...") == 2 + 2 + 2
    assert done.stdout.count("invalid choice: 'trian'") == 2


def test_a_new_process_knows_the_quantizers_of_the_baselines_by_name(here):
    args = ["--print-config", "--quantizer", "cadyq", "--preset", "quantsr-c-x2-w4a8"]
    done = run(sys.executable, "-m", "qsr", "train", *args)
    assert json.loads(done.stdout)["network"]["quantizer"] == "cadyq", done.stderr


def test_a_reader_that_stops_reading_is_no_error(here):
    command = f"'{sys.executable}' -m qsr.cli info --json | true"
    assert run("bash", "-c", command).stderr == ""


# From training to a picture -----------------------------------------------------------------------


@pytest.fixture
def photos(here):
    for name, values in textures(48).items():
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(values.permute(1, 2, 0).numpy()).save(f"photos/{name}.png")
    return "photos"


def test_train_pack_evaluate_and_upscale(qsr_command, photos):
    code, out, _ = qsr_command("train", "--out", "run", *TRAIN)  # on the embedded set
    assert code == 0 and out.splitlines() == ["run/step-00000004", "run/model.qsr"]
    assert qsr_command("pack", "run/model.qsr", "packed.qsr")[0] == 0
    for source in ("run", "run/step-00000004"):
        assert qsr_command("pack", source, "again.qsr", "--overwrite")[0] == 0
        lr = torch.rand(1, 3, 5, 7)
        assert torch.equal(qsr.load("./again.qsr")(lr), qsr.load("./packed.qsr")(lr))

    code, out, _ = qsr_command("evaluate", photos, "--model", "packed.qsr", "--blocks", 1, "--json")
    report = json.loads(out)
    scores = qsr.evaluate(qsr.load("packed.qsr"), photos, blocks=1)
    assert code == 0 and report["blocks"] == 1
    assert report["sets"][photos]["psnr_y"] == scores.psnr_y
    assert report["sets"][photos]["names"] == list(scores.names)
    code, out, _ = qsr_command("evaluate", photos, "--model", "bicubic", "--scale", 2, "--each")
    assert code == 0 and len(out.splitlines()) == 5 and "dB" in out

    # Text comes as soon as a set is done, JSON when all are.
    args = ["evaluate", photos, "nowhere", "--model", "bicubic", "--scale", 2]
    code, out, _ = qsr_command(*args)
    assert code == 2 and out.startswith(photos) and len(out.splitlines()) == 1
    assert qsr_command(*args, "--json")[:2] == (2, "")

    args = ["upscale", f"{photos}/noise.png", "sr.png", "--model", "packed.qsr"]
    assert qsr_command(*args)[0] == 0 and size("sr.png") == (96, 96)


def test_a_packed_model_is_written_with_its_card(qsr_command, models, photos):
    args = ["pack", models / "trained.qsr", "m.qsr", "--card", "by hand", "--sets", photos]
    code, out, _ = qsr_command(*args)
    assert code == 0 and "m.json" in out
    card = json.loads(Path("m.json").read_text())
    assert card["training"] == "by hand" and card["bytes"] == Path("m.qsr").stat().st_size
    assert card["scores"].keys() == {"2", "1"} and photos in card["packed_minus_trained"]


def test_full_precision_is_packed_as_float16_with_a_card_from_its_record(qsr_command, photos):
    args = ["--train", "--rows", "srresnet-x2", *TINY, "--data", photos, "--results", "results"]
    assert qsr_command("reproduce", "table1", "--out", "runs", *args)[0] == 0
    name = "srresnet-x2-2-blocks-4-features"
    call = ["pack", f"runs/{name}", "m.qsr", "--card", f"results/{name}.json", "--sets"]
    code, _, err = qsr_command(*call, "nowhere")
    assert code == 2 and one_line(err) and not Path("m.qsr").exists()
    assert qsr_command(*call, photos)[0] == 0
    card, net = json.loads(Path("m.json").read_text()), qsr.load("./m.qsr")
    assert card["bits"] == "32/32" and "4 steps of 2 patches 8x8" in card["training"]
    assert Path("m.qsr").stat().st_size < Path(f"runs/{name}/model.qsr").stat().st_size
    scores = qsr.evaluate(net, photos)
    assert card["scores"] == {"2": {photos: [round(scores.psnr_y, 3), round(scores.ssim_y, 4)]}}
    assert (
        qsr_command("train", "--init", "m.qsr", "--out", "again", *TRAIN, "--data", photos)[0] == 0
    )


def test_the_same_call_resumes_and_ends_where_an_uninterrupted_one_ends(qsr_command, photos):
    args = [*TRAIN, "--data", photos]
    assert qsr_command("train", "--out", "whole", *args)[0] == 0
    code, out, err = qsr_command("train", "--out", "parts", *args, "--max-seconds", 0)
    assert code == 0 and "step-00000001" in out and "model.qsr" not in files("parts")
    assert "the same call goes on" in err
    assert qsr_command("train", "--out", "parts", *args)[0] == 0
    assert describe("parts/model.qsr") == describe("whole/model.qsr")  # checksums among them
    done = qsr_command("train", "--out", "parts", *args)  # nothing is left to do
    assert done[0] == 0 and "step-00000004" in done[1]


def test_a_run_refuses_another_configuration_and_keeps_its_checkpoints(qsr_command, photos):
    args = ["train", "--out", "run", *TRAIN, "--data", photos]
    assert qsr_command(*args)[0] == 0
    before = files("run")
    picture("other/a.png", 48, 48), picture("other/b.png", 48, 48)
    for changed, words in (
        (["--steps", 9], "`steps`"),
        (["--features", 8], "another network"),
        (["--seed", 1], "`seed` is 0, not 1"),
        (["--batch", 4], "`batch` is 2, not 4"),
        (["--patch", 7], "`patch` is 8, not 7"),
        (["--data", "other"], "`data` is"),
    ):
        code, _, err = qsr_command(*args, *changed)
        assert code == 2 and words in err and one_line(err)
        assert files("run") == before
    Path(photos).rename("moved")  # the same pictures
    args[-1] = "moved"
    assert qsr_command(*args)[0] == 0
    state = list_checkpoints("run")[-1] / "state.json"
    told = json.loads(state.read_text())
    del told["data"]  # a run of an older version
    state.write_text(json.dumps(told))
    assert qsr_command(*args, "--seed", 1)[0] == 0
    (list_checkpoints("run")[-1] / "weights.safetensors").write_bytes(b"damaged")
    code, _, err = qsr_command(*args)
    assert code == 2 and one_line(err) and "step-00000004" in err


def test_a_packed_file_trains_and_scores_as_its_set_does(qsr_command, photos):
    assert qsr_command("data", "pack", "photos.zip", photos)[0] == 0
    for name in (photos, "photos.zip"):
        assert qsr_command("train", "--out", f"run-{name}", *TRAIN, "--data", name)[0] == 0
    models = [qsr.load(f"run-{name}/model.qsr").state_dict() for name in (photos, "photos.zip")]
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models), strict=True))
    args = ["--model", "bicubic", "--scale", 2, "--json"]
    report = json.loads(qsr_command("evaluate", photos, "photos.zip", *args)[1])
    here, there = (report["sets"][name] for name in (photos, "photos.zip"))
    assert here["names"] == there["names"] and here["psnr_each"] == there["psnr_each"]


def test_another_scale_starts_with_a_tail_that_fits(qsr_command, photos):
    tiny = [*TINY, "--data", photos, "--learning-rate", 1e-12]
    wide = [*tiny, "--features", 12, "--patch", 12]
    assert qsr_command("train", "--preset", "srresnet-x2", "--out", "x2", *wide)[0] == 0
    args = ["train", "--preset", "quantsr-c-x4-w4a4", *wide, "--init", "x2", "--out"]
    assert qsr_command(*args, "plain")[0] == 0
    code, _, err = qsr_command(*args, "fitted", "--fit-tail")
    assert code == 0 and "tail fitted on 1389 crops" in err  # of 12 x 12
    plain, fitted = (
        qsr.evaluate(qsr.load(f"{run}/model.qsr"), photos, 4).psnr_y for run in ("plain", "fitted")
    )
    assert fitted > plain + 1
    for other in (["train", *tiny, "--out"], [*args[:-1], "--init-tail-only", "--out"]):
        code, _, err = qsr_command(*other, "alone", "--fit-tail")
        assert code == 2 and "name one by --init" in err and one_line(err)


def test_training_starts_from_a_packed_network(qsr_command, photos, model):
    still = [*TRAIN, "--data", photos, "--learning-rate", 1e-12, "--quantizer-rate", 1e-12]
    args = ["train", "--out", "run", *still, "--init", model]
    assert qsr_command(*args)[0] == 0
    lr = torch.rand(1, 3, 9, 8)
    torch.testing.assert_close(
        qsr.load("run/model.qsr")(lr), qsr.load(model)(lr), atol=1 / 255, rtol=0
    )


def test_training_starts_from_the_weights_of_another_network(qsr_command, photos):
    teacher = ["--preset", "srresnet-x2", *TINY]
    assert qsr_command("train", "--out", "float", *teacher, "--data", photos)[0] == 0
    # A learning rate this small changes no weight visibly.
    args = ["--out", "run", *TRAIN, "--data", photos, "--learning-rate", 1e-12]
    assert qsr_command("train", *args, "--init", "float/model.qsr")[0] == 0
    source, net = qsr.load("float/model.qsr"), qsr.load("run/model.qsr")
    assert torch.allclose(net.head.weight, source.head.weight, rtol=0, atol=1e-9)
    assert torch.allclose(net.blocks[1].conv2.weight, source.blocks[1].conv2.weight, atol=1e-9)
    # The run has its own weights now, and goes on without the file it began from.
    Path("float/model.qsr").unlink()
    assert qsr_command("train", *args, "--init", "float/model.qsr")[0] == 0
    assert qsr_command("train", *args[2:], "--out", "other", "--init", "float")[0] == 0
