"""Slides embedded by dask.distributed workers, of which one dies: nothing is lost, nothing is done twice."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from run_helpers import rerun, write_config

from training.config import RunSection, load_config
from training.files import save_tensors
from training.progress import Reporter
from training.run.cli import run
from training.run.context import Context
from training.run.pipeline import Embedded, embed
from training.run.prepare import prepare
from training.stages import embed_tiles
from training.stages.embed_on_cluster import ClusterError
from training.stages.embed_tiles import EncoderSource, embed_elsewhere

pytestmark = [
    pytest.mark.slow,
    # Of distributed and tornado, when a worker is killed under them.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def context_of(folder: Path, cohort: Path, cluster: str | None) -> Context:
    folder.mkdir(exist_ok=True)
    config = load_config(write_config(folder, cohort), ["--run.out_dir", str(folder / "run")])
    reporter = Reporter(Console(file=io.StringIO()))
    return prepare(config, skip_bad=False, reporter=reporter, cluster=cluster).context


def test_a_worker_takes_the_default_device(cohort: Path, tmp_path: Path, one_thread: None) -> None:
    context = context_of(tmp_path, cohort, None)
    encoder, store = context.teacher_encoder(), context.hr_store()
    weights = tmp_path / "encoder.safetensors"
    save_tensors(weights, encoder.vit.state_dict())
    job = context.jobs(context.rows[:1], store, hr=True)[0]
    source = EncoderSource(
        encoder.spec.model_dump_json(), weights, "hash", RunSection(out_dir=tmp_path).device
    )
    assert embed_elsewhere(job, source) == len(job.places)
    assert job.is_done


def stop_at_the_second_slide(mark: str) -> None:
    """In a worker: say so in a file, and wait there to be killed."""
    embed_slide, calls = embed_tiles.embed_slide, itertools.count(1)

    def stopping(*values: Any, **options: Any) -> int:
        if next(calls) == 2:
            Path(mark).touch()
            threading.Event().wait()
        return embed_slide(*values, **options)

    embed_tiles.embed_slide = stopping


def test_a_dead_worker_loses_nothing_and_nothing_is_done_twice(
    finished: Path, cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        context = context_of(tmp_path / "far", cohort, cluster.scheduler_address)
        rows = context.rows
        store = context.hr_store()
        pids = client.run(os.getpid)
        address, pid = min(pids.items())
        mark = tmp_path / "at-the-second-slide"
        client.run(stop_at_the_second_slide, str(mark), workers=[address])

        def kill_one() -> None:
            deadline = time.monotonic() + 300
            while not mark.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            stored_at_death.update(
                {path.parent.name: path.stat().st_ino for path in store.root.glob("*.zarr/manifest.json")}
            )
            os.kill(pid, signal.SIGKILL)

        stored_at_death: dict[str, int] = {}
        killer = threading.Thread(target=kill_one)
        killer.start()
        embed(context, rows, Embedded(context.teacher_encoder(), store), None, hr=True)
        killer.join()
        assert pid not in client.run(os.getpid).values()
    assert 0 < len(stored_at_death) < len(rows)
    assert all(store.has(row.slide_id) for row in rows)
    # What was there when the worker died is what is there now: the same files, not like ones.
    for name, inode in stored_at_death.items():
        assert (store.root / name / "manifest.json").stat().st_ino == inode
    reference = next((finished / "run" / "embeddings.zarr").glob("hr-*"))
    here = context_of(tmp_path / "near", cohort, None).hr_store()
    shutil.copytree(reference, here.root, dirs_exist_ok=True)
    for row in rows:
        for array in ("embedding", "layer_class_tokens"):
            # Another batch order may round otherwise in float32; stored are halves.
            np.testing.assert_allclose(
                store.read(row.slide_id, array), here.read(row.slide_id, array), rtol=2e-3, atol=2e-3
            )


def test_no_scheduler_is_told(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.stages import embed_on_cluster

    monkeypatch.setattr(embed_on_cluster, "TIMEOUT", "1s")
    context = context_of(tmp_path, cohort, "tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        embed(context, context.rows, Embedded(context.teacher_encoder(), context.hr_store()), None, hr=True)


def test_a_run_on_a_cluster_ends_as_one_without(
    finished: Path, cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    import json

    from distributed import LocalCluster

    from training.config import load_config

    write_config(tmp_path, cohort)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        config = load_config(tmp_path / "config.toml", ["--run.out_dir", str(tmp_path / "run")])
        run(
            config,
            skip_bad=False,
            reporter=Reporter(Console(file=io.StringIO())),
            cluster=cluster.scheduler_address,
        )
    told, expected = (
        json.loads((folder / "run" / "results.json").read_text()) for folder in (tmp_path, finished)
    )
    for method in expected:
        assert told[method]["auc"] == expected[method]["auc"]
        assert told[method]["brier"] == pytest.approx(expected[method]["brier"], rel=1e-4)
    rerun(tmp_path)  # and goes on without the cluster
