"""The web application: upload, progress, results. It imports FastAPI, so only what serves imports it."""
from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse

from ..errors import InputError
from ..version import __version__
from ..visualization.page.serve_page import serve_page
from .gate import COOKIE, Gate
from .jobs import RESULTS_ZIP, Busy, Job, Jobs
from .monai import add_monai_endpoints
from .uploads import OPTIONS, file_of, options_of, read_form, store

SHOWN = (".html", ".png", ".jpg")   # in the browser; everything else is saved
RETRY_S = "30"


def make_app(jobs: Jobs, about: Mapping[str, Any], token: str | None = None, hosts: Collection[str] = ()) -> FastAPI:
    """The application.

    Args:
        jobs: closed when the application ends.
        about: `modality` and `labels` of the model.
        token: that every request has to bring; None: none.
        hosts: names that the service may be called by; empty: any.
    """
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        jobs.close()

    # The interactive documentation loads scripts from elsewhere; the schema is at /openapi.json.
    app = FastAPI(title="spineclue_v2", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Gate, token=token, hosts=hosts, body_bytes=jobs.limits.upload_bytes, body_seconds=jobs.limits.upload_seconds)

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": RETRY_S, "Connection": "close"})

    _add_endpoints(app, jobs, about, token)
    add_monai_endpoints(app, jobs, about)
    return app


def _add_endpoints(app: FastAPI, jobs: Jobs, about: Mapping[str, Any], token: str | None) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/", response_class=HTMLResponse)
    async def page(request: Request) -> Response:
        if token is not None and request.query_params.get("token") is not None:
            # The token goes from the address, which histories keep, into a cookie that scripts cannot read.
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return answer
        text, policy = serve_page(str(about.get("modality", "CT")), jobs.limits.upload_bytes, jobs.limits.kept_seconds)
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.post("/scans", status_code=202)
    async def upload(request: Request) -> JSONResponse:
        job = jobs.begin()
        try:
            form = await read_form(request)
            await store(file_of(form, "file"), job)
            options = options_of({name: form.get(name) for name in OPTIONS})
            jobs.submit(job, options)
        except BaseException:
            jobs.remove(job)
            raise
        return JSONResponse(_state(jobs, job), 202, {"Location": f"/scans/{job.id}"})

    @app.get("/scans/{name}")
    def state(name: str) -> dict[str, Any]:
        return _state(jobs, job_of(jobs, name))

    @app.delete("/scans/{name}", status_code=204)
    def remove(name: str) -> Response:
        jobs.remove(job_of(jobs, name))
        return Response(status_code=204)

    @app.get("/scans/{name}/results.zip")
    def archive(name: str) -> FileResponse:
        job = job_of(jobs, name)
        if job.state != "done":
            raise HTTPException(409, f"The results are not there: the scan is {job.state}.")
        return FileResponse(job.folder / RESULTS_ZIP, filename=f"{_stem(job)}_results.zip")

    @app.get("/scans/{name}/files/{path:path}")
    def result(name: str, path: str) -> FileResponse:
        job = job_of(jobs, name)
        if path not in job.files():
            raise HTTPException(404, "There is no such result.")
        kind = "inline" if path.endswith(SHOWN) else "attachment"
        return FileResponse(job.results / path, filename=Path(path).name, content_disposition_type=kind)


def job_of(jobs: Jobs, name: str) -> Job:
    """The job of an id; HTTPException 404 where there is none."""
    job = jobs.get(name)
    if job is None:
        raise HTTPException(404, "There is no such scan; it may have expired.")
    return job


def _state(jobs: Jobs, job: Job) -> dict[str, Any]:
    """What a client is told of a job."""
    return {"id": job.id, "name": job.name, "state": job.state, "step": job.step, "fraction": round(job.fraction, 3), "reason": job.reason,
            "summary": job.summary, "files": job.files(), "expires_in_s": jobs.expires_in(job)}


def _stem(job: Job) -> str:
    return job.name.split(".")[0]
