"""Fixtures that several folders share: real slides, generated slides and a tiny bundle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from napari_lrmil._viewer.models import import_models

# Before torch is loaded, and for the processes that tests start. Each of a small head's sums is over sooner than a second
# thread wakes up; `make test` has a process for each core instead.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A script's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
import_models()  # before any test draws with OpenGL; see there

import torch  # noqa: E402
from tiny_models import tiny_spec, write_bundle  # noqa: E402

from training.cohort import CohortConfig, generate_cohort  # noqa: E402

# A machine with other work makes examples slowly; that says nothing about the program.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, nor a process that it starts, touches the user's own cache and data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRMIL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LRMIL_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """A file of ../shared/data; the test that asks for an absent one is skipped with the reason."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} (of ../shared/data beside the repository) is absent")
        return path

    return find


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that reads tiles of 32 px."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny_spec(), tile_px=32)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`slides.csv` of 15 generated slides of 512 px at 0.5 µm/px, levels 1/4/16: 4 x 4 tiles of 32 px at 2 µm/px."""
    config = CohortConfig(n_unlabelled=2, n_train=6, n_val=3, n_test=4, width_px=512, height_px=512)
    return generate_cohort(tmp_path_factory.mktemp("cohort"), config, seed=77)


@pytest.fixture(scope="session")
def generated_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated slide of 1024 x 768 px at 0.5 µm/px."""
    config = CohortConfig(n_unlabelled=0, n_train=0, n_val=0, n_test=1, width_px=1024, height_px=768)
    table = generate_cohort(tmp_path_factory.mktemp("slide"), config, seed=78)
    return table.parent / "slides" / "test-000.tif"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, for tests that compare runs bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
