"""Tables that change while somebody looks at them."""

from __future__ import annotations

import pandas as pd
import panel as pn

from mira_app.widgets.live_table import LiveTable


def test_a_table_whose_page_has_been_left_takes_nothing_more():
    pn.extension("tabulator")
    table = LiveTable(every=0)

    def show(n: int) -> int:
        table.show(lambda: pd.DataFrame({"name": [f"run {i}" for i in range(n)]}))
        return len(table.table.value)

    assert show(2) == 2
    root = table.view.get_root()
    assert show(3) == 3  # by what has come
    pn.state._views.pop(root.ref["id"])  # as the end of a session does, while a change is on its way
    assert show(4) == 3
