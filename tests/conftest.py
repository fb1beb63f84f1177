"""What holds for every test: one thread a process, and no deadline for generated examples.

The suite runs one process a core, and two cores shared by four threads crawl. On a busy machine an example may take any
time, and that says nothing about the code.
"""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("gouache", deadline=None)
settings.load_profile("gouache")
