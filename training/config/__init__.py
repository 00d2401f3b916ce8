"""The configuration of a run, read from TOML; each section stands beside the code that it configures."""

from training.config.load import load_config
from training.config.run_config import RunConfig, RunSection

__all__ = ["RunConfig", "RunSection", "load_config"]
