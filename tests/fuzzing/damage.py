"""What is done to a whole file: to its bytes, its words, its JSON, or what HDF5 holds.

Where it is done is a number, taken modulo the number of places there are, so that a damage suits any file and says
all that is needed to do it again.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

PLACES = st.integers(0, 2**20 - 1)
MARKER = "harm"  # beside the file: what a pickle makes if it is read
DEEP = b"[" * 100_000
JSON_NAMES = (".json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


class Harm:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.marker),)


@dataclass(frozen=True)
class Damage:
    """One damage: `do` it, to which `file` of a folder, `at` which place, with which `value`."""

    do: str
    file: int = 0
    at: int = 0
    value: Any = None


# --- bytes and words ------------------------------------------------------------------------------


def _flip(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]


def _word(data: bytes, at: int, value: bytes) -> bytes:
    words = data.replace(b"\t", b" \t ").replace(b"\n", b" \n ").split(b" ")
    words[at % len(words)] = value
    return b" ".join(words).replace(b" \t ", b"\t").replace(b" \n ", b"\n")


BYTES: dict[str, Callable[[bytes, int, Any], bytes]] = {
    "flip": _flip,
    "cut": lambda data, at, _: data[:at],
    "behead": lambda data, at, _: data[at:],
    "zero": lambda data, at, n: data[:at] + bytes(min(n, len(data) - at)) + data[at + n :],
    "fill": lambda data, at, n: data[:at] + b"\xff" * min(n, len(data) - at) + data[at + n :],
    "repeat": lambda data, at, n: data[:at] + data[at : at + n] + data[at:],
    "insert": lambda data, at, value: data[:at] + value + data[at:],
    "word": _word,
    "whole": lambda data, at, value: value,
}
_LENGTHS = st.sampled_from([1, 2, 4, 8, 64, 512])
_WORDS = st.sampled_from(
    [b"", b"0", b"-1", b"1e9", b"nan", b"99999999999", b"9" * 30, b"\t", b"\n", b"\0", b"\xff", b"x" * 5000]
)
_ANY_BYTES = st.one_of(st.binary(max_size=8), st.sampled_from([DEEP, b'{"a":' * 50_000, b"\r\n", b"NaN", b"9" * 5000]))
OF_BYTES = st.one_of(
    st.builds(Damage, st.just("flip"), PLACES, PLACES, st.integers(1, 255)),
    st.builds(Damage, st.sampled_from(["cut", "behead"]), PLACES, PLACES),
    st.builds(Damage, st.sampled_from(["zero", "fill", "repeat"]), PLACES, PLACES, _LENGTHS),
    st.builds(Damage, st.just("insert"), PLACES, PLACES, _ANY_BYTES),
    st.builds(Damage, st.just("whole"), PLACES, st.just(0), _ANY_BYTES),
    st.builds(Damage, st.sampled_from(["pickle", "lose", "swap"]), PLACES, PLACES),
)
OF_WORDS = st.builds(Damage, st.just("word"), PLACES, PLACES, _WORDS)


# --- JSON -----------------------------------------------------------------------------------------


_TEXTS = ["", "\0", "../../../etc/passwd", "x" * 5000, "\ud800", "#", "demo:x", "<b>", "nan", "1", "__class__"]
_NUMBERS = [0, -1, 1, 2, 0.5, 2**31, 2**63, 2**64, 10**400, -(2**63), 1e308, 5e-324, float("inf"), float("nan")]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.sampled_from(_NUMBERS), st.sampled_from(_TEXTS), st.integers(), st.floats(),
    st.text(max_size=8),
)  # fmt: skip
JSONS = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=6
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what holds each value of a JSON document, and by which key or number."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _set(holder: Any, key: Any, value: Any) -> None:
    holder[key] = value


def _add(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, list):
        holder.insert(key, value)
    else:
        holder[str(value)[:9]] = holder[key]


JSON: dict[str, Callable[[Any, Any, Any], None]] = {
    "set": _set,
    "add": _add,
    "drop": lambda holder, key, _: holder.pop(key),
    "exchange": lambda holder, key, _: _set(holder, key, holder[next(iter(holder)) if isinstance(holder, dict) else 0]),
}
OF_JSON = st.one_of(
    st.builds(Damage, st.sampled_from(["set", "set", "add"]), PLACES, PLACES, JSONS),
    st.builds(Damage, st.sampled_from(["drop", "exchange"]), PLACES, PLACES),
)


def _in_json(data: bytes, damage: Damage) -> bytes:
    try:
        whole = [json.loads(data)]
    except (ValueError, RecursionError):  # damaged before
        return data
    places = list(_places(whole))
    JSON[damage.do](*places[damage.at % len(places)], damage.value)
    return json.dumps(whole[0] if whole else None).encode()


def _in_header(data: bytes, damage: Damage) -> bytes:
    """Damage the header of a safetensors file, or the JSON that one of its texts is."""
    n = int.from_bytes(data[:8], "little")
    if n > len(data) - 8:
        return data
    inner = damage.do.removeprefix("header ")
    try:
        header = json.loads(data[8 : 8 + n])
        if damage.file % 4:  # most of what we read is there
            text = _in_json(header["__metadata__"]["mira"].encode(), Damage(inner, 0, damage.at, damage.value))
            header["__metadata__"]["mira"] = text.decode()
            told = json.dumps(header).encode()
        else:
            told = _in_json(data[8 : 8 + n], Damage(inner, 0, damage.at, damage.value))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data
    return len(told).to_bytes(8, "little") + told + data[8 + n :]


OF_HEADER = OF_JSON.map(lambda d: Damage("header " + d.do, d.file, d.at, d.value))


# --- HDF5 -----------------------------------------------------------------------------------------


_HUGE = 2**40


def _sparse(group: h5py.Group, key: str, dtype: Any, shape: tuple[int, ...]) -> None:
    group.create_dataset(key, shape, dtype, chunks=(1,) * (len(shape) - 1) + (1024,), maxshape=(None,) * len(shape))


ARRAYS: dict[str, Any] = {
    "nothing": h5py.Empty("f4"),
    "number": 3,
    "negative": np.array([-1, -2, -3]),
    "empty": np.zeros(0),
    "floats": np.array([0.5, np.nan, np.inf]),
    "large": np.array([2**63 - 1, 0, 2**40]),
    "unsigned": np.array([2**64 - 1, 1], np.uint64),
    "flags": np.array([True, False]),
    "text": "text",
    "texts": np.array([b"a", b"\xff\xfe", b""], "S2"),
    "plane": np.arange(12).reshape(3, 4),
    "cube": np.zeros((2, 2, 2)),
    "complex": np.zeros(3, complex),
    "half": np.ones(12, np.float16),
    "records": np.zeros(3, [("a", "i4"), ("b", "S3")]),
    "opaque": np.void(b"opaque"),
    "shape": np.array([2**62, 2**62]),
    "minus": np.array([-12, 7]),
}
BUILT: dict[str, Callable[[h5py.Group, str], Any]] = {
    "long": lambda g, k: _sparse(g, k, "f4", (_HUGE,)),
    "wide": lambda g, k: _sparse(g, k, "i4", (12, _HUGE)),
    "half a gigabyte": lambda g, k: _sparse(g, k, "f8", (2**26,)),
    "many texts": lambda g, k: _sparse(g, k, h5py.string_dtype(), (_HUGE,)),
    "lists": lambda g, k: g.create_dataset(k, (3,), h5py.vlen_dtype("i4")),
    "references": lambda g, k: g.create_dataset(k, (3,), h5py.ref_dtype),
    "enum": lambda g, k: g.create_dataset(k, (3,), h5py.enum_dtype({"a": 1, "b": 7}, "i1")),
    "group": lambda g, k: g.create_group(k),
    "soft link": lambda g, k: g.__setitem__(k, h5py.SoftLink("/")),
    "external link": lambda g, k: g.__setitem__(k, h5py.ExternalLink("/etc/passwd", "/")),
}
ENTRIES = st.sampled_from([-1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 7, 12])
OF_HDF5 = st.one_of(
    st.builds(Damage, st.just("array"), PLACES, PLACES, st.sampled_from([*ARRAYS, *BUILT])),
    st.builds(Damage, st.just("entry"), PLACES, PLACES, st.tuples(PLACES, ENTRIES)),
    st.builds(Damage, st.sampled_from(["remove", "copy"]), PLACES, PLACES, PLACES),
    st.builds(Damage, st.just("retype"), PLACES, PLACES, st.sampled_from(["i1", "u8", "f2", "f8", "S3", "?", "c8"])),
    st.builds(Damage, st.just("attribute"), PLACES, PLACES, st.tuples(PLACES, st.sampled_from([None, *ARRAYS]))),
    st.builds(
        Damage, st.just("encoding"), PLACES, PLACES,
        st.sampled_from([
            "dataframe", "csr_matrix", "csc_matrix", "categorical", "null", "dict", "array", "anndata", "raw", "string",
            "string-array", "nullable-integer", "awkward-array", "rec-array", "numeric-scalar", "x",
        ]),
    ),
)  # fmt: skip


def _in_hdf5(path: Path, damage: Damage) -> None:
    with h5py.File(path, "r+") as f:
        names: list[str] = []
        f.visit(names.append)
        if not names:
            return
        name = sorted(names)[damage.at % len(names)]
        where, _, key = f"/{name}".rpartition("/")
        group, node = f[where or "/"], f[name]
        if damage.do == "array":
            del group[key]
            if damage.value in BUILT:
                BUILT[damage.value](group, key)
            else:
                group[key] = ARRAYS[damage.value]
        elif damage.do == "remove":
            del group[key]
        elif damage.do == "copy":
            other = sorted(names)[damage.value % len(names)]
            if not f"{name}/".startswith(f"{other}/") and not f"{other}/".startswith(f"{name}/"):
                del group[key]
                f.copy(other, group, key)
        elif damage.do == "encoding":
            node.attrs["encoding-type"] = damage.value
        elif damage.do == "attribute":
            at, value = damage.value
            keys = [*node.attrs, "new"]
            chosen = keys[at % len(keys)]
            if value is None:
                node.attrs.pop(chosen, None)
            else:
                node.attrs[chosen] = ARRAYS[value]
        elif isinstance(node, h5py.Dataset) and node.size and node.dtype.kind in "iuf":
            values = np.array(node[()])
            if damage.do == "retype":
                values = values.astype(damage.value)
            else:
                at, value = damage.value
                with np.errstate(all="ignore"):
                    values.flat[at % values.size] = np.array(value).astype(values.dtype)
            attributes = dict(node.attrs)
            del group[key]
            group[key] = values
            group[key].attrs.update(attributes)


# --- files, folders and zip files -----------------------------------------------------------------


def do(damage: Damage, path: Path) -> None:
    """Damage a file, one of the files of a folder, or one in a zip file, in place."""
    if damage.do in ("array", "entry", "remove", "copy", "retype", "attribute", "encoding"):
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        held = [p for p in files if h5py.is_hdf5(p)]
        if held:
            # an earlier damage may have left nothing that HDF5 itself can change
            with contextlib.suppress(OSError, KeyError, RuntimeError, ValueError, TypeError):
                _in_hdf5(held[damage.file % len(held)], damage)
        return
    is_zip = path.suffix == ".zip" and damage.file % 4 != 0 and zipfile.is_zipfile(path)
    entries = _entries(path, is_zip)
    names = sorted(entries)
    if damage.do in JSON and path.is_dir() | is_zip:
        names = [n for n in names if n.endswith(JSON_NAMES)]
    if not names:
        return
    name = names[damage.file % len(names)]
    data = entries[name]
    if damage.do == "lose":
        entries[name] = b"" if path.is_file() and not is_zip else None
    elif damage.do == "swap":
        other = names[damage.at % len(names)]
        entries[name], entries[other] = entries[other], data
    elif damage.do == "pickle":
        entries[name] = pickle.dumps(Harm(path.parent / MARKER))
    else:
        zipped = name.endswith(".gz") and data[:2] == b"\x1f\x8b" and damage.at % 8 != 0
        data = gzip.decompress(data) if zipped else data
        entries[name] = gzip.compress(_changed(data, damage), 1) if zipped else _changed(data, damage)
    _store(path, entries, is_zip)


def _changed(data: bytes, damage: Damage) -> bytes:
    if damage.do in JSON:
        return _in_json(data, damage)
    if damage.do.startswith("header "):
        return _in_header(data, damage)
    if damage.do == "word":
        return _word(data, damage.at, damage.value)
    at = damage.at % len(data) if data else 0
    return BYTES[damage.do](data, at, damage.value) if data or damage.do == "whole" else data


def _entries(path: Path, is_zip: bool) -> dict[str, Any]:
    if is_zip:
        with zipfile.ZipFile(path) as z:
            return {n: z.read(n) for n in z.namelist() if not n.endswith("/")}
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _store(path: Path, entries: dict[str, Any], is_zip: bool) -> None:
    if is_zip:
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as z:
            for name, data in entries.items():
                if data is not None:
                    z.writestr(name, data)
        path.write_bytes(held.getvalue())
        return
    for name, data in entries.items():
        file = path if path.is_file() else path / name
        if data is None:
            file.unlink()
        elif file.read_bytes() != data:
            file.write_bytes(data)
