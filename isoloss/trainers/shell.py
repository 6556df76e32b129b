"""takes a command line, gives the measurements it prints: any program that writes JSON lines is a trainer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Thread
from typing import IO, Any

__all__ = ["Command", "train"]

OWN = ("command", "cwd", "env")
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
TAIL = 20  # lines of standard error that an error repeats
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Command:
    """A program as it is started, every placeholder filled.

    Args:
        words: the program and its arguments; no shell reads them.
        folder: where it runs.
        environment: variables beside those of this process.
    """

    words: tuple[str, ...]
    folder: str | None
    environment: Mapping[str, str]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Command:
        """From the plain dict of a run.

        Raises:
            ValueError: a setting is missing, or a placeholder names none.
            TypeError: ``command`` is no list of texts, ``cwd`` no text or ``env`` no texts by name.

        Example:
            >>> Command.of({"command": ["./train", "--lr={lr}", "{{as_it_is}}"], "lr": 1e-3}).words
            ('./train', '--lr=0.001', '{as_it_is}')
        """
        command, cwd, env = config.get("command"), config.get("cwd"), config.get("env", {})
        if command is None:
            raise ValueError("settings of a shell run lack command, a list of texts. Add it")
        if not (isinstance(command, list | tuple) and all(isinstance(word, str) for word in command)):
            raise TypeError(f'command: needed a list of texts such as ["./train", "{{lr}}"], got {command!r}')
        if not command:
            raise ValueError("command: needed a program and its arguments, got an empty list")
        if not (cwd is None or isinstance(cwd, str)):
            raise TypeError(f"cwd: needed text, got {cwd!r}")
        if not (isinstance(env, Mapping) and all(isinstance(value, str) for value in env.values())):
            raise TypeError(f"env: needed texts by name, got {env!r}")
        values = {name: value for name, value in config.items() if name not in OWN}
        return cls(
            tuple(_filled("command", word, values) for word in command),
            _filled("cwd", cwd, values) if cwd is not None else None,
            {name: _filled(f"env {name}", value, values) for name, value in env.items()},
        )


def _filled(where: str, text: str, values: Mapping[str, Any]) -> str:
    """The text with each ``{name}`` replaced: text as it is, anything else as JSON; ``{{name}}`` is ``{name}``."""

    def one(match: re.Match[str]) -> str:
        kept, name = match.groups()
        if kept is not None:
            return f"{{{kept}}}"
        if name == "python" and name not in values:
            return sys.executable
        if name not in values:
            raise ValueError(
                f"{where}: needed a setting for {{{name}}}, got only {', '.join(values) or 'none'}. "
                f"Add it, or write {{{{{name}}}}} for the braces themselves"
            )
        value = values[name]
        return value if isinstance(value, str) else json.dumps(value)

    return PLACEHOLDER.sub(one, text)


def train(config: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, float | str]]]:
    """Run a command and give what it prints.

    A line of standard output that is a JSON object with ``"step"`` is a measurement; its other entries are
    numbers (``NaN`` and ``Infinity`` too) or texts. Every other line, and standard error, goes to the log.
    The last measurement is the result.

    - ``{name}`` in a word is the setting of that name: a text as it is, anything else as JSON (``0.001``,
      ``true``). ``{folder}`` is the run's own folder, ``{python}`` the interpreter of this process.
      ``{{name}}`` is the word in braces itself. No shell reads the command: for pipes, ``["sh", "-c", ...]``.
    - ``PYTHONUNBUFFERED=1`` is set; other programs must flush each line, or be killed with it unread.
    - To go on after a crash the program looks into ``{folder}``. The line that it printed just before may
      have been lost: after a checkpoint is loaded, print its measurement again; a run found finished prints
      its result again.
    - When the run is stopped, the program gets SIGTERM, then has 5 s to save itself before SIGKILL. It stays
      in this process's group. In ``sh -c`` write ``exec`` before the trainer, so that it gets the signal.
    - A setting that no placeholder names does nothing; the log says so.

    There are no axes beside it: the numeric settings are the axes. To give counts, write a file with
    ``from isoloss.trainers.shell import train`` and a function ``axes(config)`` of your own, and name that.

    Args:
        config: ``command`` (list of texts); ``cwd`` (where it runs; else where this process is, the
            folder of the study file); ``env`` (texts by name, beside this process's variables); and the settings it names.

    Returns:
        Steps and measurements, for the worker of a study.

    Raises:
        ValueError: a placeholder without a setting; a measurement that is none; no measurement at all.
        TypeError: ``command``, ``cwd`` or ``env`` of the wrong kind.
        OSError: the program cannot be started.
        RuntimeError: it ended with an exit code other than 0; its last lines of standard error are in it.

    Example:
        >>> list(train({"command": ["echo", '{"step": 5, "loss": {loss}}'], "loss": 2.5}))
        [(5, {'loss': 2.5})]
    """
    command = Command.of(config)
    named = {
        match[2]
        for match in PLACEHOLDER.finditer(json.dumps([config.get(name) for name in OWN], ensure_ascii=False))
    }
    if unnamed := [name for name in config if name not in (*OWN, *named, "folder")]:
        sys.stderr.write(f"settings that the command does not name: {', '.join(unnamed)}\n")
    # Standard input is the worker's line to its driver: not for the child.
    child = subprocess.Popen(
        command.words,
        cwd=command.folder,
        env={"PYTHONUNBUFFERED": "1", **os.environ, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert child.stdout is not None
    assert child.stderr is not None
    tail: deque[str] = deque(maxlen=TAIL)
    listener = Thread(target=_pass_on, args=(child.stderr, tail), daemon=True)
    listener.start()
    measured = 0
    try:
        for line in child.stdout:
            measurement = _measurement(line)
            if measurement is None:
                sys.stdout.write(line)
                sys.stdout.flush()
            else:
                measured += 1
                yield measurement
        code = child.wait()
    finally:
        _end(child)
        listener.join(timeout=GRACE)
    if code != 0:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = "".join(tail).strip()
        raise RuntimeError(
            f"{command.words[0]} {how}. " + (f"Its last words:\n{last}" if last else "It said nothing")
        )
    if not measured:
        raise ValueError(
            f'needed lines such as {{"step": 1, "loss": 2.5}} on standard output, {command.words[0]} printed none. '
            "Print one JSON object a line"
        )


def _measurement(line: str) -> tuple[int, dict[str, float | str]] | None:
    """Step and measurements; None for a line that is not meant as one.

    Raises:
        ValueError: it is, but the step is not a whole number or a value neither number nor text.
    """
    if not line.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(found, dict) or "step" not in found:
        return None
    step = found.pop("step")
    if isinstance(step, bool) or not isinstance(step, int | float) or step % 1 != 0:
        raise ValueError(f"needed a whole number as step, got {line.strip()}")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"needed a number or text as {name}, got {json.dumps(value)} in {line.strip()}")
    return int(step), found


def _pass_on(source: IO[str], tail: deque[str]) -> None:
    """Standard error to the log, its end kept."""
    with source:
        for line in source:
            tail.append(line)
            sys.stderr.write(line)
            sys.stderr.flush()


def _end(child: subprocess.Popen[str]) -> None:
    """Ask the child to end, then make it end; what it still prints is read, so that it does not wait for us."""
    assert child.stdout is not None
    if child.poll() is None:
        rest = Thread(target=child.stdout.read, daemon=True)
        rest.start()
        child.terminate()
        try:
            child.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        rest.join(timeout=1.0)
        if rest.is_alive():  # a child of the child holds the pipe
            return
    child.stdout.close()
