"""Bokeh's, Panel's and param's bookkeeping, half the time of making pages, without what is worked out anew each time.

A page has some hundred models, each with some fifty properties of which most are never set; whoever looks for what a
model refers to, or writes it, looks at all of them. Each change is written, or read, beside a list of all models that
the browser knows. For each page the files are looked for that its parts need. And each part gets a copy of its own of
most of its parameters, some two thousand on a page.
"""

from __future__ import annotations

import copy
import functools
import importlib
import threading
from collections.abc import Callable, MutableMapping, MutableSequence, MutableSet, Sequence, Set
from types import MemberDescriptorType
from typing import Any

import bokeh.model.util as bokeh_models
from bokeh.core.has_props import HasProps, MetaHasProps, is_DataModel
from bokeh.core.property.descriptors import PropertyDescriptor, UnsetValueError
from bokeh.core.property.singletons import Undefined
from bokeh.core.property.wrappers import PropertyValueContainer
from bokeh.core.serialization import Deserializer, Ref, Serializer
from bokeh.core.types import ID
from bokeh.document import Document
from bokeh.model import Model
from bokeh.settings import settings
from panel import state
from panel.io.resources import Resources
from param import parameterized
from param.parameterized import Parameter

PLAIN = {bool, int, float, str, type(None)}  # what cannot be changed in place, and refers to nothing
KEPT = 64  # answers, of which each asker can make a new one
CONTAINERS = (MutableSequence, MutableSet, MutableMapping)

_defaults: dict[type, dict[str, Any]] = {}  # class -> the plain ones among its defaults
_empty: dict[type, set[str]] = {}  # class -> properties whose default is an empty container
_set: dict[type, set[str]] = {}  # class -> properties that have a default
_unstable: dict[type, dict[str, bool]] = {}  # class -> whether each model needs a default of its own
_definitions: dict[type, Any] = {}  # class -> what is written of it
_resources: dict[tuple[Any, ...], list[str]] = {}

_work_out = PropertyDescriptor._get_default
_ask_whether_unstable = PropertyDescriptor.has_unstable_default
_visit = bokeh_models.visit_value_and_its_immediate_references
_find_resources = Resources.extra_resources
_query_all = HasProps.query_properties_with_values
_define_anew = Serializer._encoders[MetaHasProps]
_copy_parameter = parameterized._instantiate_param_obj
_take_changes = Document.apply_json_patch
_documents = importlib.import_module("bokeh.document.document")
_patches = importlib.import_module("bokeh.protocol.messages.patch_doc")  # a class has the module's name


def _default(self: PropertyDescriptor[Any], obj: Any) -> Any:
    """Return the default of a property; a plain one is the same for all models of a class that no theme changes."""
    themed = obj.__dict__.get("__themed_values__")
    if themed is not None and self.name in themed:
        return _work_out(self, obj)
    of_class = _defaults.setdefault(type(obj), {})
    if self.name in of_class:
        return of_class[self.name]
    if self.name in obj._unstable_default_values:
        return obj._unstable_default_values[self.name]
    value = _work_out(self, obj)
    if type(value) in PLAIN and not self.has_unstable_default(obj):
        of_class[self.name] = value
    elif isinstance(value, PropertyValueContainer) and not value:
        _empty.setdefault(type(obj), set()).add(self.name)
    return value


def _has_unstable_default(self: PropertyDescriptor[Any], obj: Any) -> bool:
    """Tell whether a model needs a default of its own; an empty container not before somebody asks for it."""
    of_class = _unstable.setdefault(type(obj), {})
    if self.name not in of_class:
        of_class[self.name] = _ask_whether_unstable(self, obj)
    return of_class[self.name] and (obj._initialized or self.name not in _empty.get(type(obj), ()))


def _visit_references(value: Any, visitor: Callable[[Any], None]) -> None:
    """Visit the models that a value refers to itself; what is plain or was never asked for refers to none."""
    if not isinstance(value, HasProps):
        _visit(value, visitor)
        return
    own, made, themed = value._property_values, value._unstable_default_values, value.themed_values() or {}
    of_class, empty = _defaults.get(type(value), {}), _empty.get(type(value), ())
    for name in value.properties_with_refs():
        if name in own:
            child = own[name]
        elif name not in themed and (name in of_class or (name in empty and name not in made)):
            continue
        else:
            child = getattr(value, name)
        if type(child) not in PLAIN and not _all_plain(child):
            _visit(child, visitor)


def _all_plain(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= PLAIN


def _query(
    self: HasProps,
    query: Callable[[PropertyDescriptor[Any]], bool],
    *,
    include_defaults: bool = True,
    include_undefined: bool = False,
) -> dict[str, Any]:
    """Return properties with their values; where defaults are not wanted, they are not made to be left out."""
    if include_defaults or self.themed_values() is not None:
        return _query_all(self, query, include_defaults=include_defaults, include_undefined=include_undefined)
    own, made, known = self._property_values, self._unstable_default_values, _set.setdefault(type(self), set())
    made_before = set(made)
    found = {}
    for name in self.properties(_with_props=True):  # in their order
        unset = name not in own and name not in made_before
        if unset and name in known:
            continue
        descriptor = self.lookup(name)
        if not query(descriptor):
            continue
        try:
            value = descriptor.get_value(self)
        except UnsetValueError:
            if include_undefined:
                found[name] = Undefined
                continue
            raise
        if unset:
            known.add(name)
        elif not (name in made and isinstance(value, PropertyValueContainer)):
            found[name] = value
    return found


def _parameter_of_one(parameter: Parameter[Any], owner: Any = None) -> Parameter[Any]:
    """Return a copy of a class's parameter for one object of it: slot by slot, where param asks for much at each."""
    of_class = _slots(type(parameter))
    if of_class is None or parameter.name is None:
        return _copy_parameter(parameter, owner)
    of_one = type(parameter).__new__(type(parameter))
    for name, slot in of_class.items():
        value = slot.__get__(parameter)
        if type(value) not in PLAIN and name != "default" and isinstance(value, CONTAINERS):
            value = copy.copy(value)
        slot.__set__(of_one, value)
    of_class["owner"].__set__(of_one, owner)
    of_class["watchers"].__set__(of_one, {})
    return of_one


@functools.cache
def _slots(of: type[Parameter[Any]]) -> dict[str, Any] | None:
    """Return the slots of a class of parameters by name, if these are all that its objects have."""
    slots = {name: getattr(of, name) for name in of._all_slots_}
    plain = all(isinstance(slot, MemberDescriptorType) for slot in slots.values())
    return slots if plain and of.__copy__ is Parameter.__copy__ else None


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


def _define(cls: type[HasProps], serializer: Serializer) -> Any:
    """Write a class down. Those of parts, some hundred that each page brings along, are kept if they name no model."""
    if cls in _definitions:
        serializer.add_ref(cls, Ref(id=ID(cls.__qualified_model__)))
        return _definitions[cls]
    known = len(serializer._references)
    definition = _define_anew(cls, serializer)
    if is_DataModel(cls) and "extends" not in definition and len(serializer._references) == known + 1:
        _definitions[cls] = definition
    return definition


class _Deserializer(Deserializer):
    """Reads changes; the document has its models by their ids already."""

    reading = threading.local()  # models: of the document whose changes this thread reads

    def __init__(self, references: Sequence[Model] | None = None, *, setter: Any = None) -> None:
        super().__init__(setter=setter)
        self._references = dict(getattr(self.reading, "models", {})) if references else {}


def _take(self: Document, patch_json: Any, *, setter: Any = None) -> None:
    """Take changes from a browser."""
    _Deserializer.reading.models = self.models._models
    try:
        _take_changes(self, patch_json, setter=setter)
    finally:
        _Deserializer.reading.models = {}


def _extra_resources(self: Resources, found: list[str], kind: str) -> None:
    """Add the files of a kind that the classes of parts need; looked for again once there are other classes.

    Where they are is of the asker's choosing, so that few answers are kept.
    """
    loaded = frozenset(state._extensions or ())
    where = (self.mode, self.absolute, self._root_url, state.rel_path)
    asked = (kind, loaded, *where, len(Model.model_class_reverse_map))
    files = _resources.get(asked)
    if files is None:
        _find_resources(self, files := [], kind)
        if len(_resources) >= KEPT:
            _resources.clear()
        _resources[asked] = files
    found += [file for file in files if file not in found]


LIGHTER: list[tuple[Any, str, Any]] = [  # where, name, what stands there instead
    (PropertyDescriptor, "_get_default", _default),
    (PropertyDescriptor, "has_unstable_default", _has_unstable_default),
    (HasProps, "query_properties_with_values", _query),
    (bokeh_models, "visit_immediate_value_references", _visit_references),
    (_patches, "Serializer", _Serializer),
    (_documents, "Deserializer", _Deserializer),
    (Document, "apply_json_patch", _take),
    (Resources, "extra_resources", _extra_resources),
    (parameterized, "_instantiate_param_obj", _parameter_of_one),
]


def lighten() -> None:
    """Let this process do without it; a second call does nothing."""
    # It checks the number of arguments of each callback, which are Panel's, and each page for mistakes of programmers.
    settings.perform_error_diagnostics = settings.perform_document_validation = False
    for where, name, instead in LIGHTER:
        setattr(where, name, instead)
    Serializer._encoders[MetaHasProps] = _define
