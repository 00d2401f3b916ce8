"""`lrmil cache`."""

from __future__ import annotations

from typing import Annotated

import typer

from napari_lrmil.cli import console
from napari_lrmil.cli.console import CacheDirOption
from napari_lrmil.terminal import errors_as_messages

_GB = 10**9

cache_app = typer.Typer(
    help="Results kept so that slides needn't be classified twice; slides' names aren't kept.",
    no_args_is_help=True,
)


@cache_app.command("info")
def cache_info(cache_dir: CacheDirOption = None) -> None:
    """Where the cache is and what it holds."""
    from napari_lrmil.cache import ResultCache

    cache = ResultCache(cache_dir)
    size = cache.size()
    _say(f"folder      {cache.root}")
    _say(f"results     {size.n_results}")
    _say(f"thumbnails  {size.n_thumbnails}")
    _say(f"size        {_amount(size.total_bytes)} of at most {_amount(size.limit_bytes)}")


@cache_app.command("clear")
def cache_clear(
    cache_dir: CacheDirOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Delete all kept results and thumbnails. Verdicts and exported files stay."""
    with errors_as_messages():
        from napari_lrmil.cache import ResultCache

        cache = ResultCache(cache_dir)
        size = cache.size()
        if not yes:
            typer.confirm(f"Delete {size.n_results} results in {cache.root}?", abort=True)
        cache.clear()
        _say(f"Deleted {size.n_results} results, {_amount(size.total_bytes)}.")


@cache_app.command("limit")
def cache_limit(
    gigabytes: Annotated[float, typer.Argument(min=0, metavar="GB", show_default=False)],
    cache_dir: CacheDirOption = None,
) -> None:
    """Keep at most GB gigabytes, for the window too; what was used longest ago is deleted first."""
    with errors_as_messages():
        from napari_lrmil.cache import ResultCache

        cache = ResultCache(cache_dir)
        cache.set_limit(round(gigabytes * _GB))
        size = cache.size()
        _say(f"Now {_amount(size.total_bytes)} of at most {_amount(size.limit_bytes)}.")


def _amount(n_bytes: int) -> str:
    return f"{n_bytes / _GB:.2f} GB" if n_bytes >= 0.1 * _GB else f"{n_bytes / 10**6:.1f} MB"


def _say(text: str) -> None:
    console.out.print(text, highlight=False, markup=False, soft_wrap=True)
