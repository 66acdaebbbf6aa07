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
from .data import Recipe
from .data.demo import DEMO
from .errors import OptionError
from .files import parse_json

NO_PYTHON = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)  # of a text of any kind


class Written(NamedTuple):
    """Data (None if not told), options, and what else a job is told: held-out share and recipe, None if not."""

    data: str | None
    given: dict[str, Any]
    test_size: float | None = None
    recipe: Recipe | None = None


def to_json(
    data: str, given: Mapping[str, Any], *, test_size: float | None = None, recipe: Recipe | None = None
) -> str:
    """Write what a job's specification holds."""
    told: dict[str, Any] = {"data": data, "model": dict(given)}
    if test_size:
        told["test_size"] = test_size
    if recipe:
        told["recipe"] = recipe.to_dict()
    return json.dumps(told, indent=2)


def to_command(
    data: str,
    given: Mapping[str, Any],
    out: str = "run1",
    *,
    test_size: float | None = None,
    recipe: str | None = None,
) -> str:
    """Write the command that trains the model; `recipe` is the path of a file that holds it."""
    words = ["mira", "fit", data, "-o", out]
    if recipe:
        words += ["--recipe", recipe]
    if test_size:
        words += ["--test-size", str(test_size)]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + name.replace("_", "-"))
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def to_python(
    data: str | None, given: Mapping[str, Any], *, test_size: float | None = None, recipe: Recipe | None = None
) -> str:
    """Write the Python that trains the model; without `data` there is an ``adata`` already."""
    lines = ["import mira_core as mira", ""]
    if data is not None:
        demo = data.startswith(DEMO)
        opened = f"mira.data.load_demo({data.removeprefix(DEMO)!r})" if demo else f"mira.data.open_data({data!r})"
        lines.append(f"adata = {opened}")
    if recipe:
        steps = [f"    {step.to_dict()!r}," for step in recipe]
        lines += ["recipe = mira.data.Recipe([", *steps, "])", "adata = recipe.apply(adata)"]
    lines += ["model = mira.topics.make_model(", "    *adata.shape,"]
    lines += [f"    {n}={v!r}," for n, v in given.items()]
    lines.append(")")
    if test_size:
        seed = f", seed={given['seed']!r}" if given.get("seed") else ""
        lines += [f"train, test = model.train_test_split(adata, train_size={1 - test_size:.10g}{seed})"]
        lines += ["model.fit(train, test=test)"]
    else:
        lines += ["model.fit(adata)"]
    return "\n".join([*lines, "model.predict(adata)", ""])


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
    return written._replace(given=opt.validate_all(written.given))


def _from_json(text: str) -> Written:
    try:
        values = parse_json(text)
    except ValueError as problem:
        raise OptionError(f"this is no JSON: {problem}") from problem
    model = values.get("model", values)
    if not isinstance(model, dict):
        raise OptionError(f"model must be an object with options; got {type(model).__name__}")
    if "model" not in values:
        return Written(None, dict(model))
    data, recipe = values.get("data"), values.get("recipe")
    return Written(
        data if isinstance(data, str) else None,
        dict(model),
        _share(values.get("test_size")),
        None if recipe is None else Recipe.from_dict(recipe),
    )


def _share(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise OptionError(f"test_size must be a share between 0 and 1; got {value!r}")
    return float(value)


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
    given = {n: getattr(arguments, n) for n in opt.names() if hasattr(arguments, n)}
    if arguments.recipe is not None:
        raise OptionError(f"the command names a recipe, {arguments.recipe}; paste that file on the Data page")
    return Written(arguments.data, given, _share(arguments.test_size))


class _Parser(argparse.ArgumentParser):
    """Raises where others leave the program."""

    def error(self, message: str) -> Any:
        raise OptionError(f"the command cannot be read: {message}")


def _from_python(text: str) -> Written:
    try:
        tree = ast.parse(text)
    except NO_PYTHON as problem:
        told = str(problem) or "it is nested too deeply"
        raise OptionError(f"this is neither JSON, nor a mira fit command, nor Python: {told}") from None
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    made = [c for c in calls if _name(c.func) == "make_model"]
    if len(made) != 1:
        raise OptionError(f"the Python must hold one call of make_model; it holds {len(made)}")
    given = {k.arg: _literal(k.arg, k.value) for k in made[0].keywords if k.arg is not None}
    # None is a value only where it is not the default: no prior
    written = Written(None, {n: v for n, v in given.items() if v is not None or opt.default(n) is not None})
    for call in calls:
        name = _name(call.func)
        if name in ("read_h5ad", "open_data", "load_demo") and call.args:
            where = _literal("the data", call.args[0])
            written = written._replace(data=f"{DEMO}{where}" if name == "load_demo" else str(where))
        elif name == "Recipe" and call.args:
            written = written._replace(recipe=Recipe.from_dict(_literal("the recipe", call.args[0])))
        elif name == "train_test_split":
            share = next((_literal("train_size", k.value) for k in call.keywords if k.arg == "train_size"), 0.8)
            written = written._replace(test_size=_share(round(1 - share, 9) if isinstance(share, float) else share))
    return written


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literal(name: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except NO_PYTHON:
        raise OptionError(f"{name} must be written out, as numbers, texts and lists of them") from None
