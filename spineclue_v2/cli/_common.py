"""What all commands share: the parser, logging, exit codes, and turning errors into one sentence.

Exit codes: 0 done, 1 some cases failed, 2 bad input, 130 interrupted. A traceback is always a bug of ours.
"""
from __future__ import annotations

import argparse
import difflib
import errno
import gc
import importlib
import io
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ..errors import InputError
from ..utilities.environment import guard
from ..utilities.threads import choose_threads
from ..version import __version__

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


GARBAGE = 50_000    # new objects between looks for circles of them: what is imported stays, and looking at it takes a twentieth of the time
OLD_FLAGS = {"--witnesses": "--classifiers"}  # of 0.1


class _HelpFormatter(argparse.HelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings or "default" in text:
            return text
        value = " ".join(map(str, action.default)) if isinstance(action.default, list | tuple) else action.default
        return f"{text} (default: {value})"


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no flag for another one and names the nearest when it knows none of that name."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **arguments)

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # Before argparse sees them: it would read the mistyped `-devce cpu` as `-d evce`.
        args = [self._present_name(token) for token in (sys.argv[1:] if args is None else args)]
        for token in args:
            if token == "--":
                break
            self._check_flag(token.split("=")[0])
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}; {self.prog} -h lists all flags.\n")

    def _present_name(self, token: str) -> str:
        """A flag of 0.1 under its present name, with a warning."""
        name = token.split("=")[0]
        present = OLD_FLAGS.get(name)
        if present is None or present not in self._option_string_actions:
            return token
        sys.stderr.write(f"warning: {name} is called {present} now; the old name will go.\n")
        return present + token[len(name):]

    def _check_flag(self, token: str) -> None:
        known = self._option_string_actions
        if not token.startswith("-") or token == "-" or token in known or _is_number(token):
            return
        close = difflib.get_close_matches(token, known, n=1, cutoff=0.5)
        self.error(f"unknown flag {token}" + (f", did you mean {close[0]}?" if close else ""))


def build_parser(command: str) -> Parser:
    """The parser of `command` (a module of this package) with the flags that every command has."""
    module = importlib.import_module(f"{__package__}.{command}")
    parser = Parser(prog=f"spineclue_{command}", description=module.DESCRIPTION)
    module.add_arguments(parser)
    # nnU-Net spells it --verbose, and some of its commands list it themselves.
    if "--verbose" not in parser._option_string_actions:
        parser.add_argument("--verbose", action="store_true", help="say more about what is done")
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    parser.add_argument("--version", action="version", version=f"spineclue_v2 {__version__}")
    return parser


def main(command: str, argv: Sequence[str] | None = None) -> int:
    """Run `command` with `argv` (default: the process's) and return its exit code; bad input is one sentence on stderr."""
    guard()
    choose_threads()
    gc.set_threshold(GARBAGE)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    args = build_parser(command).parse_args(argv)
    configure_logging(verbose=args.verbose, quiet=args.quiet)
    try:
        return int(importlib.import_module(f"{__package__}.{command}").run(args))
    except InputError as error:
        return _bad_input(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else ""
        return _bad_input(f"Cannot write{where}: {error.strerror}; choose a folder that is writable and has space.")
    except ImportError as error:
        # OpenCV needs libraries that slim systems and containers lack; any other failed import is a bug.
        if "cannot open shared object file" not in str(error):
            raise
        return _bad_input(f"A system library is missing ({error}); on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0")


def configure_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Plain sentences on stderr: what the package says, and the warnings of other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Sentence())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.getLogger("spineclue_v2").setLevel(level)
    logging.getLogger("pydicom").setLevel(logging.ERROR)  # headers beside the standard: what matters of them we say ourselves


class _Sentence(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def _bad_input(sentence: str) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return BAD_INPUT


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
