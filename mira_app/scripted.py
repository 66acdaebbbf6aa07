"""What a browser does by itself when something on a part of a page changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bokeh.models import CustomJS


class Scripted:
    """A part of Panel's that brings scripts along.

    Panel's own way (``jscallback``) has, once it was used, all pages looked through for each part that is added to one.

    Attributes
    ----------
    scripts
        Property, or "dom_event" for a click -> JavaScript, in which ``cb_obj`` has the properties.
    others
        Name in the scripts -> part whose properties it stands for; it stands before this one on the page.
    """

    scripts: Mapping[str, str] = {}
    others: Mapping[str, Any] = {}

    def _get_model(self, doc: Any, root: Any = None, parent: Any = None, comm: Any = None) -> Any:
        model = super()._get_model(doc, root, parent, comm)  # type: ignore[misc]
        key = (root or model).ref["id"]
        others = {name: part._models[key][0] for name, part in self.others.items()}
        for name, code in self.scripts.items():
            script = CustomJS(args=others, code=code)
            if name == "dom_event":
                model.js_on_event(name, script)
            else:
                getattr(model, "data", model).js_on_change(name, script)
        return model
