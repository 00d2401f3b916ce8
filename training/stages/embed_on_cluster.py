"""Embed slides on other machines: the jobs go to a dask.distributed scheduler, the embeddings to the store.

The workers see the same files as this process: slides, weights and store lie on a file system that all of them mount
at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

from napari_lrmil.errors import LRMILError, SlideError
from training.progress import Reporter
from training.stages.embed_tiles import EmbedJob, EncoderSource, embed_elsewhere, refuse_failed

_RETRIES = 1
TIMEOUT = "30s"
"""For the scheduler to answer."""


class ClusterError(LRMILError):
    """The scheduler can't be reached, or a slide failed on every worker."""


def embed_on_cluster(
    jobs: Sequence[EmbedJob], source: EncoderSource, scheduler: str, reporter: Reporter, description: str
) -> None:
    """Embed on the workers of a scheduler what isn't done.

    A slide whose worker dies goes to another one. It is written whole by a worker or not at all, and a worker first
    looks whether it is there: nothing is lost, and nothing is done twice.

    Parameters
    ----------
    jobs : sequence of EmbedJob
    source : EncoderSource
    scheduler : str
        Its address, ``tcp://host:8786``.
    reporter : Reporter
    description : str
        For the bar.

    Raises
    ------
    ClusterError
    SlideError
        As `embed_slides` does.
    """
    from distributed import Client, as_completed

    if jobs:
        jobs[0].store.prepare()
    todo = [job for job in jobs if not job.is_done]
    failed: dict[str, SlideError] = {}
    total = sum(len(job.places) for job in todo)
    try:
        client = Client(scheduler, timeout=TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no dask scheduler answers at {scheduler} ({error}). Start one with 'dask scheduler', and workers "
            "with 'dask worker' in this environment."
        ) from error
    with client, reporter.bar(description, total) as advance:
        futures = {
            client.submit(
                embed_elsewhere,
                job,
                source,
                key=f"embed-{job.store.root.name}-{job.tiles.row.slide_id}",
                retries=_RETRIES,
            ): job
            for job in todo
        }
        for future in as_completed(list(futures), loop=client.loop):
            name = futures[future].tiles.row.slide_id
            failure = future.exception()
            if isinstance(failure, SlideError):
                failed[name] = failure
                continue
            if isinstance(failure, LRMILError):
                raise failure
            if failure is not None:
                raise ClusterError(f"{name} could not be embedded on the cluster: {failure}") from failure
            advance(future.result(), note=f"{len(client.scheduler_info()['workers'])} workers")
            future.release()
    refuse_failed(failed)
    missing = [job.tiles.row.slide_id for job in todo if not job.is_done]
    if missing:
        raise ClusterError(
            f"{len(missing)} slides were embedded where this process can't see them, {missing[0]} for one: do the workers "
            f"mount {jobs[0].store.root} at the same path?"
        )
