"""One option on a form: a widget, a hint, a message.

A field left empty is not given to the model, which then recommends a value; the hint says which, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from mira_core import options
from mira_core.errors import OptionError
from mira_core.recommend import ResolvedOption

from .pages import parts
from .styles import FIELD, SEVERAL

EMPTY = ""
NOT_GIVEN: Any = object()  # None is a value of some options: no prior
NONE = "none"


class Field:
    """One option: a widget, a hint, a message.

    Parameters
    ----------
    name
        The option.
    changed
        Called when the user changes it.
    choices
        For options that name something of the data: label -> value.
    """

    def __init__(self, name: str, changed: Callable[[], None], choices: dict[str, Any] | None = None) -> None:
        self.name = name
        self.declared = options.parameter(name)
        self.choices = choices
        self._quiet = False
        self._changed = changed
        self.widget = self._widget()
        self.widget.param.watch(self._on_change, "value")
        self.hint = parts.markup("hint", margin=(0, 10, 4, 12))
        self.view = pn.Column(
            self.widget,
            self.hint,
            sizing_mode="stretch_width",
            css_classes=["mira-field", f"option-{name}"],
            margin=0,
        )

    def _widget(self) -> Any:
        label = self.name
        shared = {"label": label, "sizing_mode": "stretch_width", "size": "small", "margin": (8, 10, 0, 10)}
        help_text = self.declared.doc or ""
        if isinstance(self.declared, options.ColumnNames):
            shared.pop("size")
            return pmui.MultiChoice(
                options=list(self.choices or {}),
                value=[],
                description=help_text,
                stylesheets=[SEVERAL],
                **shared,
            )
        if self.choices is not None:
            return pmui.Select(
                options=self.choices, value=next(iter(self.choices.values())), description=help_text, **shared
            )
        if isinstance(self.declared, param.Selector):
            return pmui.Select(
                options=list(self.declared.objects),
                value=self.declared.default,
                description=help_text,
                **shared,
            )
        if isinstance(self.declared, param.Boolean):
            return pmui.Select(
                options={"yes": True, "no": False},
                value=self.declared.default,
                description=help_text,
                **shared,
            )
        return pmui.TextInput(value=EMPTY, description=help_text, stylesheets=[FIELD], **shared)

    def _on_change(self, _: Any) -> None:
        if not self._quiet:
            self._changed()

    def value(self) -> Any:
        """Return what the user wants, or `NOT_GIVEN` for nothing of their own.

        Raises
        ------
        OptionError
            If the text is no value of this option, or names what the data do not have.
        """
        raw = self.widget.value
        if isinstance(self.widget, pmui.TextInput):
            text = (raw or "").strip()
            if text == EMPTY:
                return NOT_GIVEN
            value = options.validate(self.name, _number(text, self.declared))
            return NOT_GIVEN if value is None and self.declared.default is None else value
        if self.choices is not None and (raw not in (EMPTY, None)):
            known = self.choices.values()
            if unknown := [x for x in ([raw] if isinstance(raw, str) else raw) if x not in known]:
                able = [str(x) for x in known if x != EMPTY]
                raise OptionError(
                    f"{self.name} names {unknown[0]!r}, which these data cannot give it; "
                    + (f"choose of {', '.join(able[:10])}" if able else "they have nothing to choose")
                )
        if isinstance(self.declared, options.ColumnNames):
            return list(raw) or NOT_GIVEN
        return NOT_GIVEN if raw in (EMPTY, self.declared.default) else raw

    def set(self, value: Any) -> None:
        """Show a value, or `NOT_GIVEN`, without telling anybody."""
        if value is None and self.declared.default is None:
            value = NOT_GIVEN
        self._quiet = True
        try:
            if isinstance(self.widget, pmui.TextInput):
                self.widget.value = EMPTY if value is NOT_GIVEN else NONE if value is None else str(value)
            elif isinstance(self.declared, options.ColumnNames):
                self.widget.value = [] if value is NOT_GIVEN else [value] if isinstance(value, str) else list(value)
            else:
                unset = EMPTY if self.choices is not None else self.declared.default
                self.widget.value = unset if value is NOT_GIVEN else value
        finally:
            self._quiet = False

    def matches(self, words: str) -> bool:
        """Tell whether the option's name, help or group has all of some words."""
        name, group = self.name, self.declared.metadata["group"]
        text = f"{name} {name.replace('_', ' ')} {group} {self.declared.doc}".lower()
        return all(word in text for word in words.lower().split())

    def explain(self, option: ResolvedOption | None, problem: str) -> None:
        """Show where the value comes from, or what is wrong with it."""
        self.widget.error_state = bool(problem)
        if problem:
            self.hint.object = f'<span class="problem">{_escape(problem)}</span>'
            return
        if option is None:
            self.hint.object = ""
            return
        if isinstance(self.widget, pmui.TextInput):
            unset = option.recommended if option.recommended is not None else option.documented
            self.widget.placeholder = f"{_show(unset)}"
        documented = _show(option.documented)
        if self.choices is not None and not isinstance(self.declared, options.ColumnNames):
            documented = next((label for label, value in self.choices.items() if value == EMPTY), documented)
        elif isinstance(option.documented, bool):
            documented = "yes" if option.documented else "no"
        said = [f"default {_escape(documented)}"]
        if option.recommended not in (None, option.documented):
            said.insert(0, f"recommended {_show(option.recommended)}")
        if option.source == "yours":
            said.insert(0, "<b>yours</b>")
        reason = f' title="{_escape(option.reason)}"' if option.reason else ""
        self.hint.object = f"<span{reason}>{' · '.join(said)}</span>"


def _number(text: str, declared: param.Parameter) -> Any:
    if declared.allow_None and text.lower() == NONE:
        return None
    try:
        value = float(text)
        whole = isinstance(declared, param.Integer) and value.is_integer()
        return int(text) if text.lstrip("+-").isdigit() else int(value) if whole else value
    except ValueError:  # no number, or one of thousands of digits
        return text


def _show(value: Any) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
