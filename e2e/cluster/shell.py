"""Running other programs: short ones whose failure becomes one clear error, long ones with signs of life."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_START = time.monotonic()
_SIGN_OF_LIFE_S = 15.0


class ClusterError(Exception):
    """Something the user can act on: the message names what is missing or failed, and the remedy."""


def say(text: str) -> None:
    """Print a line of progress, with the seconds since this command started."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", flush=True)


def run(
    argv: Sequence[str | Path],
    *,
    text_input: str | None = None,
    stdin: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120.0,
) -> str:
    """Run a program to its end (at most ``timeout`` seconds) and return its standard output.

    Raises ClusterError with the program's last words when it fails.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=text_input.encode() if text_input is not None else None,
            stdin=(stdin or subprocess.DEVNULL) if text_input is None else None,
            capture_output=True,
            env=env,
            cwd=cwd,
            timeout=timeout,
        )
    except FileNotFoundError:
        raise ClusterError(f"{words[0]} is not installed; install it and run this again") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(words)}` did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(words)}` failed: {_last_words(done.stderr or done.stdout)}")
    return done.stdout.decode(errors="replace")


def run_long(
    argv: Sequence[str | Path],
    *,
    what: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 1800.0,
) -> None:
    """Run a program that takes minutes, its output in ``log``, and say every 15 s that it still runs."""
    words = [str(word) for word in argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=cwd
            )
        except FileNotFoundError:
            raise ClusterError(f"{words[0]} is not installed; install it and run this again") from None
        try:
            while True:
                try:
                    code = process.wait(timeout=_SIGN_OF_LIFE_S)
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - began
                    if elapsed > timeout:
                        raise ClusterError(f"{what} did not end within {timeout:.0f} s; see {log}") from None
                    say(f"{what}: {elapsed:.0f} s so far")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        raise ClusterError(f"{what} failed: {_last_words(log.read_bytes())} (whole output: {log})")


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-4:]) or "it said nothing"
