"""One thread for every test process: the suite runs one process a core, and two cores shared by four threads crawl."""

from __future__ import annotations

import os

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
