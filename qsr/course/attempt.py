"""The answers of one submission, asked one after another: `python -P -m qsr.course.attempt OUT`.

`qsr.course.grade` starts this in a process of its own and reads what it writes to OUT, a line of
JSON when it begins with an answer and one when it is done: so it knows which one a process died of.
The job comes through stdin: {"seed", "year", "seconds", "memory", "answers": [[name, source], …]}.
"""

from __future__ import annotations

import ast
import faulthandler
import json
import linecache
import os
import sys
from typing import Any, TextIO

from . import exercises
from .check import fault


def attempt(name: str, source: str, seed: int, year: int | None = None) -> tuple[bool, str]:
    """Whether an answer passes its test, and what to say about it."""
    exercise = next(one for one in exercises.every() if one.name == name).of(year)
    names: dict[str, Any] = {"__name__": "__answer__"}
    left_out = []
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        return False, f"the cell is no Python: {error}"
    linecache.cache[exercise.answer] = (1, None, source.splitlines(True), exercise.answer)
    for node in body:
        told = _run(ast.Module([node], []), names, exercise.answer)
        if told:  # such as a trial with a picture of the notebook: the function may still be right
            left_out.append(f"line {node.lineno}: {told}")
    answer = names.get(exercise.answer)
    if not callable(answer):
        return False, "; ".join([f"{exercise.answer} is no function", *left_out])
    wrong = fault(answer, exercise, seed)
    if wrong and left_out:
        wrong = f"{wrong} (What did not run before: {'; '.join(left_out)}.)"
    return not wrong, wrong or "correct"


def _run(code: str | ast.Module, names: dict[str, Any], where: str) -> str | None:
    """Run a piece of code; what it raised, in words, or None."""
    try:
        exec(compile(code, where, "exec"), names)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _limit(gigabytes: float) -> None:
    """Memory and the size of files, where the system can limit them."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, most in ((resource.RLIMIT_AS, int(gigabytes * 1e9)), (resource.RLIMIT_FSIZE, 2**27)):
        resource.setrlimit(what, (most, most))


def _main(out: TextIO, nothing: TextIO) -> None:
    job = json.load(sys.stdin)
    _limit(job["memory"])
    sys.stdin, sys.stdout, sys.stderr = nothing, nothing, nothing
    for name, source in job["answers"]:
        print(json.dumps({"begins": name}), file=out, flush=True)
        # A thread of C, which no loop of Python can hold up, ends the process in time.
        faulthandler.dump_traceback_later(job["seconds"], exit=True, file=nothing)
        try:
            passed, said = attempt(name, source, job["seed"], job["year"])
        except BaseException as error:  # an answer may raise whatever it likes
            passed, said = False, f"{type(error).__name__}: {error}"
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"name": name, "passed": passed, "said": said}), file=out, flush=True)


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as out, open(os.devnull, "r+") as nothing:
        _main(out, nothing)
