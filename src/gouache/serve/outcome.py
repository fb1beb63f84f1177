"""What a finished job means to a caller that waited for it."""

from __future__ import annotations

from gouache import errors
from gouache.errors import GouacheError, StoreError
from gouache.serve.job import FINISHED, Job
from gouache.serve.replies import TookTooLong


def raise_unless_painted(job: Job) -> None:
    """Raise what a job that is not done stands for; a cancelled one is answered with what there is."""
    if job.state not in FINISHED:
        raise TookTooLong(
            f"job {job.id}", given="a job that still runs", expected="its end",
            cure=f"It goes on; GET /v1/jobs/{job.id} tells when it is done.",
        )  # fmt: skip
    parts = job.complaint()
    if job.state == "failed" and parts is not None:
        kind = getattr(errors, parts.get("kind", ""), StoreError)
        known = isinstance(kind, type) and issubclass(kind, GouacheError)
        raise (kind if known else StoreError)(
            parts["where"], given=parts["given"], expected=parts["expected"], cure=parts["cure"]
        )
