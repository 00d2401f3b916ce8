"""Embed slides on other machines: the jobs go to a dask.distributed scheduler, the embeddings to the store.

The workers see the same files as this process: slides, weights and store lie on a file system that all of them mount
at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

from napari_lrmil.errors import LRMILError
from training.stages.context import Context
from training.stages.embed_tiles import EmbedJob, EncoderSource, embed_elsewhere

_RETRIES = 1
TIMEOUT = "30s"
"""For the scheduler to answer."""


class ClusterError(LRMILError):
    """The scheduler can't be reached, or a slide failed on every worker."""


def embed_on_cluster(
    context: Context, jobs: Sequence[EmbedJob], source: EncoderSource, description: str
) -> None:
    """Embed on the workers of ``context.cluster`` what isn't done.

    A slide whose worker dies goes to another one. It is written whole by a worker or not at all, and a worker first
    looks whether it is there: nothing is lost, and nothing is done twice.

    Parameters
    ----------
    context : Context
        Its `cluster` is the address of the scheduler, ``tcp://host:8786``.
    jobs : sequence of EmbedJob
    source : EncoderSource
    description : str

    Raises
    ------
    ClusterError
    """
    from distributed import Client, as_completed

    if jobs:
        jobs[0].store.prepare()
    todo = [job for job in jobs if not job.is_done]
    total = sum(len(job.places) for job in todo)
    try:
        client = Client(context.cluster, timeout=TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no dask scheduler answers at {context.cluster} ({error}). Start one with 'dask scheduler', and workers "
            "with 'dask worker' in this environment."
        ) from error
    with client, context.reporter.bar(description, total) as advance:
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
            error = future.exception()
            if isinstance(error, LRMILError):
                raise error
            if error is not None:
                raise ClusterError(f"{name} could not be embedded on the cluster: {error}") from error
            advance(future.result(), note=f"{len(client.scheduler_info()['workers'])} workers")
            future.release()
    missing = [job.tiles.row.slide_id for job in todo if not job.is_done]
    if missing:
        raise ClusterError(
            f"{len(missing)} slides were embedded where this process can't see them, {missing[0]} for one: do the workers "
            f"mount {jobs[0].store.root} at the same path?"
        )
