"""Where a process stands, from environments as their launchers set them."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from qwenjax.train.operations import launchers
from qwenjax.train.operations.launchers import Rank, find

JAX = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SRUN = {  # srun --nodes=2 --ntasks=8, sixth task
    "SLURM_JOB_ID": "5000",
    "SLURM_JOB_NODELIST": "n[001-020]",
    "SLURM_STEP_NODELIST": "n[007-008]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
MPI4 = {  # mpirun -n 4 over two machines, Open MPI 4.1: 1531576320 = 373920 * 4096, and 373920 mod 4096 = 1184
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
MPI5 = {name: value for name, value in MPI4.items() if "orte" not in name} | {"PMIX_NAMESPACE": "prterun-n1-4711@1"}
GKE = {"TPU_WORKER_HOSTNAMES": "a-0.svc,a-1.svc", "TPU_WORKER_ID": "1", "TPU_SKIP_MDS_QUERY": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "b-0.svc:8080"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}


def without(env, *names):
    return {name: value for name, value in env.items() if name not in names}


def test_alone_where_nothing_is_said():
    assert find(None, None, None, {}) is None


def test_flags_before_variables():
    assert find("h:1", 2, 1, {}) == Rank("h:1", 2, 1, "flags or JAX_ variables")
    assert find(None, None, None, JAX)[:3] == ("h:1", 2, 1)
    assert find(None, None, 0, JAX)[:3] == ("h:1", 2, 0)
    assert find("g:2", 3, 0, JAX | SRUN | MPI4)[:3] == ("g:2", 3, 0)


def test_one_process_is_alone_whatever_launched_it():
    assert find(None, 1, None, SRUN) is None
    assert find(None, 1, 0, GKE) is None


@pytest.mark.parametrize(
    ("change", "address", "devices"),
    [
        ({}, "n007:62344", [1]),  # 61440 + 5000 mod 4096; several tasks on a node have a device each
        ({"CUDA_VISIBLE_DEVICES": "0"}, "n007:62344", None),  # --gpus-per-task=1: it sees only its own
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "n007:62344", [1]),
        ({"SLURM_STEP_NUM_NODES": "8"}, "n007:62344", None),  # a task per node has all devices of it
        ({"SLURM_STEP_NODELIST": "a,b"}, "a:62344", [1]),
        ({"SLURM_STEP_NODELIST": "n[9,11-12],m1"}, "n9:62344", [1]),
        ({"SLURM_STEP_NODELIST": "rack[2-3]n[004-005]-ib,x"}, "rack2n004-ib:62344", [1]),
        ({"JAX_COORDINATOR_PORT": "99"}, "n007:99", [1]),
    ],
)
def test_slurm_meets_on_the_first_node_of_the_step(change, address, devices):
    assert find(None, None, None, SRUN | change) == Rank(address, 8, 5, "SLURM", devices)


def test_slurm_without_a_step_of_several_tasks_is_alone():
    batch = without(SRUN, "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS")  # no srun
    assert find(None, None, None, batch | {"SLURM_PROCID": "0"}) is None
    assert find(None, None, None, SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None  # srun --pty bash


def test_open_mpi_4_meets_where_mpirun_is():
    assert find(None, None, None, MPI4) == Rank("10.96.0.1:62624", 4, 3, "Open MPI", [1])
    six = MPI4 | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp6://[fe80::b9b:1,2620::2]:43370"}
    assert find(None, None, None, six).address == "[fe80::b9b:1]:62624"
    assert find(None, None, None, MPI4 | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_open_mpi_5_needs_the_coordinator_only_and_on_one_machine_nothing():
    with pytest.raises(ValueError, match=r"--coordinator missing: Open MPI started this as process 3"):
        find(None, None, None, MPI5)
    said = find(None, None, None, MPI5 | {"JAX_COORDINATOR_ADDRESS": "h:1"})  # mpirun -x JAX_COORDINATOR_ADDRESS=h:1
    assert said == Rank("h:1", 4, 3, "Open MPI", [1])
    ranks = [MPI5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_RANK": rank} for rank in "03"]
    first, last = (find(None, None, None, env) for env in ranks)
    assert first.address == last.address  # and another for another mpirun
    assert first.address.startswith("localhost:")
    assert find(None, None, None, ranks[0] | {"PMIX_NAMESPACE": "prterun-n1-4712@1"}).address != first.address


def test_mpirun_below_slurm_is_open_mpi():
    """Its helpers are a SLURM step of one task a node, whose variables all processes of a node inherit."""
    helper = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    assert find(None, None, None, helper | MPI4).source == "Open MPI"


def test_gke_slices_by_variables():
    assert find(None, None, None, GKE) == Rank("a-0.svc:8482", 2, 1, "TPU")
    assert find(None, None, None, GKE | SLICES | POD) == Rank("b-0.svc:8482", 4, 3, "TPU, 2 slices")
    ports = GKE | {"TPU_PROCESS_ADDRESSES": "a-0.svc:8476,a-1.svc:8476", "JAX_COORDINATOR_PORT": "99"}
    assert find(None, None, None, ports)[:3] == ("a-0.svc:99", 2, 1)
    one = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    assert find(None, None, None, one) is None
    assert find(None, None, None, one | POD) is None  # JobSets are indexed jobs, also of one host
    assert find(None, None, None, one | SLICES) == Rank("b-0.svc:8482", 2, 1, "TPU, 2 slices")


@pytest.fixture
def metadata(monkeypatch):
    """A server that answers as Google Cloud's does; returns what to set in the environment."""
    servers = []

    def serve(**attributes):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                value = attributes.get(self.path.rpartition("/")[2].replace("-", "_"))
                known = value is not None and self.headers["Metadata-Flavor"] == "Google"
                self.send_response(200 if known else 404)
                self.end_headers()
                self.wfile.write((value or "").encode())

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(("localhost", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return {"GCE_METADATA_IP": f"localhost:{servers[-1].server_port}"}

    monkeypatch.setattr(launchers, "_has_tpu", lambda: True)
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


TPU_ENV = "ACCELERATOR_TYPE: 'v5litepod-16'\nWORKER_ID: '1'\n"
SLICE_ENV = TPU_ENV + "".join(f"{name}: '{value}'\n" for name, value in SLICES.items())


def test_tpu_vms_by_their_metadata(metadata):
    plain = metadata(worker_network_endpoints="10.0.0.5,10.0.0.6", agent_worker_number="1", tpu_env=TPU_ENV)
    assert find(None, None, None, plain) == Rank("10.0.0.5:8482", 2, 1, "TPU")
    assert find(None, None, None, plain | {"TPU_SKIP_MDS_QUERY": "1"}) is None
    triples = "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6"
    slices = metadata(worker_network_endpoints=triples, agent_worker_number="1", tpu_env=SLICE_ENV)
    assert find(None, None, None, slices) == Rank("b-0.svc:8482", 4, 3, "TPU, 2 slices")
    one = metadata(worker_network_endpoints="10.0.0.5", agent_worker_number="0", tpu_env=TPU_ENV)
    assert find(None, None, None, one) is None


def test_metadata_of_another_machine_means_alone(metadata):
    assert find(None, None, None, metadata()) is None  # a virtual machine with a GPU behind /dev/vfio
    assert find(None, None, None, {"GCE_METADATA_IP": "localhost:1"}) is None


def test_kubernetes_says_which_but_not_of_how_many():
    said = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4"}
    assert find(None, None, None, said | POD)[:3] == ("h:1", 4, 3)
    with pytest.raises(ValueError, match=r"--coordinator and --processes missing: Kubernetes .* process 3"):
        find(None, None, None, POD)
    assert find(None, None, None, POD | {"JOB_COMPLETION_INDEX": "0"}) is None


@pytest.mark.parametrize(
    ("said", "env", "message"),
    [
        (("h:1", None, None), {}, "--processes and --process missing"),
        ((None, 2, 0), {}, "--coordinator missing"),
        (("h:1", 4, None), {}, "--process missing"),
        (("h", 2, 0), {}, "wanted HOST:PORT"),
        (("h:x", 2, 0), {}, "wanted HOST:PORT"),
        ((":1", 2, 0), {}, "wanted HOST:PORT"),
        (("h:1", 2, 2), {}, "wanted 0 to 1"),
        (("h:1", 1, 1), {}, "wanted 0 to 0"),
        ((None, None, None), JAX | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not a whole number"),
        ((None, None, None), without(SRUN, "SLURM_PROCID"), "SLURM started several .* SLURM_PROCID is not set"),
        ((None, None, None), without(SRUN, "SLURM_JOB_ID"), "SLURM_JOB_ID is not set"),
        ((None, None, None), SRUN | {"SLURM_PROCID": "8"}, "--process=8 of --processes=8: wanted 0 to 7"),
        ((None, None, None), without(MPI4, "OMPI_COMM_WORLD_RANK"), "Open MPI .* OMPI_COMM_WORLD_RANK is not set"),
        ((None, None, None), without(GKE, "TPU_WORKER_ID"), "TPU_WORKER_ID is not set"),
        ((None, None, None), GKE | {"TPU_WORKER_ID": "2"}, "wanted 0 to 1"),
        ((None, None, None), GKE | without(SLICES, "MEGASCALE_SLICE_ID"), "MEGASCALE_SLICE_ID is not set"),
        (
            (None, None, None),
            GKE | without(SLICES, "MEGASCALE_COORDINATOR_ADDRESS"),
            "--coordinator missing: TPU, 2 slices",
        ),
        (("h:1", 2, None), SRUN, "--processes=2 is given .*, but SLURM says 8"),
        ((None, None, 0), MPI4, "--process=0 is given .*, but Open MPI says 3"),
        ((None, None, None), MPI4 | {"JAX_NUM_PROCESSES": "2"}, "--processes=2 is given .*, but Open MPI says 4"),
    ],
)
def test_half_a_place_and_contradictions_are_refused(said, env, message):
    with pytest.raises(ValueError, match=message):
        find(*said, env)
