"""The service: who may come in, what is taken, what becomes of it, and what is left. Most of it without a network or a model."""
from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
import httpx  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from spineclue_v2.cli import _common  # noqa: E402
from spineclue_v2.errors import InputError  # noqa: E402
from spineclue_v2.serving import worker  # noqa: E402
from spineclue_v2.serving.app import make_app  # noqa: E402
from spineclue_v2.serving.jobs import Job, Jobs, Limits  # noqa: E402
from spineclue_v2.serving.uploads import safe_name  # noqa: E402
from spineclue_v2.serving.worker import PredictionProcess, check_own_voxels  # noqa: E402

TOKEN = "a-token-of-this-test"
ABOUT = {"modality": "CT", "labels": {"L1": 20}}
SCAN = {"file": ("scan.nii.gz", b"voxels")}


class FakeRunner:
    """Writes results at once, or waits until it is told to go on."""

    def __init__(self) -> None:
        self.go, self.seen = threading.Event(), []  # type: ignore[var-annotated]
        self.go.set()
        self.fails: Exception | None = None

    def run(self, job: Job, seconds: float) -> Mapping[str, Any]:
        self.seen.append((job.name, job.upload.read_bytes(), dict(job.options)))
        job.report("scan, segmenting", 0.5)
        while not self.go.wait(0.02):
            if job.stop.is_set():
                raise InputError("The prediction was stopped.")
        if self.fails is not None:
            raise self.fails
        (job.results / "thumbnails").mkdir(parents=True)
        (job.results / "scan.nii.gz").write_bytes(b"labels")
        (job.results / "scan.json").write_text('{"vertebrae": []}')
        (job.results / "scan.html").write_text("<p>page</p>")
        (job.results / "thumbnails" / "scan.jpg").write_bytes(b"jpg")
        return {"cases": {"scan": {"status": "ok", "levels": ["L1"]}}}

    def close(self) -> None:
        self.go.set()


class Service:
    """An application with a clock that can be put forward, and a client of it."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.runner, self.now = FakeRunner(), 0.0
        self.jobs = Jobs(self.runner, limits, folder, lambda: self.now)
        self.client = TestClient(make_app(self.jobs, ABOUT, TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})

    def send(self, **given: Any) -> httpx.Response:
        return self.client.post("/scans", files=given.pop("files", SCAN), data=given)

    def wait(self, url: str, state: str = "done") -> dict[str, Any]:
        return until(lambda: self.client.get(url).json(), lambda found: found["state"] == state)


def until(look: Callable[[], Any], right: Callable[[Any], bool], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not right(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "kept", Limits(upload_bytes=100_000))
    with made.client:
        yield made


def test_a_scan_comes_in_is_watched_and_its_results_go_out(service):
    service.runner.go.clear()
    answer = service.send(mirror="true", lumbar="5")
    assert answer.status_code == 202
    url = answer.headers["location"]
    assert service.wait(url, "running")["files"] == []
    assert until(lambda: service.client.get(url).json(), lambda found: found["fraction"] == 0.5)["step"] == "scan, segmenting"
    assert service.client.get(f"{url}/results.zip").status_code == 409
    service.runner.go.set()
    found = service.wait(url)
    assert found["files"] == ["scan.html", "scan.json", "scan.nii.gz", "thumbnails/scan.jpg"] and found["expires_in_s"] == 3600
    name, content, options = service.runner.seen[0]
    assert (name, content) == ("scan.nii.gz", b"voxels") and options["mirror"] and options["lumbar"] == 5
    assert service.client.get(f"{url}/files/scan.nii.gz").content == b"labels"
    page = service.client.get(f"{url}/files/scan.html")
    assert page.headers["content-disposition"].startswith("inline") and page.headers["x-content-type-options"] == "nosniff"
    with zipfile.ZipFile(io.BytesIO(service.client.get(f"{url}/results.zip").content)) as archive:
        assert archive.namelist() == found["files"]
    assert not list(service.jobs.folder.rglob("upload")), "the scan is kept although nobody needs it"


@pytest.mark.parametrize("path", ["files/../../.lock", "files/%2e%2e/%2e%2e/.lock", "files//etc/passwd", "files/upload/scan.nii.gz",
                                  "files/"])
def test_nothing_but_results_can_be_fetched(service, path):
    url = service.send().headers["location"]
    service.wait(url)
    assert service.client.get(f"{url}/{path}").status_code == 404


def test_files_are_gone_after_an_hour_and_when_the_service_ends(service):
    url = service.send().headers["location"]
    service.wait(url)
    service.now = 3599
    assert service.client.get(url).json()["expires_in_s"] == 1
    service.now = 3601
    assert service.client.get(url).status_code == 404
    assert [path.name for path in service.jobs.folder.iterdir()] == [".lock"]
    service.send()
    service.jobs.close()
    assert not service.jobs.folder.exists()


def test_what_a_killed_service_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path):
    living = Jobs(FakeRunner(), Limits(), tmp_path)
    (dead := tmp_path / "spineclue_serve_dead").mkdir()
    (dead / ".lock").touch()
    (foreign := tmp_path / "spineclue_serve_notes").mkdir()  # without a lock it is none of ours
    new = Jobs(FakeRunner(), Limits(), tmp_path)
    assert living.folder.exists() and foreign.exists() and not dead.exists()
    living.close()
    new.close()


def test_one_is_predicted_one_waits_and_the_third_is_told_to_come_back(service):
    service.runner.go.clear()
    first, second, third = service.send(), service.send(), service.send()
    assert (first.status_code, second.status_code, third.status_code) == (202, 202, 503)
    assert third.headers["retry-after"] == "30" and "try again" in third.json()["detail"]
    assert service.wait(second.headers["location"], "waiting")
    # Who deletes a waiting scan makes room; who deletes the running one ends it.
    assert service.client.delete(second.headers["location"]).status_code == 204
    assert service.send().status_code == 202
    running = service.jobs.folder / first.json()["id"]
    assert service.client.delete(first.headers["location"]).status_code == 204
    until(lambda: running.exists(), lambda there: not there)


def test_a_scan_that_fails_says_why_and_the_next_one_is_done(service):
    service.runner.fails = InputError("scan.nii.gz is truncated.")
    url = service.send().headers["location"]
    assert service.wait(url, "failed")["reason"] == "scan.nii.gz is truncated."
    service.runner.fails = RuntimeError("/secret/path")
    url = service.send().headers["location"]
    found = service.wait(url, "failed")
    assert "RuntimeError" in found["reason"] and "/secret" not in found["reason"] and found["files"] == []
    service.runner.fails = None
    service.wait(service.send().headers["location"])


@pytest.mark.parametrize(("files", "code", "word"), [
    ({"file": ("report.pdf", b"x")}, 415, "not the name of a scan"),
    ({"file": ("scan.mhd", b"ElementDataFile = /etc/passwd")}, 415, "not the name of a scan"),
    ({"file": ("scan.nii.gz", b"")}, 400, "empty"),
    ({"other": ("scan.nii.gz", b"x")}, 400, "no file"),
    ({"file": ("scan.nii.gz", b"x" * 100_001)}, 413, "too large"),
])
def test_what_is_no_scan_is_refused_and_nothing_of_it_stays(service, files, code, word):
    answer = service.send(files=files)
    assert answer.status_code == code and word in answer.json()["detail"]
    assert [path.name for path in service.jobs.folder.iterdir()] == [".lock"]
    assert service.send().status_code == 202  # and it holds no place in the queue


@pytest.mark.parametrize("given", [{"mirror": "perhaps"}, {"lumbar": "9"}, {"lumbar": "-1"}, {"also": "seg.nrrd exe"}])
def test_options_that_do_not_exist_are_refused(service, given):
    answer = service.send(**given)
    assert answer.status_code == 400 and answer.json()["detail"].endswith(".")


def test_bodies_that_are_no_forms_or_break_off_are_refused(service):
    for kind, body in (("application/json", b"{}"), ("multipart/form-data", b"no boundary"),
                       ("multipart/form-data; boundary=x", b"--x\r\nbroken"), ("multipart/form-data; boundary=x", b"")):
        assert service.client.post("/scans", content=body, headers={"Content-Type": kind}).status_code == 400, body
    def endless() -> Iterator[bytes]:  # says no length beforehand
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        for _ in range(20):
            yield b"0" * 10_000
    answer = service.client.post("/scans", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


@pytest.mark.parametrize(("given", "name"), [
    ("/home/me/Scan 1.nii.gz", "Scan_1.nii.gz"), ("..\\..\\a.zip", "a.zip"), ("../../../etc/x.NII.GZ", "x.NII.GZ"), ("-rf.nii", "rf.nii"),
    ("Ünï.dcm", "n_.dcm"), ("a" * 300 + ".nrrd", "a" * 120 + ".nrrd")])
def test_names_of_files_are_made_harmless(given, name):
    assert safe_name(given) == name


def test_without_the_token_nothing_is_shown(service):
    stranger = TestClient(service.client.app)
    for path in ("/", "/info/", "/openapi.json", "/scans/x", "/?token=wrong", "/t/wrong/info/"):
        assert stranger.get(path).status_code == 401, path
    assert stranger.post("/scans", files=SCAN).status_code == 401 and service.runner.seen == []
    assert stranger.get("/health").json()["status"] == "ok"
    assert stranger.get(f"/t/{TOKEN}/info/").json()["models"]["spineclue"]["labels"] == {"L1": 20}
    page = stranger.get(f"/?token={TOKEN}")  # a browser: the token goes into a cookie
    assert page.status_code == 200 and "token" not in str(page.url) and "Choose or drop a CT scan" in page.text
    assert "HttpOnly" in page.history[0].headers["set-cookie"] and "default-src 'none'" in page.headers["content-security-policy"]
    assert stranger.get("/info").status_code == 200
    assert not re.search(r"(src|href)=[\"']?https?:", page.text), "the page loads something from elsewhere"


def test_pages_of_other_sites_cannot_use_it(tmp_path):
    jobs = Jobs(FakeRunner(), Limits(), tmp_path)
    client = TestClient(make_app(jobs, ABOUT, None, {"localhost", "127.0.0.1"}), base_url="http://localhost:8060")
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert client.post("/scans", files=SCAN, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/scans", files=SCAN, headers={"Origin": "http://localhost:8060"}).status_code == 202
    jobs.close()


def test_clients_of_monai_label_get_label_map_and_record(service):
    model = service.client.get("/info/").json()["models"]
    assert list(model) == ["spineclue"] and model["spineclue"]["type"] == "segmentation"
    params = json.dumps({"client_id": "me", "mirror": True})
    answer = service.client.post("/infer/spineclue?image=scan", files=SCAN, data={"params": params})
    assert answer.headers["content-type"].startswith("multipart/form-data; boundary=")
    parts = answer.content.split(f"--{answer.headers['content-type'].split('=')[1]}".encode())
    assert len(parts) == 4 and b'name="params"' in parts[1] and b'"vertebrae"' in parts[1]
    assert b'name="image"; filename="scan.nii.gz"' in parts[2] and parts[2].endswith(b"\r\n\r\nlabels\r\n")
    assert service.client.post("/infer/spineclue?output=image", files=SCAN).content == b"labels"
    assert service.client.post("/infer/spineclue?output=json", files=SCAN).json() == {"vertebrae": []}
    assert service.runner.seen[0][2]["mirror"] and [path.name for path in service.jobs.folder.iterdir()] == [".lock"]
    assert service.client.post("/infer/liver", files=SCAN).status_code == 404
    assert service.client.post("/infer/spineclue?output=nothing", files=SCAN).status_code == 400
    assert service.client.post("/infer/spineclue", files=SCAN, data={"params": "[1"}).status_code == 400
    service.runner.fails = InputError("scan.nii.gz is no CT.")
    assert service.client.post("/infer/spineclue", files=SCAN).json() == {"detail": "scan.nii.gz is no CT."}


def test_sessions_keep_a_scan_that_is_asked_for_later(service):
    made = service.client.put("/session/", files={"files": ("scan.nii.gz", b"voxels")}).json()
    url = f"/infer/spineclue?image=scan&output=image&session_id={made['session_id']}"
    assert service.client.get(f"/session/{made['session_id']}").json()["state"] == "uploaded" and service.runner.seen == []
    for _ in range(2):  # the second time the result is there
        assert service.client.post(url, files={"params": (None, "{}")}).content == b"labels"
    assert len(service.runner.seen) == 1
    assert service.client.delete(f"/session/{made['session_id']}").status_code == 200
    assert service.client.post(url, files={"params": (None, "{}")}).status_code == 404


def test_a_header_cannot_take_voxels_of_the_service(tmp_path):
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {}\n"
    (tmp_path / "secret.raw").write_bytes(bytes(8))
    (inside := tmp_path / "upload").mkdir()
    for number, named in enumerate(("../secret.raw", str(tmp_path / "secret.raw"), "LIST", "slice%03d.raw 1 8 1", "missing.raw")):
        (path := inside / f"{number}.mha").write_text(header.format(named))
        with pytest.raises(InputError, match="takes its voxels from"):
            check_own_voxels(path)
    (inside / "own.raw").write_bytes(bytes(8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.mhd", header.format("own.raw"))
        archive.writestr("own.raw", bytes(8))
    check_own_voxels(tmp_path / "a.zip")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--no_token", "--host", "0.0.0.0"], "let everybody in"), (["--token", "short"], "too short"), (["--max_mb", "0"], "--max_mb"),
    (["--port", "70000"], "--port"), (["-m", "not_there"], "not_there")])
def test_a_service_that_would_not_do_does_not_start(arguments, words, capsys):
    assert _common.main("serve", arguments) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def port(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """Of a real server in a thread of this process; the parameter is its patience for uploads in seconds."""
    import uvicorn

    jobs = Jobs(FakeRunner(), Limits(upload_bytes=100_000, upload_seconds=request.param), tmp_path / "kept")
    config = uvicorn.Config(make_app(jobs, ABOUT, TOKEN), port=0, log_level="critical")
    server, socket_ = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([socket_],))
    thread.start()
    until(lambda: server.started, bool)
    yield socket_.getsockname()[1]
    server.should_exit = True
    thread.join(60)
    assert not jobs.folder.exists(), "the service has ended and its files are there"


@pytest.mark.parametrize("port", [1.0], indirect=True)
def test_uploads_that_stall_or_break_off_over_a_real_socket_leave_nothing(port, tmp_path):
    head = (f"POST /scans HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 5000\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            'Content-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\nabc').encode()
    kept = next((tmp_path / "kept").iterdir())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as stalled:
        stalled.sendall(head)
        assert b" 408 " in stalled.recv(4096).split(b"\r\n")[0]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as broken:
        broken.sendall(head)
    until(lambda: [path.name for path in kept.iterdir()], lambda names: names == [".lock"])


@pytest.mark.parametrize("port", [60.0], indirect=True)
def test_many_at_once_are_taken_or_told_to_come_back(port):
    def send(number: int) -> int:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
            return client.post("/scans", files={"file": (f"{number}.nii.gz", bytes(50_000))}).status_code

    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(send, range(24)))
    assert set(codes) <= {202, 503} and codes.count(202) >= 1


@pytest.fixture
def crop(tmp_path: Path) -> Path:
    """The small synthetic scan of the self-test as NIfTI."""
    from spineclue_v2.doctor.self_test import read_crop
    from spineclue_v2.imageio.grid import ImageGrid
    from spineclue_v2.imageio.volume import Volume, write_volume

    array, spacing, _ = read_crop()
    grid = ImageGrid(array.shape, spacing, (0.0, 0.0, 0.0), np.eye(3))
    write_volume(Volume(array, grid), tmp_path / "crop.nii.gz")
    return tmp_path / "crop.nii.gz"


def zip_bomb() -> bytes:
    """An archive whose directory says that it unpacks to 2 GB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scan.nii", bytes(1 << 20))
        archive.filelist[0].file_size = 2 << 30
    return stream.getvalue()


def test_a_real_service_labels_survives_what_it_is_sent_and_leaves_nothing(tmp_path, crop):
    """Own process, own port, the shipped weights."""
    command = [sys.executable, "-m", "spineclue_v2.cli", "serve", "--port", "0", "--token", TOKEN, "--folder", str(tmp_path / "kept"),
               "-device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://\S+/\?token=", process.stdout.readline())
            assert address is not None
            client = httpx.Client(base_url=address[0].split("?")[0], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300)

            def end(name: str, content: bytes) -> dict[str, Any]:
                url = client.post("/scans", files={"file": (name, content)}).headers["location"]
                return until(lambda: client.get(url).json(), lambda found: found["state"] in ("done", "failed"), 600)

            header = struct.pack("<i", 348) + bytes(344)
            for name, content, word in (("bomb.zip", zip_bomb(), "more than scans do"), ("noise.nii.gz", os.urandom(5000), "noise.nii.gz"),
                                        ("header.nii", header, "header.nii"), ("cut.nii.gz", crop.read_bytes()[:20_000], "cut.nii.gz")):
                found = end(name, content)
                assert found["state"] == "failed" and word in found["reason"] and str(tmp_path) not in found["reason"], found
            found = end("crop.nii.gz", crop.read_bytes())
            assert found["state"] == "done" and found["summary"]["cases"]["crop"]["levels"], found
            record = client.get(f"/scans/{found['id']}/files/crop.json")
            assert record.json()["vertebrae"] and str(tmp_path) not in record.text, "a record names a folder of the service"
            assert "crop.html" in found["files"] and not list((tmp_path / "kept").rglob("unpacked"))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    assert process.returncode in (0, 130) and list((tmp_path / "kept").iterdir()) == []


def load_if(path: Path) -> Any:
    """A model that kills its process unless `path` is there."""
    if not path.exists():
        os._exit(9)
    return SimpleNamespace(modality="CT", source="made up")


def load_slowly() -> Any:
    time.sleep(600)


def test_a_process_that_dies_costs_one_scan(tmp_path):
    process = PredictionProcess(partial(load_if, tmp_path / "flag"))
    job = Job("x", tmp_path, 0.0, name="a.mha")
    job.upload.parent.mkdir()
    job.upload.write_text("NDims = 3\nDimSize = 2 2 2\nElementDataFile = /etc/passwd\n")
    with pytest.raises(InputError, match="died"):
        process.run(job, 60.0)
    (tmp_path / "flag").touch()
    with pytest.raises(InputError, match="a.mha takes its voxels from '/etc/passwd'"):
        process.run(job, 60.0)
    process.close()


def test_a_process_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "LOADING_S", 0.0)
    with pytest.raises(InputError, match="took longer than 0 s"):
        PredictionProcess(load_slowly).start()
    assert not multiprocessing.active_children()
