"""What really runs, against a gcloud that answers from a list."""

import json

import pytest
from cluster_doubles import Fake

from qwenjax.cluster import pod as pods
from qwenjax.cluster import supervise, worker
from qwenjax.cluster.__main__ import main
from qwenjax.cluster.pod import Pod
from qwenjax.cluster.runner import CommandFailed, Runner, failure_kind
from qwenjax.cluster.worker import JobState

POD = Pod("pod", "us-west4-a", "my-project", "v5e-8", capacity="spot", source="qwenjax")
DENIED = "ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied"
FULL = 'ERROR: {"code": 8, "message": "There is no more capacity in the zone"}'
GONE = "ERROR: NOT_FOUND: Resource was not found"
OUT = ("", "ssh: connect to host 10.0.0.2 port 22: Connection timed out", 255)


@pytest.fixture
def gcloud(tmp_path, monkeypatch) -> Fake:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return Fake(tmp_path, "gcloud", "git")


@pytest.fixture
def runner():
    """A runner whose waits are only noted."""
    waits = []
    one = Runner(sleep=waits.append)
    one.waits = waits
    return one


def states(*given: tuple) -> str:
    return (
        "noise of ssh\n" + "\n".join(worker.show_state(JobState(f"host-{i}", *s)) for i, s in enumerate(given)) + "\n"
    )


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["create", "--name=pod", "--project=p", "--zone=us-west4-a", "--type=v5e-8"]) == 1
    assert "gcloud is not installed: install the Google Cloud CLI" in capsys.readouterr().err
    assert pods.known_as("pod") is None  # nothing was made


def test_a_refusal_stops_at_once_and_says_what_to_do(gcloud, runner, capsys):
    gcloud.answer("create", ("", DENIED, 1))
    with pytest.raises(CommandFailed, match=r"roles/tpu.admin.*gcloud services enable tpu.googleapis.com") as failed:
        supervise.create(POD, runner)
    assert failed.value.kind == "denied"
    assert len(gcloud.calls) == 1
    assert not runner.waits
    assert DENIED in capsys.readouterr().err  # gcloud's own words are not hidden
    assert pods.known_as("pod") is None


def test_no_capacity_is_tried_again_with_growing_waits(gcloud, runner):
    gcloud.answer("create", ("", FULL, 1), ("", FULL, 1), "")
    gcloud.answer("queued-resources describe", "WAITING_FOR_RESOURCES\n", "PROVISIONING\n", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "CREATING\n", "READY\n")  # the request may be ahead of its slice
    supervise.create(POD, runner)
    assert runner.waits == [30, 60, supervise.POLL_SECONDS, supervise.POLL_SECONDS, supervise.POLL_SECONDS]
    assert pods.known_as("pod") == POD


def test_tries_end(gcloud, runner):
    gcloud.answer("create", ("", FULL, 1))
    with pytest.raises(CommandFailed, match="exit code 1"):
        supervise.create(POD, runner)
    assert runner.waits == [30, 60, 120, 240, 480]


def test_create_again_finds_what_exists_but_not_another_pod(gcloud, runner, capsys):
    gcloud.answer("create", ("", "ERROR: ALREADY_EXISTS: Resource 'pod' already exists", 1))
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    with pytest.raises(CommandFailed, match="was not created by this command from here"):
        supervise.create(POD, runner)  # a colleague's, perhaps
    pods.remember(POD)
    supervise.create(POD, runner)
    assert "pod exists already" in capsys.readouterr().err
    other = Pod("pod", "us-west4-a", "my-project", "v5e-16")
    with pytest.raises(CommandFailed, match="was not created by this command from here"):
        supervise.create(other, runner)
    assert pods.known_as("pod") == POD


def test_a_failed_request_is_told_and_not_waited_for(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACCEPTED\n", "FAILED\n")
    with pytest.raises(CommandFailed, match="was preempted or has failed"):
        supervise.create(POD, runner)
    assert pods.known_as("pod") == POD  # it is still there to be deleted


def test_a_run_goes_on_over_a_preemption(gcloud, runner, capsys):
    pods.remember(POD)
    request = ["ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"]
    gcloud.answer("queued-resources describe", *request)
    # First life: ready, the job is started, runs, then nobody answers and the slice is preempted. Second life: done.
    gcloud.answer("tpu-vm describe", "READY\n", "PREEMPTED\n", "READY\n")
    new = ("", "bash: qwenjax/venv/bin/python: No such file or directory", 127)
    running, done = states(("running",)), states(("finished", 0, 9.0))
    gcloud.answer("--job=train status", new, running, OUT, new, running, done)
    assert supervise.launch(POD, "train", ["python", "-m", "x"], 3, runner) == 0
    happened = gcloud.verbs("delete", "create", "bootstrap_vm.sh qwenjax", "start --", "--job=train status")
    boot = ["bootstrap_vm.sh qwenjax", "start --"]
    look = "--job=train status"
    assert happened == [look, *boot, look, look, "delete", "create", look, *boot, look, look]
    started = [call for call in gcloud.calls if "start --" in " ".join(call)]
    assert started[0] == started[1]  # the same command again
    assert "billed until you delete it" in capsys.readouterr().err


def test_a_killed_worker_takes_the_job_down_and_up_again_on_the_same_slice(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    dead = states(("finished", 137, 50.0), ("running",))
    gcloud.answer("--job=train status", states(("none",)), dead, states(("lost",)), states(("finished", 0, 9.0)))
    assert supervise.launch(POD, "train", ["x"], 1, runner) == 0
    happened = gcloud.verbs("delete", "create", "start --", "--job=train stop")
    assert happened == ["start --", "--job=train stop", "start --"]


def test_a_failure_of_the_command_itself_is_not_repeated(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    gcloud.answer("--job=train status", states(("finished", 2, 1.0)))
    assert supervise.launch(POD, "train", ["x"], 5, runner) == 2
    assert gcloud.verbs("start --", "delete") == ["start --"]


def test_retries_are_counted(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    gcloud.answer("--job=train status", states(("lost",)))
    with pytest.raises(CommandFailed, match="interrupted 3 times; run the same command again"):
        supervise.launch(POD, "train", ["x"], 2, runner)
    assert len(gcloud.verbs("start --")) == 3


def test_a_pod_deleted_on_purpose_is_not_made_anew(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACTIVE\n", ("", GONE, 1))
    gcloud.answer("tpu-vm describe", "READY\n")
    gcloud.answer("--job=train status", ("", GONE, 1))
    with pytest.raises(CommandFailed, match="does not exist in my-project, us-west4-a"):
        supervise.launch(POD, "train", ["x"], 5, runner)
    assert not gcloud.verbs("create", "delete")


def test_launch_creates_nothing_that_was_not_created(gcloud, runner):
    gcloud.answer("describe", ("", GONE, 1))
    with pytest.raises(CommandFailed, match="`create` makes it"):
        supervise.launch(POD, "train", ["x"], 5, runner)
    assert len(gcloud.calls) == 1


def test_a_slice_that_does_not_answer_is_never_deleted(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    gcloud.answer("--job=train status", *[OUT] * 4, states(("finished", 0, 1.0)))
    assert supervise.launch(POD, "train", ["x"], 1, runner) == 0
    assert not gcloud.verbs("create", "delete")


def test_patience_ends(gcloud, runner, monkeypatch):
    monkeypatch.setattr(supervise, "MAX_SILENT_POLLS", 3)
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    gcloud.answer("--job=train status", OUT)
    with pytest.raises(CommandFailed, match="is there, and billed, but has not answered 3 times"):
        supervise.launch(POD, "train", ["x"], 1, runner)
    assert not gcloud.verbs("create", "delete")


def test_watching_again_installs_nothing_under_a_running_job(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    gcloud.answer("--job=train status", states(("running",)), states(("running",)), states(("finished", 0, 1.0)))
    assert supervise.launch(POD, "train", ["x"], 1, runner) == 0
    assert gcloud.verbs("bootstrap_vm.sh", "start --") == ["start --"]  # which leaves it alone


def test_a_job_stopped_on_purpose_is_not_started_again(gcloud, runner):
    gcloud.answer("queued-resources describe", "ACTIVE\n")
    gcloud.answer("tpu-vm describe", "READY\n")
    gcloud.answer("--job=train status", states(("running",)), states(("finished", 3, 5.0, True)))
    assert supervise.launch(POD, "train", ["x"], 5, runner) == 3
    assert gcloud.verbs("start --") == ["start --"]


OUTCOMES = [
    ([("running",), ("running",)], None),
    ([("finished", 0), ("running",)], None),
    ([("finished", 0), ("finished", 0)], 0),
    ([("finished", 0)], None),  # the other did not answer
    ([("finished", 1), ("running",)], 1),
    ([("finished", 1), ("finished", 137)], "restart"),  # the first lost its peer
    ([("finished", 3), ("finished", 0)], "restart"),
    ([("finished", 3, 5.0, True), ("running", None, 0, True)], 3),  # by `stop`
    ([("finished", 1), ("lost",)], "restart"),
    ([("none",), ("running",)], "restart"),
    ([("finished", 1, 3600.0), ("finished", 1, 3600.0)], "restart"),
    ([("finished", 2, 3600.0), ("finished", 2, 3600.0)], 2),
]


@pytest.mark.parametrize(("found", "meaning"), OUTCOMES)
def test_job_outcome(found, meaning):
    assert supervise.job_outcome([JobState("host", *one) for one in found], workers=2) == meaning


KINDS = [
    (DENIED, 1, "denied"),
    (FULL, 1, "busy"),
    (GONE, 1, "absent"),
    (
        "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded",
        1,
        "quota",
    ),
    ("RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests' per minute", 1, "busy"),
    ("PERMISSION_DENIED: The tpu.googleapis.com API requires a quota project", 1, "denied"),
    ("Cloud TPU API has not been used in project 1 before or it is disabled", 1, "denied"),
    ("You do not currently have an active account selected. Please run: $ gcloud auth login", 1, "signed-out"),
    ("ERROR: TPU node pod is in state PREEMPTED", 1, "preempted"),
    ("", 255, "unreachable"),
    ("Traceback (most recent call last)", 1, "failed"),
]


@pytest.mark.parametrize(("said", "code", "wanted"), KINDS)
def test_what_errors_mean(said, code, wanted):
    assert failure_kind(said, code) == wanted


def test_delete_asks_for_the_name(gcloud, monkeypatch, capsys):
    pods.remember(POD)
    monkeypatch.setattr("sys.stdin.readline", lambda: "yes\n", raising=False)
    assert main(["delete", "--name=pod"]) == 1
    assert "nothing was deleted" in capsys.readouterr().err
    assert not gcloud.calls
    monkeypatch.setattr("sys.stdin.readline", lambda: "pod\n", raising=False)
    assert main(["delete", "--name=pod"]) == 0
    assert gcloud.verbs("delete pod", "list") == ["delete pod", "list", "list", "list"]
    assert pods.known_as("pod") is None


def test_delete_with_yes_does_not_ask_and_may_be_repeated(gcloud, capsys):
    pods.remember(POD)
    gcloud.answer("delete pod", ("", GONE, 1))
    assert main(["delete", "--name=pod", "--yes"]) == 0
    assert "pod was deleted already" in capsys.readouterr().err
    assert pods.known_as("pod") is None


def test_a_damaged_record_is_named(gcloud, tmp_path, capsys):
    path = tmp_path / "config" / "qwenjax" / "cluster" / "pod.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"name": "pod"}))
    assert main(["delete", "--name=pod", "--yes"]) == 1
    assert f"{path} is not the description of a pod" in capsys.readouterr().err
    assert not gcloud.calls
