"""Takes words on a command line, gives tables and JSON: one thin file per verb."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

BAD_INPUT, NO_ANSWER, INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``isoloss`` and leave with 0, 2 (bad input), 3 (no answer) or 130 (Ctrl-C)."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run ``isoloss`` and return its exit code; errors are one line on standard error."""
    import typer

    from isoloss.cli.app import app
    from isoloss.errors import NoAnswer

    # BadParameter < UsageError < ClickException: typer has its own copy of click in some versions.
    wrong_words = typer.BadParameter.__mro__[2]
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=words, prog_name="isoloss", standalone_mode=False)
    except NoAnswer as error:
        return _say(f"no answer: {error.reason.rstrip('.')}. Needed: {error.needed}", NO_ANSWER)
    except (ValueError, TypeError) as error:
        return _say(str(error), BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except (BrokenPipeError, SystemExit) as error:  # `isoloss laws | head`
        # rich turns a closed pipe into SystemExit; any other is somebody's own and not ours to swallow
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not isinstance(error, wrong_words):
            raise
        where = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
            return BAD_INPUT
        hint = f" See `{where.command_path} --help`." if where is not None else ""
        return _say(f"{error.format_message().rstrip('.')}.{hint}", BAD_INPUT)  # type: ignore[attr-defined]
    return code if isinstance(code, int) else 0


def _say(text: str, code: int) -> int:
    print(f"isoloss: {' '.join(text.split())}", file=sys.stderr)
    return code
