"""What each page does beyond the path from cells to topics, in a browser."""

from __future__ import annotations

import json
import math
import time

import pytest

import mira_core as mira
from mira_core import jobs
from mira_core.records import EpochRecord, StepRecord

from .conftest import shot, wait_until
from .test_path import POINTS, _found, fill

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BOX = _found("model.type === 'BoxAnnotation' && model.editable", "[model.left, model.right, model.visible]")
SHOWN = _found(
    "model.type === 'Legend'", "model.items.filter((i) => i.visible).map((i) => i.label.value ?? i.label.field)"
)
PINS = _found("model.type === 'Figure' && model.title.text === 'Loss'",
              "model.center.filter((r) => r.type === 'Span').map((r) => r.location)")  # fmt: skip


def stored_run(workspace, name: str, n_steps: int, **model) -> None:
    """A finished run of so many steps, on the disk."""
    folder = workspace / "jobs" / name
    jobs.write_spec(folder, data="demo:pbmc700", model={"feature_type": "expression", **model}, name=name)
    per_epoch = max(1, n_steps // 100)
    with open(folder / "records.jsonl", "w") as f:
        for s in range(1, n_steps + 1):
            loss = 500 + 300 * math.exp(-8 * s / n_steps) + 5 * math.sin(s)
            epoch = 1 + (s - 1) // per_epoch
            f.write(json.dumps(StepRecord(s, epoch, loss, loss - 20, 20.0, 1.0, 0.1, 0.9).to_dict()) + "\n")
            if s % per_epoch == 0:
                record = EpochRecord(epoch, s, loss, loss - 20, 20.0, 1.0, 0.1, 0.9, 2.0, 3500.0, 0.02)
                f.write(json.dumps(record.to_dict()) + "\n")
    now = time.time()
    status = jobs.Status(state="finished", stage="done", epoch=100, num_epochs=100, step=n_steps, num_steps=n_steps,
                         n_cells=700, device="cpu", started=now - 300, ended=now)  # fmt: skip
    (folder / "status.json").write_text(json.dumps(status.__dict__))


def test_a_file_is_uploaded_and_opened_and_a_broken_one_is_told(page, shared, tmp_path):
    adata = mira.data.simulate_expression(3000, 400, 4, seed=1)
    adata.obs["<b>bold</b>"] = "<img src=x onerror=alert(1)>"
    path = tmp_path / "my cells.h5ad"
    adata.write_h5ad(path)
    page.goto(shared.url("?page=data&data="))
    page.get_by_text("Drop a file here, or choose one").wait_for()
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_text("my cells.h5ad is here").wait_for()
    page.get_by_text("3,000", exact=True).wait_for()
    page.get_by_text("Raw counts in X.").wait_for()
    page.get_by_text("<img src=x onerror=alert(1)>").wait_for()  # as text
    assert (shared.workspace / "uploads" / "my cells.h5ad").read_bytes() == path.read_bytes()
    shot(page, "data-uploaded")

    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    page.locator("input[type=file]").set_input_files(broken)
    page.get_by_text("broken.h5ad cannot be read").wait_for()
    page.locator("input[type=file]").set_input_files({"name": "a.csv", "mimeType": "text/csv", "buffer": b"1,2"})
    page.get_by_text("a.csv is of no format that can be opened").wait_for()
    assert sorted(p.name for p in (shared.workspace / "uploads").iterdir()) == ["broken.h5ad", "my cells.h5ad"]


def test_options_are_found_and_a_model_is_pasted(page, shared):
    page.goto(shared.url("?page=model"))
    page.get_by_text("The same in Python").wait_for()
    page.get_by_label("Find an option").fill("dropout decoder")
    page.keyboard.press("Tab")
    page.locator(".option-decoder_dropout").wait_for()
    wait_until(lambda: not page.locator(".option-num_topics").is_visible(), 10, "only what was looked for")
    fill(page, "Find an option", "no such option")
    page.get_by_text("No option has these words").wait_for()
    fill(page, "Find an option", "")
    pasted = page.get_by_label("Python, a mira fit command, or JSON")
    pasted.fill("mira fit x.h5ad -o run --num-topics 7 --encoder-dropout 0.1")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Fill the form from it").click()
    page.get_by_text("The text names other data").wait_for()
    wait_until(lambda: page.get_by_label("num_topics", exact=True).input_value() == "7", 10, "the form is filled")
    assert page.get_by_label("encoder_dropout", exact=True).input_value() == "0.1"  # though it is not basic
    pasted.fill("mira fit x.h5ad -o run --num-topics 1")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Fill the form from it").click()
    page.get_by_text("num_topics must be an integer of at least 2; got 1").first.wait_for()
    assert page.get_by_label("num_topics", exact=True).input_value() == "7"


def test_learning_rates_are_tested_dragged_taken_over_and_kept(page, shared):
    page.goto(shared.url("?page=model"))
    page.get_by_text("The same in Python").wait_for()
    fill(page, "num_epochs", "2")
    page.get_by_text("num_epochs=2").wait_for()
    page.get_by_role("button", name="Test learning rates").click()
    page.get_by_role("button", name="Use these").wait_for(timeout=270_000)
    low, high, visible = page.evaluate(BOX)
    assert visible
    assert 1e-6 < low < high < 5
    shot(page, "learning-rates")
    # as a hand that drags the right end would
    page.evaluate(_found("model.type === 'BoxAnnotation' && model.editable", "(model.right = 0.05, [])"))
    page.get_by_text("to 0.05").wait_for()
    page.get_by_role("button", name="Use these").click()
    wait_until(lambda: page.get_by_label("max_learning_rate", exact=True).input_value() == "0.05", 10, "it is taken")
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="See the topics").wait_for(timeout=270_000)
    (folder,) = [f for f in (shared.workspace / "jobs").iterdir() if "learning-rates" not in f.name]  # the first run
    model = mira.topics.load_model(folder / "result" / "model.safetensors")
    assert model.max_learning_rate == 0.05
    assert model.plot_learning_rate_bounds() is not None  # the curve is saved with it


def test_runs_are_compared_and_pinned_and_what_is_looked_at_stays(page, shared):
    stored_run(shared.workspace, "first", 400, num_topics=5)
    stored_run(shared.workspace, "second", 300, num_topics=9)
    page.goto(shared.url("?page=train&job=first&beside=second"))
    page.get_by_text("What differs").wait_for()
    wait_until(lambda: any(x.startswith("second") for x in page.evaluate(SHOWN)), 20, "the other run is drawn")
    for text in ("num_topics", "5", "9"):
        page.locator(".mira-table").get_by_text(text, exact=True).wait_for()
    page.locator(".bk-Figure").first.wait_for()
    box = page.locator(".bk-Figure").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_text("learning rate", exact=False).first.wait_for()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    wait_until(lambda: len(page.evaluate(PINS)) == 1, 20, "a pin")
    (pin,) = page.evaluate(PINS)
    assert 100 < pin < 300
    page.get_by_text("Pinned steps").wait_for()
    page.get_by_label("Losses on log axes").click()
    wait_until(
        lambda: page.evaluate(_found("model.type === 'Figure' && model.title.text === 'Loss' && "
                                     "model.left[0].type === 'LogAxis'", "[1]")) == [1], 20, "a log axis")  # fmt: skip
    shot(page, "train-compared")


def test_a_long_training_is_light(page, shared):
    stored_run(shared.workspace, "long", 100_000)
    received = []
    page.on("websocket", lambda ws: ws.on("framereceived", lambda frame: received.append(len(frame))))
    page.goto(shared.url("?page=train&job=long"))
    page.get_by_text("step 100,000 of 100,000").wait_for(timeout=180_000)
    wait_until(lambda: len(page.evaluate(POINTS)) > 1000, 30, "points on the loss figure")
    assert page.evaluate(POINTS)[-1] > 99_900
    assert sum(received) < 5e6


def test_a_run_that_was_stopped_goes_on_and_one_that_failed_is_tried_again(page, shared):
    page.goto(shared.url("?page=model"))
    page.get_by_text("The same in Python").wait_for()
    fill(page, "num_epochs", "6000")
    page.get_by_text("num_epochs=6000").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    wait_until(lambda: len(page.evaluate(POINTS)) > 50, 60, "points on the loss figure")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Go on").wait_for(timeout=180_000)
    before = page.evaluate(POINTS)[-1]
    page.get_by_role("button", name="Go on").click()
    wait_until(lambda: (page.evaluate(POINTS) or [0])[-1] > before + 50, 60, "it goes on")
    points = page.evaluate(POINTS)
    assert points[0] == 1
    assert len(points) == len(set(points))
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Go on").wait_for(timeout=180_000)

    stored_run(shared.workspace, "failed", 50, max_learning_rate=0.3)
    status = json.loads((shared.workspace / "jobs" / "failed" / "status.json").read_text())
    status |= {"state": "failed", "error": {"type": "TrainingError", "message": "it diverged", "traceback": "Trace"}}
    (shared.workspace / "jobs" / "failed" / "status.json").write_text(json.dumps(status))
    page.goto(shared.url("?page=train&job=failed"))
    page.get_by_text("Try again uses a third of the learning rate (0.1)").wait_for()
    page.get_by_role("button", name="Try again").click()
    wait_until(lambda: "job=failed" not in page.evaluate("location.href"), 20, "the new run is shown")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped").or_(page.get_by_text("Finished")).first.wait_for(timeout=180_000)
