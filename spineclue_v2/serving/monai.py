"""Endpoints under the names that clients of MONAI Label call: `/info/`, `/session/` and `/infer/spineclue`."""
from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from ..utilities.files import read_json
from ..version import __version__
from .jobs import Job, Jobs
from .uploads import file_of, json_of, options_of, read_form, store

MODEL = "spineclue"
POLL_S = 0.2
CLIENT_GONE = 499


def add_monai_endpoints(app: FastAPI, jobs: Jobs, about: Mapping[str, Any]) -> None:
    @app.get("/info")
    @app.get("/info/")
    async def info() -> dict[str, Any]:
        labels = dict(about.get("labels", {}))
        model = {"type": "segmentation", "dimension": 3, "labels": labels, "description": f"Finds, segments and names vertebrae in "
                 f"{about.get('modality', 'CT')}", "config": {"mirror": False, "forbid_anomalies": False}}
        return {"name": "spineclue_v2", "description": "Vertebrae by name", "version": __version__, "labels": list(labels),
                "models": {MODEL: model}, "trainers": {}, "strategies": {}, "scoring": {}, "train_stats": {}, "datastore": {}}

    @app.put("/session")
    @app.put("/session/")
    async def begin_session(request: Request) -> dict[str, Any]:
        job = jobs.begin(queued=False)
        try:
            await store(file_of(await read_form(request), "files", "file"), job)
        except BaseException:
            jobs.remove(job)
            raise
        return {"session_id": job.id, "image": job.name, "expiry": int(jobs.limits.kept_seconds)}

    @app.get("/session/{name}")
    def session(name: str) -> dict[str, Any]:
        job = _job(jobs, name)
        return {"session_id": job.id, "image": job.name, "state": job.state}

    @app.delete("/session/{name}")
    def end_session(name: str) -> dict[str, Any]:
        jobs.remove(_job(jobs, name))
        return {}

    @app.post("/infer/{model}")
    async def infer(request: Request, model: str, output: str = "all", session_id: str = "") -> Response:
        if model != MODEL:
            raise HTTPException(404, f"There is no model {model[:80]!r}; there is {MODEL}.")
        if output not in ("all", "image", "json"):
            raise HTTPException(400, f"output is {output[:80]!r}; expected all, image or json.")
        job = _job(jobs, session_id) if session_id else jobs.begin()
        try:
            form = await read_form(request)
            if not session_id:
                await store(file_of(form, "file"), job)
            if job.state in ("uploading", "uploaded"):  # a session may be asked twice: its result is there
                jobs.submit(job, options_of(json_of(form.get("params"))))
            return await _answer(request, jobs, job, output)
        finally:
            if not session_id:
                jobs.remove(job)


def _job(jobs: Jobs, name: str) -> Job:
    job = jobs.get(name)
    if job is None:
        raise HTTPException(404, "There is no such session; it may have expired.")
    return job


async def _answer(request: Request, jobs: Jobs, job: Job, output: str) -> Response:
    """Wait for a job, then its label map and record. A client that goes away ends the prediction."""
    while not job.over.is_set():
        if await request.is_disconnected():
            jobs.remove(job)
            return Response(status_code=CLIENT_GONE)
        await asyncio.sleep(POLL_S)
    if job.state != "done":
        raise HTTPException(422, job.reason)
    cases = {name: case for name, case in job.summary["cases"].items() if case["status"] != "failed"}
    if len(cases) != 1:
        raise HTTPException(422, f"The upload holds {len(cases)} scans; expected one. Use /scans for several.")
    name = next(iter(cases))
    labels, record = job.results / f"{name}.nii.gz", read_json(job.results / f"{name}.json", "prediction")
    if output == "json":
        return JSONResponse(record)
    content = labels.read_bytes()  # before the files of the request go
    if output == "image":
        return Response(content, media_type="application/gzip", headers={"Content-Disposition": f'attachment; filename="{labels.name}"'})
    return _multipart(record, labels, content)


def _multipart(record: Mapping[str, Any], labels: Path, content: bytes) -> Response:
    """`params` (the record as JSON) and `image` (the label map) as multipart/form-data (RFC 7578)."""
    boundary = secrets.token_hex(16)
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'.encode(),
             json.dumps(record).encode(),
             f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{labels.name}"\r\n'
             "Content-Type: application/gzip\r\n\r\n".encode(), content, f"\r\n--{boundary}--\r\n".encode()]
    return Response(b"".join(parts), media_type=f"multipart/form-data; boundary={boundary}")
