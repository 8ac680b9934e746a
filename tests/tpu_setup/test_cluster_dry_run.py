"""--dry-run prints the exact commands; nothing is run."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from qwenjax.cluster import gcloud
from qwenjax.cluster import pod as pods
from qwenjax.cluster.__main__ import main
from qwenjax.cluster.pod import Pod

WHERE = "--zone=us-west4-a --project=my-project"
SCOPES = "--scopes=https://www.googleapis.com/auth/cloud-platform"
QUEUED = "gcloud compute tpus queued-resources"
VM = "gcloud compute tpus tpu-vm"
XPK = "--cluster=pod --zone=us-west4-a --project=my-project"
IMAGE = "us-docker.pkg.dev/p/i/qwenjax:1"
BASE = ["--name=pod", "--project=my-project", "--zone=us-west4-a"]
TRAIN = ["--", "python", "-m", "qwenjax.train", "--exp=qwen14b", "--workdir=gcs/run"]
WORKER = "qwenjax/venv/bin/python -m qwenjax.cluster worker --job=train"


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    """No pods of this machine's user, and no program that could be run."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def dry(capsys, *words: str) -> list[str]:
    """The commands, without the comments between them."""
    verb, *rest = words
    assert main([verb, *BASE, "--dry-run", *rest]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]


CREATED = [
    ("--type=v4-128", "v4-128", "tpu-ubuntu2204-base", ""),
    ("--type=v5e-256 --spot", "v5litepod-256", "v2-alpha-tpuv5-lite", " --spot"),
    ("--type=v5litepod-16", "v5litepod-16", "v2-alpha-tpuv5-lite", ""),
    ("--type=v5p-256 --reserved", "v5p-256", "v2-alpha-tpuv5", " --reserved"),
    ("--type=v6e-256 --runtime-version=mine", "v6e-256", "mine", ""),
    ("--type=tpu7x-256", "tpu7x-256", "v2-alpha-tpu7-ubuntu2404", ""),
]


@pytest.mark.parametrize(("given", "accelerator", "runtime", "capacity"), CREATED)
def test_create_through_the_queue(capsys, given, accelerator, runtime, capacity):
    assert dry(capsys, "create", *given.split()) == [
        f"{QUEUED} create pod {WHERE} --node-id=pod --accelerator-type={accelerator} --runtime-version={runtime} "
        f"{SCOPES}{capacity}",
        f"{QUEUED} describe pod {WHERE} '--format=value(state.state)'",
    ]


def test_create_a_vm_at_once_and_several_slices(capsys):
    assert dry(capsys, "create", "--type=v5e-8", "--through=vm", "--spot") == [
        f"{VM} create pod {WHERE} --accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite {SCOPES} --spot",
        f"{VM} describe pod {WHERE} '--format=value(state)'",
    ]
    assert "--node-count=2 --node-prefix=pod --accelerator" in dry(capsys, "create", "--type=v5p-256", "--slices=2")[0]


def test_create_says_what_it_costs(capsys):
    main(["create", *BASE, "--type=v5p-256", "--slices=2", "--dry-run"])
    # 2 slices of 256 cores, 128 chips: 32 VMs each; 24 hours of 256 chips are 6,144 chip-hours
    assert "256 chips, 64 VMs, on-demand; an hour costs 256 chip-hours, a day 6,144" in capsys.readouterr().out


def test_gke_goes_through_xpk(capsys):
    words = ["--type=v6e-256", "--slices=2", "--through=gke", f"--image={IMAGE}", "--bucket=my-bucket"]
    size = "--tpu-type=v6e-256 --num-slices=2"
    assert dry(capsys, "create", *words) == [f"xpk cluster create {XPK} {size} --on-demand"]
    assert dry(capsys, "create", *words, "--reserved=mine") == [f"xpk cluster create {XPK} {size} --reservation=mine"]
    build, push, attach = dry(capsys, "bootstrap", *words)
    assert build == (f"docker build --file={ROOT}/tpu_setup/Dockerfile --build-arg=EXTRA=tpu --tag={IMAGE} {ROOT}")
    assert push == f"docker push {IMAGE}"
    assert attach.startswith(f"xpk storage attach pod-gcs {XPK} --type=gcsfuse --bucket=my-bucket ")
    assert dry(capsys, "launch", *words, "--retry=5", *TRAIN) == [
        f"xpk workload create {XPK} --workload=train --docker-image={IMAGE} --max-restarts=5 {size} "
        "'--command=python -m qwenjax.train --exp=qwen14b --workdir=gcs/run'"
    ]
    credentials, logs = dry(capsys, "logs", *words, "--follow")
    assert credentials == "gcloud container clusters get-credentials pod --location=us-west4 --project=my-project"
    assert logs == (
        "kubectl logs --selector=jobset.sigs.k8s.io/jobset-name=train,jobset.sigs.k8s.io/job-index=0,"
        "batch.kubernetes.io/job-completion-index=0 --all-containers --prefix --tail=100 --max-log-requests=256 "
        "--follow"
    )
    assert dry(capsys, "stop", *words) == [f"xpk workload delete {XPK} --workload=train --force"]
    assert dry(capsys, "delete", *words)[0] == f"xpk cluster delete {XPK} --force"
    assert dry(capsys, "profile", *words, "--trace=gcs/run/profile") == [
        "gcloud storage cp --recursive gs://my-bucket/run/profile profile"
    ]


def test_bootstrap_copies_this_checkout_and_runs_the_script(capsys):
    reach = f"{WHERE} --worker=all --batch-size=all"
    assert dry(capsys, "bootstrap", "--type=v5e-256", "--bucket=my-bucket") == [
        f"git -C {ROOT} archive --format=tar.gz --prefix=source/ --output=/tmp/qwenjax-source.tar.gz HEAD",
        f"{VM} scp {ROOT}/tpu_setup/bootstrap_vm.sh /tmp/qwenjax-source.tar.gz pod: {reach}",
        f"{VM} ssh pod {reach} '--command=bash bootstrap_vm.sh qwenjax-source.tar.gz my-bucket'",
    ]
    source = "qwenjax[tpu] @ git+https://example.com/qwenjax"
    copy, run = dry(capsys, "bootstrap", "--type=v5e-256", f"--source={source}")
    assert copy.endswith(f"bootstrap_vm.sh pod: {reach}")
    assert shlex.split(shlex.split(run)[-1].removeprefix("--command=")) == ["bash", "bootstrap_vm.sh", source]


def test_launch_reaches_all_workers_of_all_slices(capsys):
    command = "--command=" + shlex.join([*shlex.split(WORKER), "start", *TRAIN])
    assert dry(capsys, "launch", "--type=v5e-256", *TRAIN) == [
        shlex.join([*shlex.split(f"{VM} ssh pod {WHERE} --worker=all --batch-size=all"), command])
    ]
    assert dry(capsys, "launch", "--type=v5e-256", "--slices=2", *TRAIN) == [
        shlex.join([*shlex.split(f"{QUEUED} ssh pod {WHERE} --node=all --worker=all --batch-size=all"), command])
    ]


def test_launch_with_retries_shows_every_step_it_may_take(capsys):
    lines = dry(capsys, "launch", "--type=v5e-256", "--spot", "--retry=3", *TRAIN)
    told = [
        "archive", "scp", "bootstrap_vm.sh", "start", "worker --job=train status", "delete", "create", "describe",
    ]  # fmt: skip
    assert len(lines) == len(told)
    assert all(word in line for word, line in zip(told, lines))


def test_logs_stop_and_profile(capsys):
    one = f"{VM} ssh pod {WHERE} --worker=0"
    every = f"{VM} ssh pod {WHERE} --worker=all --batch-size=all"
    assert dry(capsys, "logs", "--type=v5e-256", "--follow") == [f"{one} '--command={WORKER} --lines=100 --follow log'"]
    assert dry(capsys, "logs", "--type=v5e-256", "--workers=all", "--lines=5") == [
        f"{every} '--command={WORKER} --lines=5 --prefix log'"
    ]
    assert dry(capsys, "stop", "--type=v5e-256") == [f"{every} '--command={WORKER} --grace=300 stop'"]
    assert dry(capsys, "profile", "--type=v5e-256", "--trace=gcs/run/profile", "--out=trace") == [
        f"{VM} scp pod:qwenjax/gcs/run/profile trace {WHERE} --worker=0 --recurse"
    ]
    assert dry(capsys, "profile", "--type=v5e-256", "--port=9012") == [f"{one} -- -N -L 9012:localhost:9012"]


def test_delete_and_status_list_what_is_left_everywhere(capsys):
    left = [
        f"{QUEUED} list --zone=- --project=my-project",
        f"{VM} list --zone=- --project=my-project",
        "gcloud container clusters list --project=my-project",
    ]
    assert dry(capsys, "delete", "--type=v5e-256") == [f"{QUEUED} delete pod {WHERE} --force --quiet", *left]
    assert dry(capsys, "delete", "--type=v5e-8", "--through=vm")[0] == f"{VM} delete pod {WHERE} --quiet"
    assert main(["status", "--project=my-project", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == left


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_any_argument_arrives_as_it_is(words):
    printed = shlex.join(gcloud.worker(Pod("pod", "us-west4-a", "p", "v5e-8"), "train", "start", "--", *words))
    remote = shlex.split(printed)[-1].removeprefix("--command=")  # what the VM's shell gets
    assert shlex.split(remote)[len(shlex.split(WORKER)) :] == ["start", "--", *words]


def test_a_created_pod_is_known_by_its_name_and_options_override(capsys):
    pods.remember(Pod("pod", "us-west4-a", "my-project", "v5e-256", capacity="spot", bucket="my-bucket"))
    assert main(["create", *BASE, "--type=v5e-8", "--dry-run"]) == 0
    assert "--spot" not in capsys.readouterr().out  # creating starts from nothing
    assert main(["delete", "--name=pod", "--dry-run"]) == 0
    assert f"delete pod {WHERE} --force" in capsys.readouterr().out
    assert main(["delete", "--name=pod", "--zone=us-east5-b", "--dry-run"]) == 0
    assert "delete pod --zone=us-east5-b" in capsys.readouterr().out
    assert main(["status", "--name=pod", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"'--command={WORKER} status'")
    assert main(["status", "--name=other", "--dry-run"]) == 2
    assert pods.known_as("pod").zone == "us-west4-a"  # a dry run changes nothing


WRONG = [
    ("delete --name=other", "no pod 'other' was created from here (known: none); give --project, --zone, --type"),
    ("create --name=Pod --project=p --zone=us-west4-a --type=v5e-8", "--name=Pod: wanted up to 40 lower-case"),
    ("create --name=pod --project=p --zone=us-west4 --type=v5e-8", "wanted a zone such as us-west4-a"),
    ("create --name=pod --project=p --zone=us-west4-a --type=v5e", "no TPU type 'v5e'"),
    ("create --name=pod --project=p --zone=us-west4-a --type=v5e-8 --spot --reserved", "exclude each other"),
    ("create --name=pod --project=p --zone=us-west4-a --type=v5e-8 --slices=2 --through=vm", "--through=queued or gke"),
    ("create --name=pod --project=p --zone=us-west4-a --type=v5e-8 --through=gke", "give --image="),
    ("create --name=pod --project=p --zone=us-west4-a --type=v5e-8 --bucket=gs://b/c", "without gs://"),
    ("launch --name=pod --project=p --zone=us-west4-a --type=v5e-8 --job=A -- true", "--job=A: wanted"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_what_makes_no_sense_is_refused_before_anything_runs(words, said, capsys):
    assert main(words.split()) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert said in told.err
    assert not told.out
