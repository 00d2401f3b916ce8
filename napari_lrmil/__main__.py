"""``python -m napari_lrmil`` is ``lrmil``."""

from napari_lrmil.cli.main import app

if __name__ == "__main__":
    app(prog_name="lrmil")
