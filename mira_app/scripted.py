"""What a browser does by itself when something on a part of a page changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bokeh.models import CustomJS


def script(part: Any, scripts: Mapping[str, str], **others: Any) -> None:
    """Let a part of Panel's that is not on a page yet bring scripts along.

    Panel's own way (``jscallback``) has, once it was used, all pages looked through for each part that is added to one.

    Parameters
    ----------
    part
        A widget, pane or layout.
    scripts
        Property, or "dom_event" for a click -> JavaScript, in which ``cb_obj`` has the properties.
    others
        Name in the scripts -> part whose properties it stands for; these come before `part` on the page.
    """
    make = part._get_model

    def make_with_scripts(doc: Any, root: Any = None, parent: Any = None, comm: Any = None) -> Any:
        model = make(doc, root, parent, comm)
        key = (root or model).ref["id"]
        told = {name: other._models[key][0] for name, other in others.items()}
        for name, code in scripts.items():
            callback = CustomJS(args=told, code=code)
            if name == "dom_event":
                model.js_on_event(name, callback)
            else:
                getattr(model, "data", model).js_on_change(name, callback)
        return model

    part._get_model = make_with_scripts
