"""A plan as data: what a `.qsr` file says of how its network runs.

    {"version": 1, "order": [part, part ...]}

A part is a region, {"inputs", "outputs", "rows", "values", "steps", "equal"}, its fields those of
`plan.Plan`, or a step that runs in PyTorch, {"torch": what it calls, "name": .., "reads": [..]}. No
weights, no places in memory and no code: a step names its layer, whose tensors are in the file.
Numbers of a finish are the bits of a float32 in hexadecimal, which no reader rounds.

A reader of such a file trusts nothing in it. `from_json` checks every number before it is used, and
says in one line what does not fit.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from ..system.errors import first_line
from .plan import MOST_OPERATIONS, OF_VALUES, Plan, Rule, Size, Step, Store, Value
from .reference import ELEMENTS
from .regions import LANES, MOST_CODES, MOVES, RESAMPLING

if TYPE_CHECKING:
    from .planned import NetworkPlan

VERSION = 1
MOST_VALUES, MOST_STEPS, MOST_CHANNELS, MOST_NUMBER = 16_384, 4_096, 4_096, 2**24
# How many numbers a step has.
FORMS = {"bilinear": 1, "average": 7, "pool": 6, "nearest": 1, "shuffle": 1, "pad": 5}
CONSTANTS = ("relu", "leaky", "prelu", "times", "plus", *ELEMENTS)  # operations without a value


class Misfit(ValueError):
    """What is wrong with a plan, in one line."""


def to_json(plan: NetworkPlan) -> dict[str, Any]:
    """The plan of a network, to be written by json.dumps."""
    return {"version": VERSION, "order": [_part(part) for part in plan.order]}


def _part(part: Plan | fx.Node) -> dict[str, Any]:
    if isinstance(part, fx.Node):
        called = part.target if isinstance(part.target, str) else part.target.__name__
        reads = [node.name for node in part.all_input_nodes]
        return {"torch": f"{part.op} {called}", "name": part.name, "reads": reads}
    data = dataclasses.asdict(part)
    for step in data["steps"]:
        step["finish"] = [[op, _written(operand)] for op, operand in step["finish"]]
    return data


def _written(operand: Any) -> Any:
    return {"float32": struct.pack(">f", operand).hex()} if isinstance(operand, float) else operand


def _read(operand: Any) -> Any:
    if isinstance(operand, dict):
        return struct.unpack(">f", bytes.fromhex(operand["float32"]))[0]
    return operand


# Reading ------------------------------------------------------------------------------------------


def from_json(data: Any) -> list[Plan]:
    """The regions of a plan that a file describes. Raises ValueError (one line)."""
    try:
        _check(data["version"] == VERSION, f"its version is {data['version']!r}, not {VERSION}")
        plans = [_region(part) for part in data["order"] if "torch" not in part]
    except Misfit:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise Misfit(f"the plan is not one: {type(error).__name__}, {first_line(error)}") from error
    for plan in plans:
        _check_plan(plan)
    return plans


def _region(data: Any) -> Plan:
    return Plan(
        inputs=tuple(str(name) for name in data["inputs"]),
        outputs=tuple((str(name), _int(v)) for name, v in data["outputs"]),
        rows=bool(data["rows"]),
        values=tuple(_value(v) for v in data["values"][: MOST_VALUES + 1]),
        steps=tuple(_step(s) for s in data["steps"][: MOST_STEPS + 1]),
        equal=tuple((str(name), _size(a), _size(b)) for name, a, b in data["equal"]),
    )


def _size(data: Any) -> Size:
    rows, columns = (tuple(map(_rule, data[name])) for name in ("rows", "columns"))
    return Size(_int(data["input"]), rows, columns)


def _rule(data: Any) -> Rule:
    a, b, c, d = map(_int, data)
    _check(abs(a) <= 4096 and b >= 1 and 0 <= c <= 1 and 1 <= d <= 64, "a size")
    return a, b, c, d


def _value(data: Any) -> Value:
    frame = tuple(map(_int, data["frame"]))
    numbers = _int(data["channels"]), _size(data["size"]), _int(data["bits"])
    return Value(str(data["kind"]), *numbers, bool(data["signed"]), frame)  # type: ignore[arg-type]


def _step(data: Any) -> Step:
    return Step(
        op=str(data["op"]),
        source=_int(data["source"]),
        channels=_int(data["channels"]),
        size=_size(data["size"]),
        layer=str(data["layer"]),
        places=tuple((_int(n), _int(at)) for n, at in data["places"]),
        numbers=tuple(
            tuple(map(_int, n)) if isinstance(n, list) else _int(n) for n in data["numbers"]
        ),
        finish=tuple((str(op), _read(operand)) for op, operand in data["finish"]),
        out=None if data["out"] is None else _int(data["out"]),
        codes=tuple(
            Store(
                value=_int(s["value"]),
                at=_int(s["at"]),
                first=_int(s["first"]),
                count=_int(s["count"]),
                reader=str(s["reader"]),
                start=_int(s["start"]),
                repeat=_int(s["repeat"]),
            )
            for s in data["codes"]
        ),
    )


def _int(number: Any) -> int:
    _check(type(number) is int and abs(number) < MOST_NUMBER, f"{number!r} is no number of a plan")
    return number


def _check(fits: bool, what: str) -> None:
    if not fits:
        raise Misfit(f"the plan does not fit: {what}")


def _check_plan(plan: Plan) -> None:
    """Raises ValueError unless every number of a region may be used."""
    values, outputs = plan.values, {v for _, v in plan.outputs}
    _check(len(values) <= MOST_VALUES, f"{len(values)} values or more")
    _check(1 <= len(plan.steps) <= MOST_STEPS, f"{len(plan.steps)} steps")
    _check(1 <= len(plan.inputs) <= len(values), "its inputs are no values")
    for value in values:
        what = f"a value of kind {value.kind!r} with {value.channels} channels"
        _check(value.kind in ("codes", "float") and 1 <= value.channels <= MOST_CHANNELS, what)
        codes = value.channels % LANES == 0 and 1 <= value.bits <= 8
        _check(value.kind == "float" or codes, f"{what} and {value.bits} bits")
        _check(0 <= value.size.input < len(plan.inputs), "a size of no input")
        _check(len(value.frame) == 2 and 0 <= min(value.frame) <= max(value.frame) <= 64, "frame")
    _check(all(0 <= v < len(values) for v in outputs), "an output is no value")
    written = set(range(len(plan.inputs)))
    for i, step in enumerate(plan.steps):
        _check_step(i, step, values, written)
        written.update(step.writes())
    _check(outputs <= written, "an output is never written")


def _check_step(i: int, step: Step, values: Sequence[Value], written: set[int]) -> None:
    step_is = f"step {i}"
    moves = step.op in MOVES
    _check(step.op in ("conv", "float", *RESAMPLING) or moves, f"{step_is} is {step.op!r}")
    _check(1 <= step.channels <= MOST_CHANNELS, f"{step_is} has {step.channels} channels")
    flat = [m for n in step.numbers for m in (n if isinstance(n, tuple) else (n,))]
    fits = len(flat) == FORMS.get(step.op, 0)
    _check(fits, f"{step_is}, {step.op!r}, has the numbers {step.numbers}")
    _check(len(step.finish) <= MOST_OPERATIONS, f"{step_is} has a finish too long")
    _check(len(step.codes) <= MOST_CODES, f"{step_is} has too many stores")
    for op, operand in step.finish:
        _check(op in (*OF_VALUES, *CONSTANTS), f"{step_is} has the operation {op!r}")
        _check(op not in OF_VALUES or type(operand) is int, f"{step_is} has no operand")
    for v in step.reads():
        _check(v in written, f"{step_is} reads value {v}, which is not written yet")
    for v in step.writes():
        _check(0 <= v < len(values), f"{step_is} writes value {v}, which is none")
        _check(v not in step.reads(), f"{step_is} writes value {v}, which it reads")
    kind = "float" if step.op in ("float", *RESAMPLING) else "codes"
    _check(values[step.source].kind == kind, f"{step_is} reads another kind of value")
    _check(step.out is None or step.out not in written, f"{step_is} writes value {step.out} again")
    for store in step.codes:
        value = values[store.value]
        room = value.channels - store.at
        fits = value.kind == "codes" and store.at % LANES == 0 and store.count <= room
        fits = fits and store.at >= 0 <= store.first and store.count >= 1
        _check(fits and store.start >= 0 and store.repeat >= 1, f"{step_is} has a store too wide")
    for count, at in step.places:
        inside = at >= 0 and 1 <= count <= values[step.source].channels - at
        _check(inside, f"{step_is} reads channels that are not there")
