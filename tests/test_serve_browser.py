"""The page of the service in a real browser: choose a scan, watch, open what came of it. The prediction itself is a stand-in."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_case import blocks, browser, violations

from spineclue_v2.imageio.volume import Volume
from spineclue_v2.serving.jobs import Job, Jobs, Limits
from spineclue_v2.visualization.page.case_page import write_case_page
from spineclue_v2.visualization.page.preview import make_preview

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

TOKEN = "a-token-of-this-test"
MR_LEVELS = ["S", "L5", "L4", "L5/S", "L4/L5"]


class Runner:
    """Labels a scan when it is told to: with a page of blocks, or as an MR, or not at all, by the name of the upload."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def run(self, job: Job, seconds: float) -> dict[str, Any]:
        job.report("scan, segmenting", 0.5)
        assert self.go.wait(60)
        if job.name.startswith("bad"):
            raise ValueError("broken")
        job.results.mkdir()
        found = blocks()
        write_case_page(job.results / "scan.html", found.to_dict(), "scan", make_preview(found.scan, Volume(found.labels, found.grid)))
        (job.results / "scan.nii.gz").write_bytes(b"labels")
        levels = MR_LEVELS if job.name.startswith("mr") else ["T12", "L1", "L2", "L3"]
        return {"cases": {"scan": {"status": "ok", "levels": levels, "numbering_anchored": False, "review_required": True}}}

    def close(self) -> None:
        self.go.set()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, Runner]]:
    from spineclue_v2.serving.app import make_app

    runner = Runner()
    app = make_app(Jobs(runner, Limits(), tmp_path, time.monotonic), {"modality": "CT", "labels": {}}, TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", runner
    runner.go.set()
    server.should_exit = True
    thread.join(30)


def test_a_scan_is_chosen_watched_and_looked_at(chromium, service, tmp_path):
    address, runner = service
    context = chromium.new_context()
    context.set_default_timeout(120_000)  # a busy machine is no fault of the page
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else trouble.append(request.url))
    page.goto(f"{address}/?token={TOKEN}")
    assert TOKEN not in page.url and violations(page) == []
    for name, said in (("scan.nii.gz", "scan: T12 to L3, numbering not anchored, please review"),
                       ("mr.nii.gz", "scan: 3 bodies and 2 discs"), ("bad.nii.gz", "ValueError")):
        runner.go.clear()
        page.set_input_files("#file", {"name": name, "mimeType": "application/gzip", "buffer": b"voxels"})
        page.get_by_role("button", name="Label").click()
        page.get_by_text("segmenting").wait_for()
        assert page.get_by_role("button", name="Label").is_disabled()
        assert float(page.locator("#bar").get_attribute("value") or 0) == pytest.approx(0.5)
        runner.go.set()
        page.get_by_role("heading", name="Failed" if name.startswith("bad") else "Done").wait_for()
        assert said in page.locator("#step").inner_text() and violations(page) == []
        if name.startswith("scan"):
            page.get_by_role("link", name="Look: scan.html").click()
            page.wait_for_selector("html[data-ready]")  # the views are drawn, under the headers of the service
            assert page.get_by_role("heading", level=1).inner_text() == "scan" and page.locator("tbody tr[data-item]").count() == 4
            page.go_back()
    assert trouble == []
    context.close()
