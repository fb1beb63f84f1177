"""Write `long_tests.txt`: the tests that take longest, which `make test` leaves to `make test-long`.

    python -m pytest -n 2 -m "not slow" -q --durations=0 --durations-min=0.5 > LOG
    python tests/long_tests.py LOG

tests/conftest.py marks what the list names as `long`. A test that is renamed loses the mark until the list is written
again.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

LIST = Path(__file__).with_name("long_tests.txt")
SECONDS = 1.2
"""From here on a test is long. Its setup counts: a module's fixture falls on the test that needs it first."""
LINE = re.compile(r"^(\d+\.\d+)s (?:call|setup|teardown) +(tests/.+?) *$")


def long_tests(log: str) -> list[str]:
    """The names of a log's long tests, in order."""
    seconds: dict[str, float] = defaultdict(float)
    for line in log.splitlines():
        if match := LINE.match(line):
            seconds[match[2]] += float(match[1])
    return sorted(name for name, spent in seconds.items() if spent >= SECONDS)


if __name__ == "__main__":
    names = long_tests(Path(sys.argv[1]).read_text(encoding="utf-8"))
    LIST.write_text("".join(name + "\n" for name in names), encoding="utf-8")
    print(f"{len(names)} tests")  # noqa: T201
