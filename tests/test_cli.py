"""Commands: -h at once, no flag taken for another, one sentence and exit code 2 for bad input."""
from __future__ import annotations

import errno
import importlib
import importlib.metadata
import logging
import subprocess
import sys

import pytest

from spineclue_v2 import cli
from spineclue_v2.cli import _common
from spineclue_v2.errors import InputError

COMMANDS = cli.command_names()
HEAVY = ("torch", "SimpleITK", "sklearn", "scipy", "matplotlib", "nnunetv2", "ultralytics", "cv2", "pandas", "batchgenerators")


def test_every_command_is_installed_and_no_script_is_left_over():
    scripts = {e.name for e in importlib.metadata.distribution("spineclue_v2").entry_points if e.group == "console_scripts"}
    assert scripts == {f"spineclue_{name}" for name in COMMANDS}, "install again: pip install -e '.[test]'"


def test_help_of_all_commands_imports_nothing_heavy():
    program = ("import sys\nfrom spineclue_v2.cli import command_names\nfrom spineclue_v2.cli._common import build_parser\n"
               "for name in command_names():\n    assert build_parser(name).format_help()\n"
               f"print(' '.join(m for m in {HEAVY} if m in sys.modules))")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_command_and_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit) as stop:
        _common.main(command, ["-h"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"spineclue_{command}" in text and "--quiet" in text
    module = importlib.import_module(f"spineclue_v2.cli.{command}")
    assert module.DESCRIPTION.split()[0] in text
    undescribed = [a.option_strings for a in _common.build_parser(command)._actions if not a.help]
    assert not undescribed


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_flag_is_an_error_that_names_the_nearest(command, capsys):
    with pytest.raises(SystemExit) as stop:
        _common.main(command, ["--verbos"])
    assert stop.value.code == _common.BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "did you mean --verbose?" in message
    assert message.count("\n") == 1


def parser() -> _common.Parser:
    built = _common.Parser(prog="spineclue_try")
    built.add_argument("-d", nargs="+", help="dataset")
    built.add_argument("-device", help="device")
    built.add_argument("-step_size", type=float, help="step")
    built.add_argument("rest", nargs="*", help="rest")
    return built


@pytest.mark.parametrize("typed, meant", [(["-devce", "cpu"], "-device"), (["-d", "5", "--device=cpu"], "-device"),
                                          (["-step", "1"], "-step_size"), (["-stepsize=1"], "-step_size")])
def test_no_flag_is_taken_for_another(typed, meant, capsys):
    # argparse reads `-devce cpu` as `-d evce` and `-step 1` as `-step_size 1`.
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(typed)
    assert stop.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_numbers_and_what_follows_a_double_dash_are_no_flags():
    assert parser().parse_args(["-step_size", "-0.5"]).step_size == -0.5
    assert parser().parse_args(["--", "-odd.nii.gz"]).rest == ["-odd.nii.gz"]
    assert parser().parse_args(["-d", "1", "2", "-device", "cpu"]).d == ["1", "2"]


@pytest.fixture
def command(monkeypatch):
    """A command `spineclue_evaluate` whose `run` is the function given."""
    module = importlib.import_module("spineclue_v2.cli.evaluate")
    monkeypatch.setattr(module, "add_arguments", lambda parser: None)
    root, own = logging.getLogger(), logging.getLogger("spineclue_v2")
    before = root.handlers[:], root.level, own.level

    def use(run):
        monkeypatch.setattr(module, "run", run)
        return lambda *argv: _common.main("evaluate", list(argv))

    yield use
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


def failing(error):
    def run(args):
        raise error
    return run


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_is_what_the_command_returns(command, code):
    assert command(lambda args: code)() == code


def test_bad_input_is_one_sentence(command, capsys):
    assert command(failing(InputError("scan.nii.gz does not exist.")))() == 2
    assert capsys.readouterr().err == "error: scan.nii.gz does not exist.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_one_sentence(command, number, capsys):
    assert command(failing(OSError(number, "it is so", "out/case.json")))() == 2
    message = capsys.readouterr().err
    assert message.startswith("error: Cannot write out/case.json: it is so") and message.count("\n") == 1


def test_a_missing_system_library_says_what_to_install(command, capsys):
    error = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    assert command(failing(error))() == 2
    message = capsys.readouterr().err
    assert "libGL.so.1" in message and "apt-get install libgl1 libglib2.0-0" in message


def test_an_interrupted_command_says_so(command, capsys):
    assert command(failing(KeyboardInterrupt()))() == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), ImportError("No module named 'typo'"), OSError(errno.EBADF, "bug")])
def test_bugs_keep_their_traceback(command, bug):
    with pytest.raises(type(bug)):
        command(failing(bug))()


@pytest.mark.parametrize("flag, shown", [([], ["info", "warning"]), (["-q"], ["warning"]),
                                         (["--verbose"], ["debug", "info", "warning"])])
def test_how_much_is_said(command, capsys, flag, shown):
    def run(args):
        for level in ("debug", "info", "warning"):
            getattr(logging.getLogger("spineclue_v2.some.room"), level)("this is %s", level)
        logging.getLogger("another.library").info("chatter")
        return 0
    assert command(run)(*flag) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [("warning: " if level == "warning" else "") + f"this is {level}" for level in shown]


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        _common.main("evaluate", ["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.split()[0] == "spineclue_v2"


def test_a_flag_of_the_first_version_is_read_once_with_a_warning(capsys):
    args = _common.build_parser("predict").parse_args(["-i", "a", "-o", "b", "--witnesses", "shape"])
    assert args.classifiers == ["shape"]
    assert "--witnesses is called --classifiers now" in capsys.readouterr().err
