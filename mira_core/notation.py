"""The same model as Python, as a command, and as JSON: written, and read again.

Nothing that is read is run: Python is parsed, and only literals are taken from it.
"""

from __future__ import annotations

import argparse
import ast
import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import options as opt
from .errors import OptionError

DEMO = "demo:"


class Written(NamedTuple):
    """Data (None if not told) and options."""

    data: str | None
    given: dict[str, Any]


def to_json(data: str, given: Mapping[str, Any]) -> str:
    """Write what a job's specification holds."""
    return json.dumps({"data": data, "model": dict(given)}, indent=2)


def to_command(data: str, given: Mapping[str, Any], out: str = "run1") -> str:
    """Write the command that trains the model."""
    words = ["mira", "fit", data, "-o", out]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + name.replace("_", "-"))
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def to_python(data: str, given: Mapping[str, Any]) -> str:
    """Write the Python that trains the model."""
    if data.startswith(DEMO):
        imports, read = "import mira_core as mira", f"adata = mira.data.load_demo({data.removeprefix(DEMO)!r})"
    else:
        imports, read = "import mira_core as mira", f"adata = mira.data.open_data({data!r})"
    arguments = "".join(f"    {n}={v!r},\n" for n, v in given.items())
    return (
        f"{imports}\n\n{read}\nmodel = mira.topics.make_model(\n    *adata.shape,\n{arguments})\n"
        "model.fit(adata)\nmodel.predict(adata)\n"
    )


def read(text: str) -> Written:
    """Read what one of the others wrote, or something like it.

    Raises
    ------
    OptionError
        If it is none of them, or its options are wrong.
    """
    stripped = text.strip()
    if stripped.startswith("{"):
        written = _from_json(stripped)
    elif stripped.split(maxsplit=1)[:1] in (["mira"], ["$"]):
        written = _from_command(stripped.removeprefix("$"))
    else:
        written = _from_python(stripped)
    return Written(written.data, opt.validate_all(written.given))


def _from_json(text: str) -> Written:
    try:
        values = json.loads(text)
    except ValueError as problem:
        raise OptionError(f"this is no JSON: {problem}") from problem
    model = values.get("model", values)
    if not isinstance(model, dict):
        raise OptionError(f"model must be an object with options; got {type(model).__name__}")
    data = values.get("data") if "model" in values else None
    return Written(data if isinstance(data, str) else None, dict(model))


def _from_command(text: str) -> Written:
    from .cli import add_fit_arguments

    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as problem:
        raise OptionError(f"the command cannot be read: {problem}") from problem
    if words[:2] != ["mira", "fit"]:
        raise OptionError(f"the command must begin with mira fit; got {' '.join(words[:2])}")
    parser = _Parser(prog="mira fit", add_help=False)
    add_fit_arguments(parser)
    arguments = parser.parse_args(words[2:])
    return Written(arguments.data, {n: getattr(arguments, n) for n in opt.names() if hasattr(arguments, n)})


class _Parser(argparse.ArgumentParser):
    """Raises where others leave the program."""

    def error(self, message: str) -> Any:
        raise OptionError(f"the command cannot be read: {message}")


def _from_python(text: str) -> Written:
    try:
        tree = ast.parse(text)
    except SyntaxError as problem:
        raise OptionError(f"this is neither JSON, nor a mira fit command, nor Python: {problem}") from problem
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    made = [c for c in calls if _name(c.func) == "make_model"]
    if len(made) != 1:
        raise OptionError(f"the Python must hold one call of make_model; it holds {len(made)}")
    given = {k.arg: _literal(k.arg, k.value) for k in made[0].keywords if k.arg is not None}
    data = None
    for call in calls:
        if _name(call.func) in ("read_h5ad", "open_data", "load_demo") and call.args:
            where = _literal("the data", call.args[0])
            data = f"{DEMO}{where}" if _name(call.func) == "load_demo" else str(where)
    return Written(data, {n: v for n, v in given.items() if v is not None})


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literal(name: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise OptionError(f"{name} must be written out; got {ast.unparse(node)}") from None
