"""The command line: one verb a file, imported when it is asked for.

Exit status: 0 done, 1 a verb's own "no", 2 an error (one line on stderr), 130 interrupted,
141 the reader of our output went away.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bcquant import __version__, registry
from bcquant.cli.verb import Verb
from bcquant.errors import BcquantError, ConfigError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
_NOT_VERBS = ("engine_flags", "progress", "quantize_flags", "verb")
_EXAMPLES = """\
examples:
  bcquant demo
  bcquant gptq path/to/model -o quantized --bits 4 --group-size 128
  bcquant eval ppl quantized --text builtin
  bcquant generate quantized --prompt "The capital of France is"
  bcquant inspect quantized

`bcquant VERB --help` lists the flags of a verb."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError and takes no abbreviated flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise the complaint of argparse as one line.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def verb_names() -> list[str]:
    """Every verb there is, sorted: the files of this package."""
    return [name for name in registry.names(__name__) if name not in _NOT_VERBS]


def load_verb(name: str) -> Verb:
    """Import the file of one verb.

    Raises:
        ConfigError: there is no such verb; the message names the nearest.
    """
    known = verb_names()
    if name not in known:
        raise ConfigError(f"{name!r} is not a verb; {registry.nearest(name, known)}")
    verb = registry.load(__name__, name, "VERB")
    assert isinstance(verb, Verb) and verb.name == name, f"cli/{name}.py exports a wrong VERB"
    return verb


def verb_parser(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb, its examples under the help."""
    lines = [f"  {line.strip()}" for line in verb.examples.strip().splitlines()]
    epilog = "\n".join(["examples:", *lines]) if lines else None
    parser = Parser(prog=f"bcquant {verb.name}", description=verb.help + ".", epilog=epilog)
    verb.add_arguments(parser)
    return parser


def _top_parser() -> argparse.ArgumentParser:
    verbs = [load_verb(name) for name in verb_names()]
    width = max((len(verb.name) for verb in verbs), default=0)
    listing = "\n".join(f"  {verb.name:<{width}}  {verb.help}" for verb in verbs)
    parser = Parser(
        prog="bcquant",
        usage="bcquant [--help] [--version] VERB ...",
        description="Quantize a language-model checkpoint and prove what was written."
        f"\n\nverbs:\n{listing}",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"bcquant {__version__}")
    return parser


def _dispatch(argv: Sequence[str]) -> int:
    if argv and not argv[0].startswith("-"):
        verb = load_verb(argv[0])
        return verb.run(verb_parser(verb).parse_args(argv[1:]))
    parser = _top_parser()
    if not argv:
        parser.print_help(sys.stderr)
        return EXIT_ERROR
    parser.parse_args(argv)
    raise ConfigError("a verb is missing; see `bcquant --help`")


def _complain(message: str) -> int:
    print("bcquant: error:", " ".join(message.split()), file=sys.stderr)
    return EXIT_ERROR


def _describe(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({error or 'no detail'}); close other programs or use a smaller input"
        )
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; never lets an expected failure through as a traceback.

    Args:
        argv: the arguments after the program's name; None takes the process's own.
    Returns:
        the exit status (see the module's docstring).
    """
    try:
        status = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # argparse ends --help and --version this way
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_PIPE_CLOSED
    except KeyboardInterrupt as stop:
        print("bcquant: interrupted" + (f"; {stop}" if stop.args else ""), file=sys.stderr)
        return EXIT_INTERRUPTED
    except BcquantError as error:
        return _complain(str(error))
    except (OSError, MemoryError) as error:
        return _complain(_describe(error))


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except io.UnsupportedOperation:  # stdout was replaced by an object without a descriptor
        return


def entry() -> NoReturn:
    """The console script: `main`, with output that no terminal encoding can make fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
