"""What the figures of a study cost the server, and how much the browser is sent.

    python -m tests.benchmarks.trials

Told are, for each number of trials of 40 epochs: seconds to make all figures, fill them and write the page; its size;
milliseconds for an update in which four trials changed and one began, and its size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bokeh.core.serialization import Serializer
from bokeh.document import Document

from mira_app.figures.trials import TrialFigures

EPOCHS = 40
NAMES = ("pareto", "curves", "history", "topics", "parallel", "importance")
Study = tuple[list[dict[str, Any]], dict[int, dict[str, list[float]]]]


def synthetic(n: int, epochs: int = EPOCHS, seed: int = 0) -> Study:
    """Return trials and curves like those of a tuning: better with time, most pruned, some running and failed."""
    rng = np.random.default_rng(seed)
    trials, curves = [], {}
    for number in range(n):
        spread = 0.25 + 0.75 * np.exp(-number / (n / 3 + 1))
        topics = int(np.clip(np.round(18 + 14 * spread * rng.normal()), 3, 60))
        dropout = float(np.clip(0.08 + 0.08 * spread * rng.normal(), 0.001, 0.3))
        pseudocounts = float(np.exp(rng.uniform(np.log(10), np.log(200))))
        loss = 700 + 900 / topics + 0.35 * topics + 90 * (dropout - 0.07) ** 2 + rng.normal(0, 0.8)
        state = "RUNNING" if number >= n - 3 else rng.choice(["COMPLETE", "PRUNED", "FAIL"], p=[0.42, 0.55, 0.03])
        shown = {"COMPLETE": epochs, "PRUNED": rng.choice([4, 12]), "FAIL": rng.integers(0, 6), "RUNNING": 9}[state]
        epoch = np.arange(1, shown + 1)
        rate = 12 + 0.6 * topics - 3 * np.exp(-epoch / 6) + rng.normal(0, 0.1, shown)
        distortion = loss - 12 - 0.6 * topics + 350 * np.exp(-epoch / 3.5) + rng.normal(0, 0.4, shown)
        told = {"value": distortion + rate * np.minimum(1, epoch / 20), "distortion": distortion, "rate": rate}
        curves[number] = {k: v.tolist() for k, v in told.items()}
        ended = state in ("COMPLETE", "PRUNED") and shown
        value = float(told["value"][-1]) if ended else None
        trials.append({
            "number": number, "state": str(state), "value": value, "elbo": value, "num_topics": topics,
            "decoder_dropout": dropout, "initial_pseudocounts": pseudocounts,
            "distortion": float(distortion[-1]) if shown else None, "rate": float(rate[-1]) if shown else None,
            "epochs_trained": int(shown), "seconds": float(shown * rng.uniform(1.5, 2.5)) if ended else None,
            "device": f"cuda:{number % 2}",
        })  # fmt: skip
    return trials, curves


def a_little_later(study: Study, epoch: int) -> Study:
    """Return the study after three running trials told of an epoch, one of them ended, and another began."""
    trials, curves = list(study[0]), dict(study[1])
    running = [t["number"] for t in trials if t["state"] == "RUNNING"][-4:]
    for number in running:
        told = curves[number]
        curves[number] = {k: [*v, v[-1] - 1 / epoch] for k, v in told.items()}
        now = {name: curves[number][name][-1] for name in ("distortion", "rate")}
        trials[number] = {**trials[number], **now, "epochs_trained": trials[number]["epochs_trained"] + 1}
    first = running[0]
    value = curves[first]["value"][-1]
    trials[first] = {**trials[first], "state": "COMPLETE", "value": value, "elbo": value, "seconds": 60.0}
    number = len(trials)
    trials.append({**trials[first], "number": number, "state": "RUNNING", "value": None, "elbo": None,
                   "seconds": None, "epochs_trained": 1})  # fmt: skip
    curves[number] = {k: v[:1] for k, v in curves[first].items()}
    return trials, curves


def size(text: Any) -> float:
    """Return megabytes of what is sent, buffers included."""
    import json

    return (len(json.dumps(text.content, default=str)) + sum(len(b.data) for b in text.buffers)) / 1e6


def measure(n: int) -> None:
    """Print what `n` trials cost."""
    study = synthetic(n)
    began = time.process_time()
    figures, document = TrialFigures(), Document()
    for name in NAMES:
        document.add_root(figures.pane(name).object)
    figures.update(*study)
    filled = time.process_time() - began
    page = Serializer(deferred=True).serialize(document.roots)
    whole = time.process_time() - began
    sent: list[Any] = []
    document.on_change(sent.append)
    took, took_whole, sizes = [], [], []
    for i in range(30):
        study = a_little_later(study, i + 10)
        sent.clear()
        began = time.process_time()
        figures.update(*study)
        took.append(time.process_time() - began)
        serializer = Serializer(references=document.models.synced_references, deferred=True)
        patch = serializer.serialize([event for event in sent])
        took_whole.append(time.process_time() - began)
        sizes.append(size(patch))
    print(
        f"{n:6d} trials: {filled:.2f} s to make and fill, {whole:.2f} s with writing the page, {size(page):.2f} MB; "
        f"update {1e3 * statistics.median(took):.1f} ms, {1e3 * statistics.median(took_whole):.1f} ms with writing it "
        f"(at most {1e3 * max(took_whole):.1f}), {1e3 * statistics.median(sizes):.1f} kB"
    )


def main(run: Callable[[int], None] = measure) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 5000])
    for n in parser.parse_args().trials:
        run(n)


if __name__ == "__main__":
    main()
