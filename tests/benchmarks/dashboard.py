"""What the dashboard costs: a page with a long training, live points, many pages on one run, many sessions.

    python -m tests.benchmarks.dashboard

A real server and a real headless Chromium. Told are: seconds until the loss of a training of 100,000 steps is drawn,
and the bytes that the server sent for it; how old a step is when it is in the browser; the share of one core that the
server takes while ten pages watch a run of 100 steps a second; and the server's memory before and after fifty sessions.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import sync_playwright

from tests.browser.conftest import CHROMIUM, MIRA, Server
from tests.browser.test_pages import stored_run
from tests.browser.test_path import POINTS

# A process that trains nothing but writes what a training would: a step every so often, and its status.
WRITER = """
import json, sys, time
from pathlib import Path
from mira_core import jobs, processes
from mira_core.files import write_json
from mira_core.records import StepRecord
folder, pause = Path(sys.argv[1]), float(sys.argv[2])
jobs.write_spec(folder, data="demo:pbmc700", model={"feature_type": "expression"}, name="live")
write_json(folder / "process.json", processes.this_process())
began, step = time.time(), 0
status = dict(state="running", stage="training", num_epochs=1000, num_steps=100_000, n_cells=700, device="cpu",
              started=began, training_started=began)
with open(folder / "records.jsonl", "a") as records:
    while True:
        step += 1
        # The time of writing stands where the loss would.
        records.write(json.dumps(StepRecord(step, 1 + step // 100, time.time() - began, 1, 1, 1, .1, .9).to_dict()))
        records.write("\\n")
        records.flush()
        if step % 20 == 1:
            write_json(folder / "status.json", {**status, "step": step, "heartbeat": time.time()})
            (folder / "began").write_text(str(began))
        time.sleep(pause)
"""
LAST = POINTS.replace("Array.from(model.data.step)", "model.data.loss.length ? model.data.loss.at(-1) : 0")
# Whether the loss is drawn up to a step, not only on its way.
DRAWN = """(last) => {
  for (const document of window.Bokeh?.documents ?? [])
    for (const model of document._all_models.values())
      if (model.type === 'Figure' && model.title.text === 'Loss') {
        const source = model.renderers.map((r) => r.data_source).find((s) => 'learning_rate' in s.data)
        return Boolean(Bokeh.index.find_one(model)?.has_finished()) && source.data.step.at(-1) >= last
      }
  return false
}"""


def ready(browser: Any, server: Server, job: str) -> tuple[float, int]:
    """Return seconds until a run is drawn in the browser to its last step, and the bytes sent for the page."""
    page, sent = browser.new_page(), [0]
    page.on("websocket", lambda ws: ws.on("framereceived", lambda frame: sent.__setitem__(0, sent[0] + len(frame))))
    began = time.perf_counter()
    page.goto(server.url(f"?page=train&job={job}"), wait_until="commit")
    while not page.evaluate(DRAWN, 99_900):
        time.sleep(0.02)
        if time.perf_counter() - began > 60:
            raise TimeoutError("the points did not come")
    seconds = time.perf_counter() - began
    page.close()
    return seconds, sent[0]


def write(folder: Path, pause: float) -> subprocess.Popen[bytes]:
    """Start the writer."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(pause)])
    while not (folder / "began").exists():
        time.sleep(0.05)
    return process


def ages(browser: Any, server: Server, seconds: float) -> list[float]:
    """Return how old the newest step in the browser was, just before the next ones came."""
    writer = write(server.workspace / "jobs" / "live", 0.05)
    page, out, before = browser.new_page(), [], 0.0
    page.goto(server.url("?page=train&job=live"))
    began = float((server.workspace / "jobs" / "live" / "began").read_text())
    end = time.time() + seconds + 10
    while time.time() < end:
        newest = float(page.evaluate(LAST) or 0)
        now = time.time() - began
        if newest != before and before and time.time() > end - seconds:
            out.append(now - before)  # until now, this was the newest
        before = newest
        time.sleep(0.01)
    page.close()
    writer.kill()
    return out


def share(browser: Any, server: Server, n: int, seconds: float) -> tuple[float, float]:
    """Return the shares of a core that the server takes with one page, and with `n`, on a run."""
    writer = write(server.workspace / "jobs" / "watched", 0.01)
    process, out, pages = psutil.Process(server.process.pid), [], []
    for several in (1, n):
        while len(pages) < several:
            pages.append(browser.new_page())
            pages[-1].goto(server.url("?page=train&job=watched"))
            pages[-1].get_by_text("epoch").first.wait_for(timeout=30_000)
        time.sleep(10)
        spent, began = process.cpu_times(), time.perf_counter()
        time.sleep(seconds)
        now = process.cpu_times()
        out.append((now.user + now.system - spent.user - spent.system) / (time.perf_counter() - began))
    for page in pages:
        page.close()
    writer.kill()
    return out[0], out[1]


def memory(browser: Any, server: Server, n: int) -> tuple[float, float, float]:
    """Return the server's memory in MB: after ten sessions at once, with `n` more, ten at once, and when they are gone.

    Only what follows the first ten would grow for ever; they load what the server needs, and leave gaps for the next.
    """
    process = psutil.Process(server.process.pid)

    def visit(count: int) -> None:
        pages = []
        for _ in range(count):
            page = browser.new_page()
            page.goto(server.url("?page=train&job=long"))
            page.get_by_text("Finished").first.wait_for(timeout=60_000)
            for name in ("Data", "Model", "Explore"):
                page.get_by_role("tab", name=name).click()
                page.get_by_role("heading", name=name).wait_for()
            pages.append(page)
        for page in pages:
            page.close()

    visit(10)
    time.sleep(90)
    before, most = process.memory_info().rss, 0
    for _ in range(n // 10):
        visit(10)
        most = max(most, process.memory_info().rss)
    time.sleep(90)  # sessions are dropped half a minute after their page has gone
    return before / 1e6, most / 1e6, process.memory_info().rss / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--sessions", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        workspace = Path(folder) / "workspace"
        server = Server(
            workspace,
            lambda port: [*MIRA, "serve", "--demo", "--workspace", str(workspace), "--port", str(port)],
            {},
        )
        stored_run(workspace, "long", 100_000)
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        browser = chromium.new_context(viewport={"width": 1440, "height": 900})  # one person's, with its cache
        try:
            first, *times = [ready(browser, server, "long") for _ in range(arguments.repeats + 1)]
            seconds, sent = sorted(t for t, _ in times), times[0][1] / 1e6
            print(f"100,000 steps: ready after {statistics.median(seconds):.2f} s ({seconds[0]:.2f} to "
                  f"{seconds[-1]:.2f}; the server's first page {first[0]:.2f}), {sent:.2f} MB sent")  # fmt: skip
            old = sorted(ages(browser, server, 30))
            print(f"live: the newest step in the browser is at most {old[len(old) // 2]:.2f} s old (median of "
                  f"{len(old)} updates), {old[int(0.95 * len(old))]:.2f} s in 95 %, {old[-1]:.2f} s ever")  # fmt: skip
            one, many = share(browser, server, arguments.pages, 30)
            print(f"server: {one:.1%} of a core with one page on a run, {many:.1%} with {arguments.pages}")
            before, most, after = memory(browser, server, arguments.sessions)
            print(
                f"memory: {before:.0f} MB, at most {most:.0f} with {arguments.sessions} sessions, {after:.0f} MB after"
            )
        finally:
            chromium.close()
            server.stop()


if __name__ == "__main__":
    main()
