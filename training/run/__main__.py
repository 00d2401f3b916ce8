"""``python -m training.run CONFIG``: from a table of slides to a bundle, all steps of LRMIL."""

from training.run.cli import app

if __name__ == "__main__":
    app(prog_name="python -m training.run")
