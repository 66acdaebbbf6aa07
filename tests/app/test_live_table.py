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


def test_rows_come_go_and_change_while_page_order_and_selection_stay():
    pn.extension("tabulator")
    chosen: list[list[str]] = []
    table = LiveTable(every=0, on_select=chosen.append, pagination="remote", page_size=5, selectable=True)
    frame = pd.DataFrame({"name": [f"run {i}" for i in range(20)], "loss": [float(i % 7) for i in range(20)]})

    def show(which: pd.DataFrame) -> list[str]:
        """Return the names that a browser shows."""
        table.show(lambda: which.reset_index(drop=True))
        return shown()

    def shown() -> list[str]:
        return list(model.source.data["name"])

    table.show(lambda: frame.iloc[:3])
    root = table.view.get_root()
    (model,) = [m for m in root.references() if type(m).__name__ == "DataTabulator"]
    table.select(["run 1"])
    assert model.source.selected.indices == [1]
    assert show(frame.iloc[:12]) == [f"run {i}" for i in range(5)]
    assert model.max_page == 3
    table.table.page = 2
    assert shown() == [f"run {i}" for i in range(5, 10)]
    table.select(["run 6"])
    assert show(frame) == [f"run {i}" for i in range(5, 10)]  # the page stays
    assert (model.max_page, model.source.selected.indices) == (4, [1])
    assert show(frame.drop(0)) == [f"run {i}" for i in range(6, 11)]
    assert (table.selected, model.source.selected.indices) == (["run 6"], [0])
    other = frame.assign(loss=frame["loss"].where(frame["name"] != "run 7", 9.0)).drop(0)
    assert show(other) == [f"run {i}" for i in range(6, 11)]
    assert list(model.source.data["loss"]) == [6.0, 9.0, 1.0, 2.0, 3.0]
    table.table.sorters = [{"field": "loss", "dir": "desc"}]
    table.table.page = 1
    assert shown()[0] == "run 7"
    assert show(other.drop(6))[0] == "run 7"
    assert table.table.sorters == [{"field": "loss", "dir": "desc"}]
    assert show(other.iloc[:2]) == ["run 2", "run 1"]
    assert (table.table.page, model.max_page) == (1, 1)
    assert chosen == []  # nobody has selected anything
    assert show(other.iloc[:0]) == []
