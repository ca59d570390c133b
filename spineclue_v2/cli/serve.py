"""`spineclue_serve`: label scans that are uploaded by browsers and programs."""
from __future__ import annotations

import argparse
import os
import secrets
import tempfile
from functools import partial
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..serving.jobs import Limits

DESCRIPTION = ("Serve the model to browsers and programs of this computer: upload a scan, watch, look, download. One scan is predicted at "
               "a time. Uploads and results are removed after a while. Needs the extra serve.")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "SPINECLUE_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .predict import add_model_arguments, add_source_arguments

    add_source_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: every one, for a container or behind a proxy "
                        "that encrypts")
    parser.add_argument("--port", type=int, default=8060, help="port to listen at, 0: any that is free")
    parser.add_argument("--token", default=None, help=f"what every request has to bring; default: ${TOKEN}, else a new one that is printed")
    parser.add_argument("--no_token", action="store_true", help="everybody on this computer may use the service")
    parser.add_argument("--allow_host", nargs="+", default=[], metavar="NAME", help="names that the service may be called by, beside "
                        "--host; without this any, where it listens beyond this computer")
    parser.add_argument("--max_mb", type=int, default=2048, help="largest upload in MB")
    parser.add_argument("--upload_seconds", type=float, default=600.0, help="longest upload")
    parser.add_argument("--seconds", type=float, default=1800.0, help="longest prediction of one upload")
    parser.add_argument("--keep_minutes", type=float, default=60.0, help="results are removed after this time")
    parser.add_argument("--waiting", type=int, default=1, help="uploads that may wait while another is predicted")
    parser.add_argument("--folder", default=None, help="folder for uploads and results; default: the one for temporary files")


def run(args: argparse.Namespace) -> int:
    try:
        import python_multipart  # noqa: F401  (FastAPI asks for it when the first form comes)
        import uvicorn

        from ..serving.app import make_app
    except ImportError as error:
        raise InputError(f"spineclue_serve needs the package {error.name}; install it with pip install 'spineclue_v2[serve]'.") from error
    from ..serving.jobs import Jobs
    from ..serving.worker import PredictionProcess
    from .predict import load_model

    token, limits = token_of(args), limits_of(args)
    process = PredictionProcess(partial(load_model, args))
    about = process.start()
    jobs = Jobs(process, limits, args.folder)
    tempfile.tempdir = str(jobs.folder)  # where forms lie until they are read
    local = args.host in LOOPBACK
    hosts = {*LOOPBACK, "[::1]", *(name.lower() for name in args.allow_host)} if local or args.allow_host else set()
    if args.allow_host:
        hosts.add(args.host.lower())
    config = uvicorn.Config(make_app(jobs, about, token, hosts), host=args.host, port=args.port, log_level="warning", access_log=False,
                            timeout_keep_alive=10, limit_concurrency=64, server_header=False, ws="none")
    server = uvicorn.Server(config)
    try:
        socket = config.bind_socket()
        port = socket.getsockname()[1]
        print(f"Open {address(args.host, port, token)}  (Ctrl-C ends the service)", flush=True)
        server.run([socket])
    except SystemExit as error:  # uvicorn's way to say that it cannot listen; it has logged why
        raise InputError(f"Cannot listen at {args.host} port {args.port}; choose another --port.") from error
    finally:
        jobs.close()
    return 0


def address(host: str, port: int, token: str | None) -> str:
    """What to type into a browser of this computer."""
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


def token_of(args: argparse.Namespace) -> str | None:
    """The token that is to be used, None for none. InputError for none where others could come in."""
    given = args.token or os.environ.get(TOKEN)
    if args.no_token:
        if args.host not in LOOPBACK:
            raise InputError(f"--no_token at {args.host} would let everybody in; leave it out, or listen at 127.0.0.1.")
        return None
    if given is not None and (len(given) < 12 or not given.isascii() or any(c in given for c in " /?&#%;,\"\\")):
        raise InputError("The token is too short or has characters that addresses cannot hold; give 12 letters and digits or more.")
    return given or secrets.token_urlsafe(24)


def limits_of(args: argparse.Namespace) -> Limits:
    """Limits from the flags; InputError for impossible ones."""
    from ..serving.jobs import Limits

    for flag, value, least in (("--max_mb", args.max_mb, 1), ("--upload_seconds", args.upload_seconds, 1), ("--seconds", args.seconds, 1),
                               ("--keep_minutes", args.keep_minutes, 0.01), ("--waiting", args.waiting, 0), ("--port", args.port, 0)):
        if not value >= least:
            raise InputError(f"{flag} is {value:g}; expected {least} or more.")
    if args.port > 65535:
        raise InputError(f"--port is {args.port}; expected 65535 at most.")
    return Limits(args.max_mb << 20, args.upload_seconds, args.seconds, 60.0 * args.keep_minutes, args.waiting)
