"""Uploads that go to the disk in pieces: no file is ever held in memory, here or in the browser."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import param
from panel.custom import JSComponent

from mira_core.errors import DataError, MiraError
from mira_core.files import move_into_place

from ..pages import parts

PIECE = 2**21  # bytes sent at once; the connection takes 20 MB
LONGEST = 200  # bytes of a name; file systems take 255, and parts get longer names
SPARE = 2**30  # bytes of the disk that an upload leaves free
_NAMING = threading.Lock()  # two files of one name may come at once

ESM = """
export function render({model, el}) {
  el.innerHTML = `
    <label class="mira-upload" tabindex="0">
      <input type="file" aria-label="Upload a file">
      <span class="say">Drop a file here, or choose one</span>
      <progress max="1" value="0" hidden></progress>
      <button type="button" hidden>Cancel</button>
    </label>`
  const label = el.querySelector("label"), input = el.querySelector("input"), say = el.querySelector(".say")
  const bar = el.querySelector("progress"), cancel = el.querySelector("button")
  let file = null, began = 0
  const size = (n) => n >= 1e9 ? (n / 1e9).toFixed(2) + " GB" : (n / 1e6).toFixed(1) + " MB"
  const rest = (text, wrong) => {
    file = null; input.value = ""; bar.hidden = cancel.hidden = true; input.disabled = false
    say.textContent = text; say.classList.toggle("wrong", wrong); say.setAttribute("role", wrong ? "alert" : "status")
  }
  const begin = (chosen) => {
    if (file || !chosen) return
    file = chosen; began = Date.now(); input.disabled = true
    bar.value = 0; bar.hidden = cancel.hidden = false; say.classList.remove("wrong")
    say.textContent = `${file.name}: 0 of ${size(file.size)}`
    model.send_msg({what: "begin", name: file.name, size: file.size})
  }
  input.addEventListener("change", () => begin(input.files[0]))
  label.addEventListener("dragover", (e) => { e.preventDefault(); label.classList.add("over") })
  label.addEventListener("dragleave", () => label.classList.remove("over"))
  label.addEventListener("drop", (e) => { e.preventDefault(); label.classList.remove("over"); begin(e.dataTransfer.files[0]) })
  cancel.addEventListener("click", (e) => { e.preventDefault(); model.send_msg({what: "cancel"}); rest("Cancelled", false) })
  model.on("msg:custom", async (answer) => {
    if (answer.what === "wrong") return rest(answer.text, true)
    if (answer.what === "done") return rest(`${answer.name} is here`, false)
    if (!file) return
    const at = answer.offset, seconds = (Date.now() - began) / 1000
    bar.value = file.size ? at / file.size : 1
    const left = at > 0 ? ` · ${Math.ceil(seconds * (file.size - at) / at)} s left` : ""
    say.textContent = `${file.name}: ${size(at)} of ${size(file.size)}${left}`
    try {
      const data = await file.slice(at, at + answer.piece).arrayBuffer()
      model.send_msg({what: "piece", offset: at, data})
    } catch (problem) {
      model.send_msg({what: "cancel"}); rest(`${file.name} cannot be read: ${problem.message}`, true)
    }
  })
}
"""  # noqa: E501

STYLE = """
:host { color: var(--panel-on-background-color, #222); font-size: 13px; }
label { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; padding: 12px; cursor: pointer;
        border-radius: 4px; border: 1px dashed color-mix(in srgb, currentColor 30%, transparent); }
label.over, label:focus-within { border-color: var(--panel-primary-color); }
input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.say { overflow-wrap: anywhere; } .wrong { color: var(--panel-danger-color, #c0392b); }
progress { flex: 1; min-width: 120px; accent-color: var(--panel-primary-color); }
"""


class Upload(JSComponent):
    """A place to drop a file, which is written below a folder as it comes.

    Parameters
    ----------
    folder_for
        Called with the name and size of a file; returns where to, made if it does not exist, or raises what hinders.
    limit
        Greatest size, in bytes.
    done
        Called with the path of a file that has come whole.
    """

    _esm = ESM
    _stylesheets = [STYLE]  # noqa: RUF012

    busy = param.Boolean(default=False, doc="Whether a file is coming.")

    def __init__(
        self, folder_for: Callable[[str, int], Path], limit: int, done: Callable[[Path], None], **params: Any
    ) -> None:
        self._folder_for, self._limit, self._done = folder_for, limit, done
        self._folder = Path()
        self._coming: BinaryIO | None = None  # written beside, under a name of no data
        self._name, self._size = "", 0
        super().__init__(**params)

    def _handle_msg(self, data: dict[str, Any]) -> None:
        try:
            answer = {"begin": self._begin, "piece": self._piece, "cancel": self._cancel}[data["what"]](data)
        except (MiraError, OSError) as problem:
            self.close()
            answer = {"what": "wrong", "text": str(problem)}
        if answer:
            self._send_msg(answer)

    def _begin(self, data: dict[str, Any]) -> dict[str, Any]:
        self.close()
        self._name, self._size = _checked(str(data["name"])), int(data["size"])
        if self._size > self._limit:
            raise DataError(
                f"{self._name} has {self._size / 1e9:.1f} GB, and at most {self._limit / 1e9:.1f} GB are taken; copy "
                "it into a data folder of the server instead"
            )
        self._folder = self._folder_for(self._name, self._size)
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._size > shutil.disk_usage(self._folder).free - SPARE:
            raise DataError(f"the server's disk has no room for {self._size / 1e9:.1f} GB; ask whoever runs it")
        part = self._folder / f".{secrets.token_hex(8)}.part"
        self._coming = open(part, "xb")  # noqa: SIM115 - open while the pieces come
        self.busy = True
        return _next(0)

    def _piece(self, data: dict[str, Any]) -> dict[str, Any] | None:
        file = self._coming
        if file is None:
            return None  # it was cancelled meanwhile
        piece = bytes(data["data"])
        if data["offset"] != file.tell() or file.tell() + len(piece) > self._size:
            raise DataError("the pieces of the file came in disorder; try again")
        file.write(piece)
        if file.tell() < self._size:
            if not piece:
                raise DataError("the file became shorter while it came; try again")
            return _next(file.tell())
        file.close()
        self._coming = None
        self._keep(Path(file.name), self._folder / self._name)
        return None

    def _keep(self, part: Path, path: Path) -> None:
        """Give a whole file its name, in a thread: until all of it is on the disk takes as long as that is slow."""

        def work() -> Path:
            with _NAMING:
                unused = _unused(path)
                move_into_place(part, unused)
            return unused

        def done(kept: Path) -> None:
            self.busy = False
            self._done(kept)
            self._send_msg({"what": "done", "name": kept.name})

        def failed(text: str) -> None:
            part.unlink(missing_ok=True)
            self.busy = False
            self._send_msg({"what": "wrong", "text": text})

        parts.in_thread(work, done, failed)

    def _cancel(self, data: dict[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        """Forget a file that has not come whole."""
        if self._coming is not None:
            self._coming.close()
            Path(self._coming.name).unlink(missing_ok=True)
        self._coming = None
        self.busy = False


def _next(offset: int) -> dict[str, Any]:
    return {"what": "next", "offset": offset, "piece": PIECE}


def _checked(name: str) -> str:
    """Return the name, if it is one of a file and of a format that can be opened."""
    plain = name == Path(name).name and name.isprintable() and len(name.encode()) <= LONGEST
    if not name or not plain or name.startswith(".") or "\\" in name or "#" in name:
        raise DataError(f"{name[:60]!r} cannot be the name of a file here; rename it, to letters, digits, - and _")
    if not name.lower().endswith((".h5ad", ".h5", ".h5mu", ".loom", ".zarr.zip", ".zip")):
        raise DataError(
            f"{name} is of no format that can be opened: .h5ad, .h5mu, .h5 of 10x, .loom, .zarr.zip. Of a folder with "
            "matrix.mtx, copy it into a data folder of the server"
        )
    return name


def _unused(path: Path) -> Path:
    """Return a path like this that does not exist yet."""
    stem, dot, rest = path.name.partition(".")
    for i in range(2, 10_000):
        if not path.exists():
            return path
        path = path.with_name(f"{stem}-{i}{dot}{rest}")
    raise DataError(f"there are too many files named {path.name}")
