"""Every option that is declared is found on the form, entered as a user would, and is the trained model's.

What is entered is made from `mira_core.options`: an option that is added there is tried here, or fails here.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
import param
import pytest

import mira_core as mira
from mira_core import jobs, options
from mira_core.data.describe import Description, describe
from mira_core.recommend import recommend_parameters

from .conftest import ARTEFACTS, MIRA, Server, shot, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Where two options must agree, or where a small training needs it; all else is found by itself.
AGREE = {"exogenous_key": "highly_variable_key"}
SMALL = {"num_epochs": 2}
# How the columns of the data are shared out, as no covariate may be named twice.
COLUMNS = {
    "categorical_covariates": ["batch", "donor"],
    "continuous_covariates": ["quality", "depth"],
    "covariates_keys": ["age"],
    "extra_features_keys": ["phase", "doublet"],
}
NAMES = {"highly_variable_key": "variable", "endogenous_key": "telling", "counts_layer": "counts"}


class Entered(NamedTuple):
    """One row of the table."""

    option: str
    group: str
    found: str
    value: Any
    in_model: Any


def cells():
    """Small counts in a layer, and columns of every kind that an option may name."""
    adata = mira.data.simulate_expression(160, 60, 4, n_batches=2, seed=3)
    rng = np.random.default_rng(4)
    n = adata.n_obs
    adata.layers["counts"] = adata.X.copy()
    adata.obs["donor"] = np.where(rng.random(n) < 0.5, "Ann", "Bob")  # text
    adata.obs["quality"] = rng.normal(3, 2, n)
    adata.obs["depth"] = np.asarray(adata.layers["counts"].sum(1)).ravel().astype(float)
    adata.obs["age"] = rng.integers(0, 5, n)
    adata.obs["phase"] = rng.random(n)
    adata.obs["doublet"] = rng.random(n) < 0.2
    adata.var["variable"] = np.arange(60) % 6 > 0
    adata.var["telling"] = (np.arange(60) % 6 > 2).astype(int)  # 0 and 1, as other programs write them
    return adata


def value_of(name: str, used: dict[str, Any], described: Description) -> Any:
    """Choose a value that is neither the default nor what is recommended, and goes with the others."""
    declared = options.parameter(name)
    if name in AGREE:
        return value_of(AGREE[name], used, described)
    if name in SMALL:
        return SMALL[name]
    if isinstance(declared, options.ColumnNames):
        return COLUMNS[name]
    if isinstance(declared, param.Boolean):
        return not declared.default
    if isinstance(declared, param.Selector):
        return next(o for o in declared.objects if o != declared.default)
    if isinstance(declared, param.String):
        return NAMES[name]
    recommended = recommend_parameters(described.n_cells, described.n_features, **used)
    taken = {declared.default, recommended[name].value if name in recommended else None}
    low, high = declared.bounds
    start = declared.default if declared.default is not None else 17
    steps = (1.02, 0.98, 1.03, 1.5, 2, 0.5)  # near the default, so that small data train well
    near = [start * f for f in steps]
    if isinstance(declared, param.Integer):
        near = [start + d for d in (1, 2, 3, -1)]
    for value in near:
        inside = (low is None or value > low) and (high is None or value < high)
        if inside and value not in taken:
            return value if isinstance(declared, param.Integer) else float(f"{value:.12g}")
    raise AssertionError(f"no value was found for {name}")


def plans(described: Description) -> list[dict[str, Any]]:
    """Group all options into as few models as hold them: every choice of a selector, with as many options as apply.

    Selectors decide what applies; a model takes each option that applies to it and was in no model before.
    """
    selectors = [n for n in options.names() if isinstance(options.parameter(n), param.Selector)
                 and not isinstance(options.parameter(n), param.Boolean)]  # fmt: skip
    kinds: list[dict[str, Any]] = [{}]
    for name in selectors:
        # one after the other as far as they apply
        kinds = [
            {**kind, **({name: choice} if options.applies(name, kind) else {})}
            for kind in kinds
            for choice in (options.parameter(name).objects if options.applies(name, kind) else [None])
        ]

    def filled(kind: dict[str, Any]) -> dict[str, Any]:
        given = dict(kind)
        for name in [*options.COVARIATE_OPTIONS, *options.names()]:
            if name not in given and options.applies(name, given):
                given[name] = value_of(name, given, described)
        if given["feature_type"] == "accessibility" and given["atac_encoder"] == "skipDAN":
            given["embedding_size"] = given["hidden"]
        return options.validate_all(given)

    full = [filled(kind) for kind in kinds]
    wanted = {(n, json.dumps(o)) for n in selectors for o in options.parameter(n).objects}
    wanted |= {(n, "any") for n in options.names()}

    def covers(given: dict[str, Any]) -> set[tuple[str, str]]:
        return {(n, json.dumps(v)) for n, v in given.items() if n in selectors} | {(n, "any") for n in given}

    chosen: list[dict[str, Any]] = []
    while wanted:
        best = max(full, key=lambda g: len(covers(g) & wanted))
        new = covers(best) & wanted
        assert new, f"no model has {wanted}"
        wanted -= new
        needed = {*selectors, *SMALL, "dan_on_cpu", *(n for n, _ in new)}
        chosen.append(options.validate_all({n: v for n, v in best.items() if n in needed}))
    return chosen


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with a folder that holds the cells."""
    root = tmp_path_factory.mktemp("options")
    (root / "lab").mkdir()
    cells().write_h5ad(root / "lab" / "cells.h5ad")

    def command(port: int) -> list[str]:
        return [*MIRA, "serve", "--data", str(root / "lab"), "--workspace", str(root / "workspace"),
                "--port", str(port)]  # fmt: skip

    server = Server(root / "workspace", command, {})
    yield server
    server.stop()


def open_model(page, lab) -> None:
    page.goto(lab.url("?page=data"))
    page.get_by_text("lab", exact=True).click()
    page.get_by_text("cells.h5ad").first.click()
    page.get_by_text("What to know before a model is made").wait_for(timeout=180_000)
    page.get_by_role("tab", name="Model").click()
    page.get_by_text("The same in Python").wait_for()


def look_for(page, name: str):
    """Find an option by its name in the search field."""
    search = page.get_by_label("Find an option")
    search.fill(name)
    search.press("Enter")
    field = page.locator(f".option-{name}")
    field.wait_for()
    at = [None]

    def rests() -> bool:  # the others have gone
        at.append(field.bounding_box())
        return at[-1] == at[-2]

    wait_until(rests, 10, f"{name} stands still")
    return field


def shown(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def type_in(field, text: str) -> None:
    box = field.get_by_role("textbox")
    box.fill(text)
    box.press("Tab")


def enter(page, name: str, value: Any) -> str:
    """Enter a value as its field wants it; say how."""
    field = look_for(page, name)
    declared = options.parameter(name)
    if isinstance(declared, options.ColumnNames):
        field.get_by_role("combobox").click()
        for column in value:
            page.get_by_role("listbox").get_by_text(column, exact=True).click()
            field.get_by_text(column, exact=True).wait_for()
        page.mouse.click(700, 890)  # beside the list, which closes it
        page.get_by_role("listbox").wait_for(state="hidden")
        return "search, choice of several"
    if field.get_by_role("combobox").count():
        field.get_by_role("combobox").click()
        page.get_by_role("menuitem", name=shown(value), exact=True).click()
        return "search, choice of one"
    type_in(field, repr(value))
    return "search, typed"


def says(page, name: str, pattern: str) -> None:
    """Wait for what the line below a field says."""
    page.locator(f".option-{name} .mira-hint").get_by_text(re.compile(pattern)).first.wait_for()


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def write_table(rows: list[Entered]) -> None:
    lines = ["| option | group | how it is found and entered | entered | in the trained model |", "|" + " --- |" * 5]
    lines += [f"| {r.option} | {r.group} | {r.found} | `{r.value!r}` | `{r.in_model!r}` |" for r in rows]
    ARTEFACTS.mkdir(exist_ok=True)
    (ARTEFACTS / "options.md").write_text("\n".join([*lines, ""]))
    print(*lines, sep="\n")


def test_every_option_is_entered_and_is_the_trained_models(page, lab):
    described = describe(cells())
    rows: dict[tuple[str, str], Entered] = {}
    wrong = []
    for i, given in enumerate(plans(described)):
        open_model(page, lab)
        # those that make others appear come first, in the order of declaration
        first = [n for n in given if n in options.COVARIATE_OPTIONS]
        first += ["feature_type", *(["dan_on_cpu"] if "dan_on_cpu" in given else [])]  # before an encoder asks for it
        first += [n for n in given if isinstance(options.parameter(n), param.Selector)]
        last = [n for n in given if n == "min_learning_rate"]
        ways = {}
        for name in dict.fromkeys([*first, *(n for n in given if n not in last), *last]):
            if given[name] == options.default(name):  # of a selector: it is chosen already
                ways[name] = "chosen already"
                continue
            ways[name] = enter(page, name, given[name])
            says(page, name, "yours")
        page.get_by_label("Find an option").fill("")
        page.get_by_label("Find an option").press("Enter")
        shot(page, f"options-{i}")
        before = set((lab.workspace / "jobs").glob("*"))
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_role("heading", name="Train").wait_for()
        wait_until(lambda b=before: set((lab.workspace / "jobs").glob("*")) - b, 20, "the run has a folder")
        (folder,) = set((lab.workspace / "jobs").glob("*")) - before
        wait_until(lambda f=folder: jobs.read_status(f).ended is not None, 60, "its end")
        assert jobs.read_status(folder).state == "finished", jobs.read_status(folder)
        params = mira.topics.load_model(folder / "result" / "model.safetensors").get_params()
        asked = json.loads((folder / "job.json").read_text())["model"]
        for name, value in given.items():
            default = value == options.default(name) and name != "feature_type"
            if not same(params[name], value) or (not default and not same(asked.get(name), value)):
                wrong.append((name, value, params[name], asked.get(name)))
            row = Entered(name, options.parameter(name).metadata["group"], ways[name], value, params[name])
            key = (name, json.dumps(value) if isinstance(options.parameter(name), param.Selector) else "")
            rows.setdefault(key, row)
    order = options.names()
    table = sorted(rows.values(), key=lambda r: order.index(r.option))
    write_table(table)
    assert not wrong
    # every option was given something else than its default, at least once
    assert {r.option for r in table if r.value != options.default(r.option)} == set(order)


def wrong_texts(name: str) -> list[str]:
    """Texts that an option with bounds must refuse: beyond each end, the ends that are excluded, and no number."""
    declared = options.parameter(name)
    low, high = declared.bounds
    low_in, high_in = declared.inclusive_bounds
    whole = isinstance(declared, param.Integer)
    texts = ["many"]
    if low is not None:
        texts.append(repr(low - 1 if low_in else low))
    if high is not None:
        texts.append(repr(high + 1 if high_in else high))
    if whole:
        texts.append(repr((low or 0) + 2.5))
    if not declared.allow_None:
        texts.append("none")
    return texts


def test_every_number_says_what_is_wrong_beside_it_and_goes_back_when_emptied(page, lab):
    """And every option has its default, and its recommendation where there is one."""
    described = describe(cells())
    open_model(page, lab)
    train = page.get_by_role("button", name="Train", exact=True)
    left = set(options.names())
    for kind in ({}, {"feature_type": "accessibility", "dan_on_cpu": True, "atac_encoder": "DAN"}):
        given = {"feature_type": "expression", **kind, "categorical_covariates": ["batch"]}
        if kind:
            open_model(page, lab)
        for name, value in given.items():
            if value != options.default(name):
                enter(page, name, value)
                says(page, name, "yours")
        page.get_by_label("Find an option").fill("")
        page.get_by_label("Find an option").press("Enter")
        page.get_by_label("All options").click()
        recommended = recommend_parameters(described.n_cells, described.n_features, **given)
        for name in [n for n in options.names() if n in left and options.applies(n, given)]:
            left.discard(name)
            declared = options.parameter(name)
            field = page.locator(f".option-{name}")
            says(page, name, "default ")
            if name in recommended and recommended[name].value != declared.default:
                says(page, name, "recommended ")
            if not isinstance(declared, param.Number) or isinstance(declared, param.Boolean):
                continue
            for text in wrong_texts(name):
                type_in(field, text)
                says(page, name, f"{name} must be .*got '?{re.escape(text)}")
                wait_until(train.is_disabled, 10, f"{name}={text} cannot be trained")
            type_in(field, "")
            wait_until(lambda: not train.is_disabled(), 10, f"an emptied {name} is not given")
            says(page, name, "default ")
            assert not field.get_by_text("yours").count(), name
            assert not page.get_by_text(f"{name}=").count(), name  # in the Python
            if declared.allow_None and declared.default is not None:
                type_in(field, "none")
                page.get_by_text(f"{name}=None").wait_for()
                says(page, name, "yours")
                assert not train.is_disabled()
                type_in(field, "")
                wait_until(lambda n=name: not page.get_by_text(f"{n}=None").count(), 10, "it is empty again")
    assert not left
