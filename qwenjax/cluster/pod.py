"""A pod as a value: what is created, launched on and deleted. A file keeps it under its name."""

import argparse
import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from qwenjax.common.storage import write_json
from qwenjax.xla.hardware import SliceType, slice_type

THROUGH = ("queued", "vm", "gke")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Pod:
    """One or more TPU slices that train together.

    `through` says who makes them: a queued resource, a TPU VM asked for at once, or a GKE cluster by XPK.
    """

    name: str
    zone: str
    project: str
    type: str
    slices: int = 1
    through: str = "queued"
    capacity: str = "on-demand"  # or spot, or reserved
    reservation: str = ""
    runtime: str = ""  # empty: the default of the generation
    bucket: str = ""  # mounted as gcs/ in the working folder; without gs://
    source: str = ""  # empty: this checkout at HEAD; a folder, or what pip can install
    image: str = ""  # of the container; only through gke

    def __post_init__(self):
        check_name("--name", self.name)
        if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", self.zone):
            raise ValueError(f"--zone={self.zone}: wanted a zone such as us-west4-a (a region and a letter)")
        if not self.project:
            raise ValueError("--project is empty; `gcloud projects list` shows yours")
        if self.slices < 1:
            raise ValueError(f"--slices={self.slices}: wanted at least 1")
        if self.through == "vm" and self.slices > 1:
            raise ValueError("--through=vm makes one slice; several that train together need --through=queued or gke")
        if self.through == "gke" and not self.image:
            raise ValueError(
                "--through=gke: give --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG of a container"
            )
        if self.through == "gke" and self.capacity == "reserved" and not self.reservation:
            raise ValueError("--through=gke needs the reservation's name: --reserved=NAME")
        if self.bucket and not re.fullmatch(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]", self.bucket):
            raise ValueError(f"--bucket={self.bucket}: wanted a bucket's name, without gs:// and without a folder")
        if self.type != self.tpu.name:
            object.__setattr__(self, "type", self.tpu.name)

    @property
    def tpu(self) -> SliceType:
        """The slice type; raises ValueError where there is none of that name."""
        return slice_type(self.type)

    @property
    def chips(self) -> int:
        """Chips of all slices: what is billed."""
        return self.tpu.chips * self.slices

    @property
    def workers(self) -> int:
        """VMs of all slices."""
        return self.tpu.workers * self.slices

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the TPU nodes, one a slice."""
        return (self.name,) if self.slices == 1 else tuple(f"{self.name}-{i}" for i in range(self.slices))


def check_name(option: str, name: str) -> None:
    """Raises ValueError for what Google Cloud or Kubernetes would refuse as a name."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{option}={name}: wanted up to 40 lower-case letters, digits and hyphens, first a letter")


def arguments(add, creating: bool = False, job: bool = False) -> None:
    """Declares the options that describe a pod (and a job on it). Only `creating` one requires more than --name."""
    add("--name", required=True, metavar="NAME", help="of the pod")
    known = "" if creating else "; known for a pod created from here"
    add("--project", required=creating, metavar="ID", help=f"Google Cloud project that pays{known}")
    add("--zone", required=creating, metavar="ZONE", help=f"such as us-west4-a{known}")
    add("--type", required=creating, metavar="TYPE", help=f"v4-128, v5e-256, v5p-256, v6e-256, tpu7x-256{known}")
    add("--slices", type=int, metavar="N", help="slices that train together (default: 1)")
    add("--through", choices=THROUGH, help="queued resource (default), TPU VM at once, or GKE by XPK")
    capacity = "instead of on-demand capacity"
    add("--spot", action="store_const", const="spot", dest="capacity", help=f"{capacity}: cheap, may be preempted")
    add("--reserved", nargs="?", const="", metavar="NAME", help=f"{capacity}: a reservation; its name through gke")
    add("--runtime-version", dest="runtime", metavar="VERSION", help="image of the VMs (default: by TPU generation)")
    add("--bucket", metavar="NAME", help="Cloud Storage bucket to mount as gcs/")
    add("--source", metavar="WHAT", help="checkout, or what pip installs (default: this checkout, as committed)")
    add("--image", metavar="IMAGE", help="container image, only through gke")
    add("--dry-run", action="store_true", help="print the exact commands, run none")
    if job:
        add("--job", default="train", metavar="JOB", help="name of the job on the VMs (default: train)")


def pod_from(options: argparse.Namespace, fresh: bool = False) -> Pod:
    """The pod that the options describe; unless `fresh`, missing options are those it was created with."""
    given = {k: v for k in (f.name for f in dataclasses.fields(Pod)) if (v := getattr(options, k, None)) is not None}
    if options.reserved is not None:
        if given.get("capacity") == "spot":
            raise ValueError("--spot and --reserved exclude each other")
        given |= {"capacity": "reserved", "reservation": options.reserved}
    check_name("--name", options.name)
    check_name("--job", getattr(options, "job", "train"))
    known = {} if fresh or (old := known_as(options.name)) is None else dataclasses.asdict(old)
    missing = [f"--{k}" for k in ("project", "zone", "type") if k not in known | given]
    if missing:
        others = ", ".join(sorted(p.stem for p in _file("").parent.glob("*.json"))) or "none"
        raise ValueError(
            f"no pod {options.name!r} was created from here (known: {others}); "
            f"give {', '.join(missing)}, or create it first"
        )
    return Pod(**known | given)


def remember(one: Pod) -> None:
    """Keeps the description under its name."""
    path = _file(one.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dataclasses.asdict(one))


def forget(name: str) -> None:
    """Removes the description of a deleted pod."""
    _file(name).unlink(missing_ok=True)


def _file(name: str) -> Path:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "qwenjax" / "cluster" / f"{name}.json"


def known_as(name: str) -> Pod | None:
    """The pod of that name created from here, if there is one."""
    path = _file(name)
    if not path.is_file():
        return None
    try:
        return Pod(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the description of a pod ({error}); remove it and give the options") from None
