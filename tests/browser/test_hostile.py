"""Files and links that mean harm, opened in a browser: told in words, nothing run, nothing shown as HTML."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import h5py
import pytest

import mira_core as mira
from tests.core.test_formats import Harm, bomb

from .conftest import MIRA, Server
from .test_pages import stored_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MARKUP = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with a folder of such files, and a secret beside it."""
    root = tmp_path_factory.mktemp("hostile")
    data = root / "lab"
    data.mkdir()
    secret = root / "secret"
    secret.mkdir()
    adata = mira.data.simulate_expression(60, 40, 3, seed=1)
    adata.write_h5ad(secret / "secret.h5ad")
    (data / "link.h5ad").symlink_to(secret / "secret.h5ad")
    (data / "out").symlink_to(secret)
    (data / "circle").symlink_to(data)
    (data / "ring.h5ad").symlink_to(data / "ring.h5ad")

    adata.uns["source"] = f"{MARKUP}<script>window.hacked=2</script>"
    adata.obs[MARKUP.replace("/", "")] = MARKUP
    adata.var["<b>bold</b>".replace("/", "")] = True
    adata.write_h5ad(data / f"{MARKUP}.h5ad")
    whole = (data / f"{MARKUP}.h5ad").read_bytes()
    (data / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    (data / "pickle.h5ad").write_bytes(pickle.dumps(Harm(root / "harm")))
    (data / "text.h5ad").write_text("no cells")
    bomb(data / "bomb.zarr.zip", 80_000_000)
    adata.write_h5ad(data / "elsewhere.h5ad")
    with h5py.File(data / "elsewhere.h5ad", "a") as f:
        f["layers/x"] = h5py.ExternalLink(str(secret / "secret.h5ad"), "/X")
    with h5py.File(data / "huge.h5ad", "w") as f:  # a few kB that claim a terabyte
        f.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        f.create_dataset("X", (10**6, 10**6), "i1", chunks=(1000, 1000), compression="gzip")
    zarr = data / "linked.zarr"
    zarr.mkdir()
    (zarr / ".zgroup").write_text('{"zarr_format": 2}')
    (zarr / "X").symlink_to(secret)
    with zipfile.ZipFile(data / "ways.zarr.zip", "w") as z:
        z.writestr(".zgroup", '{"zarr_format": 2}')
        z.writestr("../../harm/evil.txt", "evil")

    workspace = root / "workspace"
    server = Server(
        workspace,
        lambda port: [*MIRA, "serve", "--data", str(data), "--workspace", str(workspace), "--port", str(port)],
        {},
    )
    server.root = root
    yield server
    server.stop()


def unharmed(page, lab) -> None:
    assert page.evaluate("window.hacked === undefined")
    assert not page.locator("img[src=x]").count()
    assert not (lab.root / "harm").exists()
    assert lab.answers()


@pytest.mark.parametrize("places", [
    {
        "cut.h5ad": "cut.h5ad cannot be read: it is cut off",
        "pickle.h5ad": "pickle.h5ad is no HDF5 file",
        "text.h5ad": "text.h5ad is no HDF5 file",
        "bomb.zarr.zip": "would unpack from 0.1 to 80.0 MB, and is not opened",
        "elsewhere.h5ad": "holds a link",
        "huge.h5ad": "huge.h5ad",
        "linked.zarr": "it links to what is not in them",
        "ways.zarr.zip": "ways.zarr.zip",
    },
    {
        "../secret/secret.h5ad": "there is no data set",
        "link.h5ad": "there is no data set",
        "out/secret.h5ad": "there is no data set",
        "ring.h5ad": "there is no data set",
        "circle/circle/../../secret/secret.h5ad": "there is no data set",
        "/etc/passwd": "there is no data set",
        MARKUP: "there is no data set",
    },
], ids=["files", "ways out"])  # fmt: skip
def test_what_means_harm_is_told_and_not_opened(page, lab, places):
    for name, said in places.items():
        for where in ("data", "model"):
            page.goto(lab.url(f"?page={where}&data=0/{name}"))
            alert = page.get_by_role("alert").filter(has_text=said).first
            alert.wait_for(timeout=180_000)
            told = alert.text_content()
            assert "Traceback" not in told.partition("Details")[0], told
    unharmed(page, lab)


def test_the_list_shows_names_as_text_and_nothing_from_outside(page, lab):
    page.goto(lab.url("?page=data"))
    page.get_by_text("lab", exact=True).click()
    page.get_by_text(f"{MARKUP}.h5ad").wait_for()
    for hidden in ("link.h5ad", "out", "circle", "ring.h5ad", "secret.h5ad"):
        assert not page.get_by_text(hidden, exact=True).count(), hidden
    page.get_by_text(f"{MARKUP}.h5ad").click()
    page.get_by_text("Recipe", exact=True).wait_for(timeout=180_000)
    page.get_by_text("<script>window.hacked=2</script>").first.wait_for()
    page.get_by_text("Use another recipe").click()
    pasted = page.get_by_label("Or a recipe as JSON")
    for steps in ([{"step": MARKUP}], [{"step": "drop_missing", "column": MARKUP + "!"}]):
        pasted.fill(json.dumps(steps))
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Use it").click()
        page.get_by_role("alert").filter(has_text=MARKUP).first.wait_for(timeout=180_000)
    page.get_by_role("button", name="Set up a model").click()
    page.get_by_role("alert").filter(has_text=MARKUP).first.wait_for(timeout=180_000)
    unharmed(page, lab)


def test_links_to_what_is_no_job_no_recipe_and_no_page(page, lab):
    stored_run(lab.workspace, "run", 30)
    spec = lab.workspace / "jobs" / "run" / "job.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "name": MARKUP}))
    stored_run(lab.workspace, "other", 20)
    for query, said in {
        "page=train&job=../../secret": "there is no job",
        f"page=train&job={MARKUP}": "there is no job",
        "page=data&data=demo:pbmc700&recipe=../jobs/run": "there is no recipe",
        "page=model&data=demo:pbmc700&recipe=aaaaaaaaaaaa": "there is no recipe",
        "page=data&data=demo:../x": "there is no demo",
        "page=data&data=-1/cut.h5ad": "there is no data set",
        "page=data&data=9/cut.h5ad": "there is no data set",
    }.items():
        page.goto(lab.url(f"?{query}"))
        page.get_by_text(said).first.wait_for(timeout=180_000)
    page.goto(lab.url("?page=model&data=demo:pbmc700&test=../../secret"))
    page.get_by_text("The same in Python").wait_for(timeout=180_000)
    page.goto(lab.url("?page=train&job=other&beside=../../secret,run"))
    page.get_by_text(MARKUP).first.wait_for()
    page.goto(lab.url("?page=train&job=run"))
    page.get_by_text("step 30 of 30").wait_for()
    page.goto(lab.url("?page=../../etc&data=demo:pbmc700"))
    page.get_by_role("heading", name="Data").wait_for()
    unharmed(page, lab)


def test_names_of_uploads_stay_in_their_folder(page, lab):
    page.goto(lab.url("?page=data"))
    page.get_by_text("Drop a file here, or choose one").wait_for()
    for name, said in {
        "../../evil.h5ad": "cannot be the name of a file here",
        f"{MARKUP}2.h5ad": f"{MARKUP}2.h5ad is no HDF5 file",
        "bell\x07.h5ad": "cannot be the name of a file here",
        "x" * 230 + ".h5ad": "cannot be the name of a file here",
        ".hidden.h5ad": "cannot be the name of a file here",
        "a#b.h5ad": "cannot be the name of a file here",
    }.items():
        page.locator("input[type=file]").set_input_files(
            {"name": name, "mimeType": "application/octet-stream", "buffer": b"no cells"}
        )
        page.get_by_text(said).first.wait_for()
        page.goto(lab.url("?page=data"))  # so that the next one's words are its own
        page.get_by_text("Drop a file here, or choose one").wait_for()
    uploads = lab.workspace / "uploads"
    assert os.listdir(uploads) == [f"{MARKUP}2.h5ad"]
    assert not (lab.root / "evil.h5ad").exists()
    unharmed(page, lab)
