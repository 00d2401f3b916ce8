"""``python killed_run.py MODULE FUNCTION N WHEN CONFIG ...``: a training run that is killed at its Nth call of a function.

SIGKILL, before or after the call: nothing is tidied up. WHEN may be another signal, as SIGTERM, which is sent before the
call. Only calls whose arguments mention MATCH (of ``FUNCTION:MATCH``) count.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys


def main() -> None:
    module_name, what, number, when, *args = sys.argv[1:]
    function_name, _, match = what.partition(":")
    owner = importlib.import_module(module_name)
    *parts, name = function_name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    calls = 0

    @functools.wraps(function)
    def deadly(*values: object, **options: object) -> object:
        nonlocal calls
        calls += match in repr((values, options))
        dies = calls == int(number) and match in repr((values, options))
        if dies and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if dies and when.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[when])
        result = function(*values, **options)
        if dies and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    from training.run import cli

    setattr(owner, name, deadly)
    cli.app(args, prog_name="killed_run")


if __name__ == "__main__":
    main()
