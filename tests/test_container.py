"""Dockerfile and compose.yaml call commands that exist, without root, with nothing writable but /tmp."""
from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from spineclue_v2.cli import command_names
from spineclue_v2.cli._common import build_parser

ROOT = Path(__file__).parents[1]


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, each time it is there."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{name}\s+(.*)$", text, re.MULTILINE)


def test_the_image_runs_a_command_as_somebody_who_is_not_root():
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["python", "-m", "spineclue_v2.cli"]
    assert instructions("FROM") == ["${BASE}"] and instructions("ARG")[0].startswith("BASE=python:3.")
    command, *arguments = json.loads(instructions("CMD")[-1])
    assert command in command_names() and build_parser(command).parse_args(arguments).o.startswith("/tmp/")
    assert instructions("USER")[-1].split(":")[0] not in ("root", "0")
    assert all(value.startswith("/tmp") for value in re.findall(r"(?:HOME|DIR)=(\S+)", instructions("ENV")[-1]))


def test_the_image_holds_everything_that_the_wheel_is_built_from():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "planning", "dataset_conversion", "spineclue_v2"} <= kept
    assert set(re.findall(r"-c (\S+)", " ".join(instructions("RUN")))) <= kept
    assert all((ROOT / name).exists() for name in kept)


def test_the_service_of_compose_is_for_this_computer_with_a_token_and_writes_nowhere():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["serve"]
    command, *arguments = service["command"]
    parsed = build_parser(command).parse_args(arguments)
    assert command == "serve" and not parsed.no_token and parsed.allow_host == ["localhost", "127.0.0.1"]
    assert service["ports"] == [f"127.0.0.1:{parsed.port}:{parsed.port}"] and f":{parsed.port}/health" in service["healthcheck"]["test"][-1]
    assert service["read_only"] is True and service["tmpfs"][0].startswith("/tmp") and service["cap_drop"] == ["ALL"]
    assert service["environment"]["SPINECLUE_TOKEN"].startswith("${SPINECLUE_TOKEN:?"), "without a token it must not start"
