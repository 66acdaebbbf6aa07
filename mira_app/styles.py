"""Looks of what is written as HTML. Each piece carries its own few lines, since every one has a shadow root.

The colours are variables that the page's theme sets, so light and dark need no rules of their own.
"""

from __future__ import annotations

MUTED = "color-mix(in srgb, var(--panel-on-background-color, #222) 62%, transparent)"
LINE = "color-mix(in srgb, var(--panel-on-background-color, #222) 16%, transparent)"
INK = "var(--panel-on-background-color, #222)"

_BASE = f":host {{ color: {INK}; font-size: 13px; line-height: 1.45; }}"

HTML = {
    "title": _BASE + f"""
        h1 {{ font-size: 20px; font-weight: 500; margin: 6px 0 0; }}
        p {{ color: {MUTED}; margin: 0 0 6px; }}""",
    "note": _BASE + f"""
        :host {{ color: {MUTED}; overflow-wrap: anywhere; }} code {{ font-size: 12px; }}
        a {{ color: var(--panel-primary-color); }}""",
    "hint": f""":host {{ color: {MUTED}; font-size: 11.5px; line-height: 1.35; min-height: 16px; }}
        .problem {{ color: var(--panel-danger-color, #c0392b); font-weight: 500; }}
        b {{ color: var(--panel-primary-color); font-weight: 600; }}""",
    "empty": _BASE + f"""
        :host {{ border: 1px dashed {LINE}; border-radius: 4px; padding: 28px 16px; text-align: center; color: {MUTED};
                 margin: 8px 10px; box-sizing: border-box; overflow-wrap: anywhere; }}
        b {{ color: {INK}; font-weight: 500; }}""",
    "good": _BASE + "[role] { border-left: 3px solid #009e73; padding: 5px 10px; }",
    "problem": _BASE + f"""
        [role=alert] {{ border-left: 3px solid #d55e00; padding: 5px 10px; overflow-wrap: anywhere; }}
        pre {{ font-size: 11px; overflow-x: auto; color: {MUTED}; }} summary {{ cursor: pointer; }}""",
    "finding": _BASE + f"""
        .error, .warning, .info {{ border-left: 3px solid {LINE}; padding: 2px 10px; overflow-wrap: anywhere; }}
        .error {{ border-color: #d55e00; }} .warning {{ border-color: #e69f00; }}
        b {{ font-weight: 500; }} p {{ margin: 2px 0; color: {MUTED}; }}
        summary {{ cursor: pointer; color: {MUTED}; font-size: 12px; }}""",
    "number": f"""
        :host {{ color: {INK}; min-width: 90px; }} span {{ display: block; font-size: 11.5px; color: {MUTED}; }}
        b {{ font-size: 18px; font-weight: 500; font-variant-numeric: tabular-nums; }}""",
    "numbers": f"""
        :host {{ color: {INK}; }} section {{ display: flex; flex-wrap: wrap; gap: 6px 24px; }}
        p {{ min-width: 84px; margin: 0; }} span {{ display: block; font-size: 11.5px; color: {MUTED}; }}
        b {{ font-size: 18px; font-weight: 500; font-variant-numeric: tabular-nums; }}""",
    "status": _BASE + ":host { font-variant-numeric: tabular-nums; } b { font-weight: 500; }",
    "table": _BASE + f"""
        :host {{ max-width: 100%; }}
        h2 {{ font-size: 13px; font-weight: 500; margin: 8px 0 4px; }}
        a {{ font-size: 11.5px; font-weight: 400; margin-left: 8px; color: var(--panel-primary-color); }}
        p {{ color: {MUTED}; margin: 0; }}
        .scroll {{ overflow: auto; max-height: 560px; border: 1px solid {LINE}; border-radius: 4px; }}
        table {{ border-collapse: collapse; width: 100%; font-size: 12.5px; }}
        th {{ text-align: left; font-weight: 500; color: {MUTED}; position: sticky; top: 0;
              background: var(--panel-background-color, #fff); }}
        th, td {{ padding: 3px 10px; border-bottom: 1px solid {LINE}; vertical-align: top; }}
        tr:last-child td {{ border-bottom: 0; }}
        th.number {{ text-align: right; }}
        td i {{ display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px; }}
        td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}""",
    "legend": _BASE + """
        :host { max-height: 180px; overflow-y: auto; font-size: 12px; }
        span { display: inline-block; margin: 0 14px 2px 0; }
        i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px; }""",
    "spark": _BASE + f"""
        svg {{ width: 100%; height: 90px; display: block; }}
        polyline {{ fill: none; stroke-width: 1.6px; vector-effect: non-scaling-stroke; }}
        p {{ margin: 0; color: {MUTED}; font-size: 11.5px; }} span {{ margin-right: 14px; }}
        i {{ display: inline-block; width: 12px; height: 3px; margin: 0 5px 3px 0; }}""",
    "code": _BASE + f"""
        summary {{ cursor: pointer; color: {MUTED}; margin-bottom: 4px; }}
        pre {{ font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
               overflow-wrap: anywhere; margin: 0; padding: 8px 10px; border-radius: 4px;
               background: color-mix(in srgb, {INK} 5%, transparent); }}""",
}  # fmt: skip
# All that is told of a trial is one piece, as each change of several makes the browser lay out the page anew.
HTML["trial"] = "".join(HTML[kind] for kind in ("table", "problem", "spark", "code"))


# Of tables that sort and filter; their own sheets come later, and have to be overruled.
SHEET = f"""
    .tabulator {{ font-size: 12.5px !important; background: transparent !important; border: 1px solid {LINE} !important;
        border-radius: 4px; }}
    .tabulator .tabulator-header, .tabulator .tabulator-header .tabulator-col {{ font-size: 12.5px !important;
        background: var(--panel-background-color, #fff) !important; color: {MUTED} !important; font-weight: 500;
        border-right: 0 !important; }}
    .tabulator .tabulator-row, .tabulator .tabulator-row.tabulator-row-even {{ font-size: 12.5px !important;
        background: transparent !important; color: {INK} !important; min-height: 28px !important;
        border-bottom: 1px solid {LINE}; }}
    .tabulator .tabulator-row.tabulator-selected {{
        background: color-mix(in srgb, var(--panel-primary-color) 22%, transparent) !important; }}
    .tabulator .tabulator-cell {{ padding: 5px 10px !important; height: auto !important; border-right: 0 !important;
        min-height: 28px !important; text-overflow: ellipsis; }}
    .tabulator .tabulator-cell:has(input[type=checkbox]) {{ padding: 5px 6px !important; text-overflow: clip; }}
    .tabulator .tabulator-header-filter input {{ font-size: 12px;
        background: transparent; color: {INK}; border: 1px solid {LINE}; border-radius: 3px; padding: 1px 4px; }}"""


def _grid(columns: str) -> str:
    # Boxes are told to be no higher than their row; a row must rather grow with them.
    return f""":host {{ display: grid !important; grid-template-columns: {columns}; grid-auto-rows: max-content;
                align-items: start; max-height: none !important; flex-shrink: 0 !important; }}
        div[class*="bk-"] {{ max-height: none !important; }}
        .scroll-button {{ display: none !important; }}  /* which would take a cell */"""


# The name above the field, also while it is empty; what it would be is seen in it then.
FIELD = """
    .MuiInputLabel-root { transform: translate(14px, -9px) scale(0.75) !important; }
    .MuiOutlinedInput-notchedOutline legend { max-width: 100% !important; }
    .MuiInputBase-input::placeholder { opacity: 0.42 !important; }"""
# A choice of several, as high as the others.
SEVERAL = (
    FIELD
    + """
    .MuiSelect-select { padding: 8.5px 14px !important; min-height: 1.4375em !important; }
    .MuiChip-root { height: 22px !important; }"""
)
# Layouts, as style sheets of the boxes that are laid out.
GRID = _grid("repeat(auto-fill, minmax(min(230px, 100%), 1fr))")
HALVES = _grid("repeat(auto-fit, minmax(min(440px, 100%), 1fr))")
SHARED = _grid("repeat(auto-fit, minmax(min(300px, 100%), 1fr))")
THIRDS = (
    _grid("repeat(3, minmax(0, 1fr))")
    + """
    @media (max-width: 1100px) { :host { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; } }
    @media (max-width: 640px) { :host { grid-template-columns: minmax(0, 1fr) !important; } }"""
)
WIDE_AND_NARROW = (
    _grid("minmax(0, 1.7fr) minmax(0, 1fr)")
    + """
    @media (max-width: 1100px) { :host { grid-template-columns: minmax(0, 1fr) !important; } }"""
)
NARROW_AND_WIDE = (
    _grid("minmax(0, 1fr) minmax(0, 2.2fr)")
    + """
    @media (max-width: 1000px) { :host { grid-template-columns: minmax(0, 1fr) !important; } }"""
)
# A list above what is chosen from it, where they don't fit side by side.
LOW = "@media (max-width: 1000px) { :host { max-height: 230px !important; } }"
