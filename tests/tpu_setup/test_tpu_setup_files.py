"""The scripts, the Dockerfile and the walk-through: checked, run against doubles, and true."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_doubles import Fake
from paths import ROOT

from qwenjax.cluster.__main__ import main

FOLDER = ROOT / "tpu_setup"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_whole(script):
    assert "set -euo pipefail" in script.read_text().splitlines()
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shellcheck_clean(script):
    done = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def vm(tmp_path, monkeypatch) -> Fake:
    """A home directory whose programs are doubles, but for the shell's own."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "mkdir", "rm", "tar", "gzip", "hostname", "mktemp"):
        (programs / name).symlink_to(shutil.which(name))
    fake = Fake(programs, "python3", "uv", "sudo", "curl", "mountpoint", "gcsfuse")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("HOME", str(tmp_path))
    fake.answer("^mountpoint", ("", "", 1))
    fake.home = tmp_path
    return fake


def bootstrap(vm: Fake, *words: str) -> subprocess.CompletedProcess:
    venv = vm.home / "qwenjax" / "venv" / "bin"
    venv.mkdir(parents=True, exist_ok=True)
    if not (venv / "python").exists():
        (venv / "python").symlink_to(shutil.which("true", path="/usr/bin:/bin"))
    return subprocess.run(["bash", FOLDER / "bootstrap_vm.sh", *words], capture_output=True, text=True, cwd=vm.home)


def test_bootstrap_installs_the_packed_checkout_with_its_pins_and_mounts(vm):
    source = vm.home / "made" / "source"
    source.mkdir(parents=True)
    (source / "constraints.txt").write_text("jax==0\n")
    subprocess.run(["tar", "-czf", vm.home / "qwenjax-source.tar.gz", "-C", source.parent, "source"], check=True)
    done = bootstrap(vm, "qwenjax-source.tar.gz", "my-bucket")
    assert done.returncode == 0, done.stderr
    root = vm.home / "qwenjax"
    install = next(call for call in vm.calls if call[:3] == ["uv", "pip", "install"])
    assert install[install.index("--constraint") + 1] == f"{root}/source/constraints.txt"
    assert install[-1] == f"{root}/source[tpu,vocab,gcs]"
    assert (root / "source/constraints.txt").read_text() == "jax==0\n"
    assert vm.calls[-1][0] == "gcsfuse"
    assert vm.calls[-1][-2:] == ["my-bucket", f"{root}/gcs"]
    assert f"gs://my-bucket is {root}/gcs" in done.stdout


def test_bootstrap_installs_what_pip_can_and_fails_loudly(vm):
    vm.answer("pip install", "", ("", "no such package", 1))
    wanted = "qwenjax[tpu] @ git+https://example.com/q"
    done = bootstrap(vm, wanted)
    assert done.returncode == 0, done.stderr
    assert [call[-1] for call in vm.calls if call[0] == "uv"] == [wanted]
    assert not any(call[0] == "gcsfuse" for call in vm.calls)
    failed = bootstrap(vm, wanted)
    assert failed.returncode == 1
    assert "is installed" not in failed.stdout
    assert "usage: bootstrap_vm.sh SOURCE [BUCKET]" in bootstrap(vm).stderr


def test_the_container_is_pinned_and_not_root():
    lines = (FOLDER / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-\w+$", lines, re.M)
    assert lines.rindex("\nUSER qwenjax") > lines.rindex("\nRUN ")
    assert "--constraint /opt/qwenjax/constraints.txt" in lines
    for word in re.findall(r"^COPY (.+) /opt\S+$", lines, re.M):
        for name in word.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()


def commands() -> list[str]:
    """Every `python -m qwenjax.cluster …` in the code blocks of the walk-through."""
    blocks = re.findall(r"```bash\n(.*?)```", (FOLDER / "README.md").read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("python -m qwenjax.cluster ")]


def test_the_walk_through_can_be_walked(tmp_path, monkeypatch, capsys):
    """Every command in it is understood, in its order, and leads to the programs it names."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    from qwenjax.cluster import pod as pods

    verbs, created = [], []
    monkeypatch.setattr("qwenjax.cluster.supervise.create", lambda pod, runner: created.append(pod))
    for line in commands():
        words = shlex.split(line, comments=True)[3:]
        verbs.append(words[0])
        at = words.index("--") if "--" in words else len(words)
        if words[0] == "create" and "--dry-run" not in words:
            assert main(words) == 0, line
            pods.remember(created[-1])
        elif "--dry-run" not in words:
            assert main([*words[:at], "--dry-run", *words[at:]]) == 0, line
    assert set(verbs) == {"create", "bootstrap", "launch", "logs", "status", "profile", "stop", "delete"}
    assert "gcloud" in capsys.readouterr().out
