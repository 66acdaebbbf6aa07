"""Who may see and do what: roles, owners, what is shared; an audit line for each action."""

from __future__ import annotations

import json
import os
from pathlib import Path

import optuna
import pytest

from mira_app.serving.accounts import Accounts
from mira_app.serving.login import name_in
from mira_app.serving.people import ALONE, AccessError, People, Person
from mira_app.settings import Settings
from mira_app.studies import Studies
from mira_app.workspace import Workspace
from mira_core import jobs
from mira_core.data.simulate import simulate_expression
from mira_core.errors import DataError, JobError, MiraError, TuningError
from mira_core.files import write_json
from mira_core.tuning import storage

ANN, BOB, VIC, ADA = Person("ann", "user"), Person("bob", "user"), Person("vic", "viewer"), Person("ada", "admin")
GONE = Person("gone", "")
MODEL = {"feature_type": "expression", "num_topics": 3, "num_epochs": 1}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A workspace of a lab, in which nothing is started: jobs stay in the queue."""
    for folder in ("shared", "personal/ann", "personal/bob"):
        (tmp_path / folder).mkdir(parents=True)
    cells = simulate_expression(60, 30, 3, seed=1)
    cells.write_h5ad(tmp_path / "shared" / "all.h5ad")
    cells.write_h5ad(tmp_path / "personal" / "ann" / "own.h5ad")
    whole = Workspace(Settings((tmp_path / "shared",), tmp_path / "workspace", personal=tmp_path / "personal"))
    monkeypatch.setattr(whole.dispatcher, "wake", lambda: None)
    return whole


def of(lab: Workspace, person: Person) -> Workspace:
    return lab.seen_by(lambda: person)


def end(lab: Workspace, key: str, state: str = "finished") -> None:
    """Let a job have ended."""
    lab.dispatcher.withdraw(key)
    write_json(lab.jobs_folder / key / "status.json", {"state": state, "ended": 1.0})


def audit(lab: Workspace) -> list[tuple[str, str, str]]:
    lines = map(json.loads, lab.audit.path.read_text().splitlines())
    return [(line["person"], line["action"], line["outcome"]) for line in lines]


# --- who somebody is --------------------------------------------------------------------------------------------------


def test_accounts_tell_the_role_and_a_change_holds_at_once(tmp_path):
    accounts = Accounts(tmp_path / "users.json")
    accounts.set("ann", "a long password", "viewer")
    who = People(accounts).who("ann")
    assert who() == Person("ann", "viewer")
    accounts.set("ann", role="admin")
    os.utime(tmp_path / "users.json", (1, 1))
    assert who() == Person("ann", "admin")
    accounts.remove("ann")
    assert who() == Person("ann", "")
    assert People(accounts).person(None) == Person("", ""), "nobody, not whoever has the server to themselves"
    assert People(accounts).person("token") == Person("token", "")


@pytest.mark.parametrize(
    ("name", "role"),
    [("eva@lab.org", "user"), ("ada@lab.org", "admin"), ("vic@lab.org", "viewer"), ("x@boss.org", "admin"),
     ("eva@elsewhere.org", ""), ("eva@lab.org.evil.org", ""), ("ADA@lab.org", "user")],
)  # fmt: skip
def test_who_oauth_lets_in_is_what_the_lists_say(name, role):
    people = People(None, ["ada@lab.org", "*@boss.org"], ["*@lab.org"], ["vic@lab.org"])
    assert people.person(name) == Person(name, role)


def test_who_has_the_server_to_themselves_may_do_all():
    assert People().person(None) is ALONE
    for login, name in (("none", None), ("none", "ann"), ("token", "holder of the token"), ("token", "ann")):
        assert Settings(login=login, members=("bob",)).people().person(name) is ALONE
    assert ALONE.owns("")
    assert ALONE.owns("ann")


def test_with_lists_who_has_no_name_does_not_come_in():
    assert People(members=["*"]).person(None) == Person("", "")
    assert People(admins=["ada"]).person("") == Person("", "")


def test_one_password_for_all_proves_no_name(tmp_path, monkeypatch):
    import panel as pn
    from tornado.web import create_signed_value

    cookies = {"user": create_signed_value("stirred", "user", "ada").decode()}
    monkeypatch.setattr(pn.config, "cookie_secret", "stirred")
    assert name_in(cookies) == "ada"
    monkeypatch.setattr(pn.config, "basic_auth", "known to all")
    assert name_in(cookies) is None
    (tmp_path / "passwords.json").write_text('{"ada": "hers"}')
    monkeypatch.setattr(pn.config, "basic_auth", str(tmp_path / "passwords.json"))
    assert name_in(cookies) == "ada"


@pytest.mark.parametrize("name", ["../ann", "..", ".", "a/b", "ann\n", "\0", "a" * 300, "ünï", "_" * 17])
def test_no_name_makes_a_folder_elsewhere(name):
    folder = Person(name, "user").folder
    assert Path(folder).name == folder
    assert folder not in ("", ".", "..")
    assert len(folder.encode()) <= 64
    assert folder != Person(name + "x", "user").folder


# --- what they see ----------------------------------------------------------------------------------------------------


def test_a_job_is_seen_by_its_owner_by_admins_and_by_whom_it_is_shared_with(lab):
    key = of(lab, ANN).submit("0/all.h5ad", MODEL)
    assert jobs.read_spec(lab.jobs_folder / key)["owner"] == "ann"

    def seen() -> set[str]:
        people = (ANN, BOB, VIC, ADA, GONE)
        lists = {p.name for p in people if [j.key for j in of(lab, p).jobs()] == [key]}
        found = set()
        for p in people:
            try:
                of(lab, p).folder_of(key)
                found.add(p.name)
            except JobError:
                pass
        assert found == lists
        return found

    assert seen() == {"ann", "ada"}
    of(lab, ANN).share(key, ["bob"])
    assert seen() == {"ann", "ada", "bob"}
    of(lab, ANN).share(key, ["*"])
    assert seen() == {"ann", "ada", "bob", "vic"}
    of(lab, ADA).share(key, [])
    assert seen() == {"ann", "ada"}


def test_what_was_run_without_accounts_is_the_admins(lab):
    key = lab.submit("0/all.h5ad", MODEL)
    assert [j.key for j in of(lab, ADA).jobs()] == [key]
    assert of(lab, ANN).jobs() == []


def test_each_has_a_folder_of_their_own_and_uploads_that_others_do_not_see(lab, tmp_path):
    ann, bob, ada = (of(lab, p) for p in (ANN, BOB, ADA))
    assert [s.key for s in ann.data.sources()][2:] == ["0/all.h5ad", "1/own.h5ad"]
    assert [s.key for s in bob.data.sources()][2:] == ["0/all.h5ad"]
    with pytest.raises(DataError):
        bob.data.path_of("1/own.h5ad")
    for escape in ("1/../ann/own.h5ad", "2/../ann/up.h5ad", "3/x.h5ad", "-1/own.h5ad"):
        with pytest.raises(DataError):
            bob.data.path_of(escape)
    place = ann.folder_for_upload("up.h5ad", 10)
    assert place == tmp_path / "workspace" / "uploads" / "ann"
    place.mkdir(parents=True)
    simulate_expression(60, 30, 3, seed=1).write_h5ad(place / "up.h5ad")
    assert ann.data.key_of(place / "up.h5ad") == "2/up.h5ad"
    assert ann.data.describe("2/up.h5ad").n_cells == 60
    with pytest.raises(DataError):
        bob.data.path_of("2/up.h5ad")
    assert ada.data.path_of("2/ann/up.h5ad") == place / "up.h5ad", "admins see all uploads"


def test_who_may_not_come_in_sees_nothing(lab):
    lab.submit("0/all.h5ad", MODEL)
    gone = of(lab, GONE)
    assert gone.jobs() == []
    for look in (gone.data.sources, lambda: gone.data.browse("0"), lambda: gone.data.path_of("0/all.h5ad")):
        with pytest.raises(AccessError):
            look()


def test_a_study_is_its_beginners_and_one_from_elsewhere_everybodys(lab):
    tune = {"study": "of ann", "min_topics": 3, "max_topics": 5}
    whole = Studies(lab)
    ann, bob, vic, ada = (whole.seen_by(of(lab, p)) for p in (ANN, BOB, VIC, ADA))
    key = ann.begin("0/all.h5ad", {"feature_type": "expression"}, tune)
    assert [s.sees("of ann") for s in (ann, bob, vic, ada)] == [True, False, False, True]
    assert all(s.sees("of Python elsewhere") for s in (ann, bob, vic, ada))
    with pytest.raises(TuningError, match="not shared with you"):
        bob.ask("of ann", print)
    with pytest.raises(TuningError, match="not shared with you"):
        bob.follow("of ann", None, print)
    of(lab, ANN).share(key, ["bob", "vic"])
    assert bob.sees("of ann")
    with pytest.raises(AccessError, match="belongs to ann"):
        bob.ask("of ann", print)
    with pytest.raises(AccessError, match="belongs to ann"):
        bob.go_on("of ann")
    with pytest.raises(AccessError, match="role"):
        vic.ask("of Python elsewhere", print)
    with pytest.raises(TuningError, match="there is no study"):
        bob.ask("of Python elsewhere", print)


def test_a_name_is_whose_job_took_it_even_before_the_study_is_in_the_storage(lab):
    tune = {"study": "of ann", "min_topics": 3, "max_topics": 5}
    whole = Studies(lab)
    ann, bob = (whole.seen_by(of(lab, p)) for p in (ANN, BOB))
    key = ann.begin("0/all.h5ad", {"feature_type": "expression"}, tune)
    for _ in ("while it waits", "once it has ended"):
        with pytest.raises(TuningError, match="there is a study 'of ann' already"):
            bob.begin("0/all.h5ad", {"feature_type": "expression"}, tune)
        lab.dispatcher.withdraw(key)
    assert ann.begin("0/all.h5ad", {"feature_type": "expression"}, tune) != key


def test_all_runs_of_a_study_are_shared_and_no_other_runs_it_again(lab):
    tune = {"study": "of ann", "min_topics": 3, "max_topics": 5}
    whole = Studies(lab)
    ann, bob = (whole.seen_by(of(lab, p)) for p in (ANN, BOB))
    key = ann.begin("0/all.h5ad", {"feature_type": "expression"}, tune)
    lab.dispatcher.withdraw(key)
    later = ann.go_on("of ann")
    ann.share("of ann", ["bob"])
    assert lab.shared_with(key) == lab.shared_with(later) == ("bob",)
    with pytest.raises(AccessError):
        bob.share("of ann", ["*"])
    # Run again, it would write into Ann's study.
    for workspace in (of(lab, BOB), of(lab, ANN)):
        with pytest.raises(JobError, match="gone on with on the Tune page"):
            workspace.rerun(key)


def test_a_study_is_deleted_by_whom_it_belongs_to_with_its_jobs(lab):
    whole = Studies(lab)
    ann, bob, ada = (whole.seen_by(of(lab, p)) for p in (ANN, BOB, ADA))
    optuna.create_study(study_name="from elsewhere", storage=whole.url)
    optuna.create_study(study_name="of ann", storage=whole.url)
    for name in ("of ann", "with topics"):
        spec = {"study": name, "min_topics": 3, "max_topics": 5, "storage": whole.url}
        key = of(lab, ANN)._submit("demo:pbmc700", {"feature_type": "expression"}, name, kind="tune", tune=spec)
    with pytest.raises(AccessError):
        bob.delete("from elsewhere")
    with pytest.raises(TuningError, match="is run now"):
        ann.delete("of ann")
    for key, _ in lab.specs("tune"):
        lab.dispatcher.withdraw(key)
    with pytest.raises(JobError, match="goes with its study"):
        of(lab, ANN).delete(key)
    with pytest.raises(TuningError, match="not shared with you"):
        bob.delete("of ann")
    model = lab.settings.workspace / "model.safetensors"
    model.write_bytes(b"")
    predict = {"model": str(model), "study": "with topics", "trial": 3}
    of(lab, ANN)._submit("demo:pbmc700", {}, "trial 3", kind="predict", predict=predict)
    with pytest.raises(TuningError, match="the topics of its trials 3 are on cells"):
        ann.delete("with topics")
    ann.delete("of ann")
    ada.delete("from elsewhere")
    assert optuna.get_all_study_names(whole.url) == []
    assert [spec["name"] for _, spec in lab.specs("tune")] == ["with topics"]


def test_a_study_that_an_admin_went_on_with_is_still_its_beginners_to_share_and_to_go_on_with(lab):
    tune = {"study": "of ann", "min_topics": 3, "max_topics": 5}
    whole = Studies(lab)
    ann, bob, ada = (whole.seen_by(of(lab, p)) for p in (ANN, BOB, ADA))
    lab.dispatcher.withdraw(ann.begin("0/all.h5ad", {"feature_type": "expression"}, tune))
    later = ada.go_on("of ann")
    lab.dispatcher.withdraw(later)
    ada.share("of ann", ["bob"])
    for refused in (lambda: bob.go_on("of ann"), lambda: bob.share("of ann", ["*"])):
        with pytest.raises(AccessError, match="belongs to ann"):
            refused()
    ann.share("of ann", [])
    assert not bob.sees("of ann")
    assert {lab.shared_with(key) for key in whole.readings.jobs_of("of ann")} == {()}
    with pytest.raises(TuningError, match="not shared with you"):
        bob.share("of ann", ["bob"])
    key = ann.go_on("of ann")
    assert jobs.read_spec(lab.jobs_folder / key)["owner"] == "ann"
    assert {person for person, action, outcome in audit(lab) if outcome == "done"} == {"ann", "ada"}


@pytest.mark.parametrize("away", ["get_all_studies", "delete_study"])
def test_a_study_whose_storage_is_away_stays_its_beginners(lab, monkeypatch, away):
    whole = Studies(lab)
    ann = whole.seen_by(of(lab, ANN))
    key = ann.begin("0/all.h5ad", {"feature_type": "expression"}, {"study": "of ann", "min_topics": 3, "max_topics": 5})
    lab.dispatcher.withdraw(key)
    optuna.create_study(study_name="of ann", storage=whole.url)
    whole.readings.read("of ann")

    def refuse(*asked):
        raise ConnectionError("refused")

    with monkeypatch.context() as then:
        then.setattr("mira_app.studies.patiently", lambda action, patience: storage.patiently(action, 0.0))
        then.setattr("mira_core.tuning.reading.PATIENCE", 0.0)
        then.setattr(whole.readings.opened, away, refuse)
        with pytest.raises(TuningError, match="has not answered"):
            ann.delete("of ann")
    assert whole.readings.jobs_of("of ann") == [key]
    assert not whole.seen_by(of(lab, BOB)).sees("of ann")
    ann.delete("of ann")
    assert whole.readings.jobs_of("of ann") == optuna.get_all_study_names(whole.url) == []


# --- what they do -----------------------------------------------------------------------------------------------------

ACTIONS = {
    "submit": lambda w, key: w.submit("0/all.h5ad", MODEL),
    "test_learning_rates": lambda w, key: w.test_learning_rates("0/all.h5ad", MODEL),
    "estimate_topics": lambda w, key: w.estimate_topics("demo:pbmc700", {"feature_type": "expression"}),
    "estimate": lambda w, key: w.estimate("0/all.h5ad", MODEL),
    "folder_for_upload": lambda w, key: w.folder_for_upload("x.h5ad", 1),
    "rerun": lambda w, key: w.rerun(key),
    "stop": lambda w, key: w.stop(key),
    "resume": lambda w, key: w.resume(key),
    "share": lambda w, key: w.share(key, ["*"]),
    "delete": lambda w, key: w.delete(key),
    "prefer": lambda w, key: w.prefer(key, 5),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_viewer_changes_nothing(lab, action):
    key = of(lab, ANN).submit("0/all.h5ad", MODEL)
    of(lab, ANN).share(key, ["*"])
    before = {p: p.read_bytes() for p in lab.settings.workspace.rglob("*.json")}
    with pytest.raises(AccessError):
        ACTIONS[action](of(lab, VIC), key)
    assert {p: p.read_bytes() for p in lab.settings.workspace.rglob("*.json")} == before
    assert not (lab.jobs_folder / key / "stop").exists()
    assert audit(lab)[-1][::2] == ("vic", "refused")


@pytest.mark.parametrize("action", ["stop", "resume", "share", "delete", "prefer"])
def test_what_belongs_to_others_is_not_changed_even_if_it_is_shared(lab, action):
    key = of(lab, ANN).submit("0/all.h5ad", MODEL)
    with pytest.raises(JobError, match="not shared with you"):
        ACTIONS[action](of(lab, BOB), key)
    of(lab, ANN).share(key, ["*"])
    with pytest.raises(AccessError):
        ACTIONS[action](of(lab, BOB), key)
    assert audit(lab)[-1][::2] == ("bob", "refused")
    assert (lab.jobs_folder / key / "job.json").is_file()


def test_a_shared_job_is_run_again_as_ones_own(lab):
    key = of(lab, ANN).submit("0/all.h5ad", MODEL)
    of(lab, ANN).share(key, ["bob"])
    mine = of(lab, BOB).rerun(key)
    assert jobs.read_spec(lab.jobs_folder / mine)["owner"] == "bob"
    assert [j.key for j in of(lab, ANN).jobs()] == [key]


def test_every_action_leaves_a_line_that_only_the_server_reads(lab):
    ann, ada = of(lab, ANN), of(lab, ADA)
    key = ann.submit("0/all.h5ad", MODEL)
    ada.prefer(key, 5)
    ann.stop(key)
    ann.share(key, ["bob"])
    with pytest.raises(MiraError):
        ann.resume("nothing")
    end(lab, key)
    ann.delete(key)
    assert audit(lab) == [
        ("ann", "begin fit", "done"), ("ada", "priority 5", "done"), ("ann", "stop", "done"), ("ann", "share", "done"),
        ("ann", "delete", "done"),
    ]  # fmt: skip
    assert lab.audit.path.stat().st_mode & 0o077 == 0


def test_a_full_audit_file_is_put_aside(lab, monkeypatch):
    monkeypatch.setattr("mira_app.serving.audit.LARGEST", 200)
    for _ in range(3):
        lab.audit.tell("ann", "stop", "x" * 100)
    assert len(list(lab.audit.path.parent.glob("audit*.jsonl"))) >= 1
    assert not lab.audit.path.exists() or lab.audit.path.stat().st_size < 200


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_nothing_is_begun_beyond_a_quota_and_deleting_makes_room(tmp_path, monkeypatch):
    whole = Workspace(Settings((), tmp_path / "workspace", quota=10**6))
    monkeypatch.setattr(whole.dispatcher, "wake", lambda: None)
    monkeypatch.setattr("mira_app.disk.FRESH", 0.0)
    ann = of(whole, ANN)
    key = ann.submit("demo:pbmc700", MODEL)
    end(whole, key)
    (whole.jobs_folder / key / "result").mkdir()
    (whole.jobs_folder / key / "result" / "cells.h5ad").write_bytes(bytes(2 * 10**6))
    with pytest.raises(JobError, match=r"take 0\.0 GB, and 0\.0 GB are yours"):
        ann.submit("demo:pbmc700", MODEL)
    with pytest.raises(JobError, match="are yours"):
        ann.folder_for_upload("x.h5ad", 1)
    of(whole, BOB).submit("demo:pbmc700", MODEL)
    of(whole, ADA).submit("demo:pbmc700", MODEL)
    ann.delete(key)
    with pytest.raises(JobError, match="are yours"):
        ann.folder_for_upload("x.h5ad", 10**6)
    ann.submit("demo:pbmc700", MODEL)


def test_what_others_need_is_not_deleted(lab):
    ann = of(lab, ANN)
    key = ann.submit("0/all.h5ad", MODEL)
    with pytest.raises(JobError, match="is waiting; stop it"):
        ann.delete(key)
    end(lab, key)
    model = lab.jobs_folder / key / "result" / "model.safetensors"
    model.parent.mkdir()
    model.write_bytes(b"")
    user = of(lab, BOB)._submit("demo:pbmc700", {}, "predicted", kind="predict", predict={"model": str(model)})
    with pytest.raises(JobError, match="needed by predicted"):
        ann.delete(key)
    end(lab, user)
    of(lab, BOB).delete(user)
    ann.delete(key)
    assert not list(lab.jobs_folder.iterdir())
