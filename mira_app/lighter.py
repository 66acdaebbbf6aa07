"""Bokeh's and Panel's bookkeeping, a third of the time of making pages, without what is worked out anew each time.

A page has some hundred models, each with some fifty properties of which most are never set; whoever looks for what a
model refers to, or writes it, looks at all of them. Each change is written beside a list of all models that the browser
knows. And for each page the files are looked for that its parts need.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Set
from typing import Any

import bokeh.model.util as bokeh_models
from bokeh.core.has_props import HasProps
from bokeh.core.property.descriptors import PropertyDescriptor
from bokeh.core.serialization import Ref, Serializer
from bokeh.model import Model
from bokeh.settings import settings
from panel import state
from panel.io.resources import Resources

PLAIN = {bool, int, float, str, type(None)}  # what cannot be changed in place, and refers to nothing

_defaults: dict[type, dict[str, Any]] = {}  # class -> the plain ones among its defaults
_resources: dict[tuple[Any, ...], list[str]] = {}


def lighten() -> None:
    """Let this process do without it; a second call does nothing."""
    if PropertyDescriptor._get_default is _default:
        return
    # It checks the number of arguments of each callback, which are Panel's.
    settings.perform_error_diagnostics = False
    PropertyDescriptor._get_default = _default  # type: ignore[method-assign]
    bokeh_models.visit_immediate_value_references = _visit_references
    _patches.Serializer = _Serializer  # type: ignore[attr-defined]
    Resources.extra_resources = _extra_resources  # type: ignore[method-assign]


_work_out = PropertyDescriptor._get_default
_visit = bokeh_models.visit_value_and_its_immediate_references
_find_resources = Resources.extra_resources
_patches = importlib.import_module("bokeh.protocol.messages.patch_doc")  # a class has the module's name


def _default(self: PropertyDescriptor[Any], obj: Any) -> Any:
    """Return the default of a property; a plain one is the same for all models of a class that no theme changes."""
    themed = obj.__dict__.get("__themed_values__")
    if themed is not None and self.name in themed:
        return _work_out(self, obj)
    of_class = _defaults.setdefault(type(obj), {})
    if self.name in of_class:
        return of_class[self.name]
    value = _work_out(self, obj)
    if type(value) in PLAIN and not self.has_unstable_default(obj):
        of_class[self.name] = value
    return value


def _visit_references(value: Any, visitor: Callable[[Any], None]) -> None:
    """Visit the models that a value refers to itself; plain defaults and lists of plain values refer to none."""
    if not isinstance(value, HasProps):
        _visit(value, visitor)
        return
    own, of_class = value._property_values, _defaults.get(type(value), {})
    for name in value.properties_with_refs():
        if name in own:
            child = own[name]
        elif name in of_class:
            continue
        else:
            child = getattr(value, name)
        if type(child) not in PLAIN and not _all_plain(child):
            _visit(child, visitor)


def _all_plain(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= PLAIN


class _Serializer(Serializer):
    """Writes changes; which models the browser knows is asked of those that are written, and not listed before."""

    def __init__(self, *, references: Set[Model] = frozenset(), **kw: Any) -> None:
        super().__init__(**kw)
        self._known = references

    def has_ref(self, obj: Any) -> bool:
        """Tell whether something is known."""
        return super().has_ref(obj) or (isinstance(obj, Model) and obj in self._known)

    def get_ref(self, obj: Any) -> Ref | None:
        """Return how something known is named."""
        return obj.ref if isinstance(obj, Model) and obj in self._known else super().get_ref(obj)


def _extra_resources(self: Resources, found: list[str], kind: str) -> None:
    """Add the files of a kind that the classes of parts need; looked for again once there are other classes."""
    loaded = frozenset(state._extensions or ())
    where = (self.mode, self.absolute, self._root_url, state.rel_path)
    asked = (kind, loaded, *where, len(Model.model_class_reverse_map))
    if asked not in _resources:
        _resources[asked] = []
        _find_resources(self, _resources[asked], kind)
    found += [file for file in _resources[asked] if file not in found]
