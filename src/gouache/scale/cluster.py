"""A connection to a cluster of Ray, made and ended in one place; nothing else of the package starts or stops Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gouache.errors import ClusterError

HERE = "local"
"""The address that stands for a new cluster of this machine alone."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; afterwards the connection is given up, and a cluster that was started here ends.

    Args:
        address: `HOST:PORT` of the head node; `local` starts a cluster on this machine; None takes the one that
            `RAY_ADDRESS` names or that runs on this machine, and starts one where there is none.

    Raises:
        ClusterError: nothing answers at this address.
        ModuleNotFoundError: Ray is not installed.
    """
    # Read when Ray is imported and started. Whoever wants to tell Ray's makers sets the variable to 1.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        raise ClusterError(
            "--ray",
            given=f"{address or 'no address'}: {str(error).splitlines()[0]}",
            expected="the address of a cluster that runs, as `ray start --head` prints it, or local",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
