"""One option on a form: a widget, a hint, a message.

A field left empty is not given to the model, which then recommends a value; the hint says which, and why.
"""

from __future__ import annotations

import functools
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
    """One option: a widget, a hint, a message. They are made when they are first asked for, as most are never shown.

    Parameters
    ----------
    name
        The option.
    changed
        Called when the user changes it.
    choices
        For options that name something of the data: label -> value.

    Attributes
    ----------
    visible
        Whether it is shown.
    """

    def __init__(self, name: str, changed: Callable[[], None], choices: dict[str, Any] | None = None) -> None:
        self.name = name
        self.declared = options.parameter(name)
        self.choices = choices
        self._changed = changed
        self._quiet = False
        self._visible = True
        self._source: ResolvedOption | None = None
        self._problem = ""
        self._several = isinstance(self.declared, options.ColumnNames)
        chosen = self._several or choices is not None or isinstance(self.declared, param.Selector | param.Boolean)
        self._is_text = not chosen
        # What the widget has, or will have.
        self._raw: Any = (
            [] if self._several else next(iter(choices.values())) if choices is not None
            else EMPTY if self._is_text else self.declared.default
        )  # fmt: skip

    @functools.cached_property
    def widget(self) -> Any:
        """What the user chooses or types in."""
        shared = {
            "label": self.name, "value": self._raw, "description": self.declared.doc or "",
            "error_state": bool(self._problem), "sizing_mode": "stretch_width", "margin": (8, 10, 0, 10),
        }  # fmt: skip
        if self._several:
            widget = pmui.MultiChoice(options=list(self._choices()), stylesheets=[SEVERAL], **shared)
        elif self._is_text:
            widget = pmui.TextInput(placeholder=self._unset(), size="small", stylesheets=[FIELD], **shared)
        else:
            widget = pmui.Select(size="small", options=self._choices(), **shared)
        widget.param.watch(self._on_change, "value")
        return widget

    def _choices(self) -> Any:
        """Return what there is to choose, and what was given without being among it: it can be seen and taken out."""
        if self._several or self.choices is not None:
            choices = self.choices or {}
            given = [x for x in (self._raw if self._several else [self._raw]) if x not in (EMPTY, None)]
            return choices | {str(x): x for x in given if x not in choices.values()}
        if isinstance(self.declared, param.Boolean):
            return {"yes": True, "no": False}
        return list(self.declared.objects)

    @functools.cached_property
    def hint(self) -> Any:
        """Where the value comes from, or what is wrong with it."""
        return parts.markup("hint", self._said(), margin=(0, 10, 4, 12))

    @functools.cached_property
    def view(self) -> Any:
        """What is shown."""
        return pn.Column(
            self.widget, self.hint, visible=self._visible, sizing_mode="stretch_width",
            css_classes=["mira-field", f"option-{self.name}"], margin=0,
        )  # fmt: skip

    @property
    def visible(self) -> bool:
        """Whether it is shown."""
        return self._visible

    @visible.setter
    def visible(self, visible: bool) -> None:
        self._visible = visible
        if "view" in self.__dict__:
            self.view.visible = visible

    def _on_change(self, event: Any) -> None:
        if not self._quiet:
            self._raw = event.new
            self._changed()

    def value(self) -> Any:
        """Return what the user wants, or `NOT_GIVEN` for nothing of their own.

        Raises
        ------
        OptionError
            If the text is no value of this option, or names what the data do not have.
        """
        raw = self._raw
        if self._is_text:
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
        if self._several:
            return list(raw) or NOT_GIVEN
        return NOT_GIVEN if raw in (EMPTY, self.declared.default) else raw

    def set(self, value: Any) -> None:
        """Show a value, or `NOT_GIVEN`, without telling anybody."""
        if value is None and self.declared.default is None:
            value = NOT_GIVEN
        given = value is not NOT_GIVEN
        if self._is_text:
            self._raw = EMPTY if not given else NONE if value is None else str(value)
        elif self._several:
            self._raw = [] if not given else [value] if isinstance(value, str) else list(value)
        else:
            unset = EMPTY if self.choices is not None else self.declared.default
            self._raw = value if given else unset
        if "widget" in self.__dict__:
            self._quiet = True
            try:
                if not self._is_text:
                    offered = self._choices()
                    self.widget.options = list(offered) if self._several else offered
                self.widget.value = self._raw
            finally:
                self._quiet = False

    def matches(self, words: str) -> bool:
        """Tell whether the option's name, help or group has all of some words."""
        name, group = self.name, self.declared.metadata["group"]
        text = f"{name} {name.replace('_', ' ')} {group} {self.declared.doc}".lower()
        return all(word in text for word in words.lower().split())

    def explain(self, option: ResolvedOption | None, problem: str) -> None:
        """Show where the value comes from, or what is wrong with it."""
        self._source, self._problem = option, problem
        if "widget" in self.__dict__:
            self.widget.error_state = bool(problem)
            if self._is_text:
                self.widget.placeholder = self._unset()
        if "hint" in self.__dict__:
            self.hint.object = self._said()

    def _unset(self) -> str:
        """Return what an empty field would be."""
        option = self._source
        if option is None:
            return ""
        return _show(option.recommended if option.recommended is not None else option.documented)

    def _said(self) -> str:
        option = self._source
        if self._problem:
            return f'<span class="problem">{_escape(self._problem)}</span>'
        if option is None:
            return ""
        documented = _show(option.documented)
        if self.choices is not None and not self._several:
            documented = next((label for label, value in self.choices.items() if value == EMPTY), documented)
        elif isinstance(option.documented, bool):
            documented = "yes" if option.documented else "no"
        said = [f"default {_escape(documented)}"]
        if option.recommended not in (None, option.documented):
            said.insert(0, f"recommended {_show(option.recommended)}")
        if option.source == "yours":
            said.insert(0, "<b>yours</b>")
        reason = f' title="{_escape(option.reason)}"' if option.reason else ""
        return f"<span{reason}>{' · '.join(said)}</span>"


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
