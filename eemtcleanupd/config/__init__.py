"""The configuration: what may be in it, where each value came from, and clear words for what is wrong."""

from eemtcleanupd.config.loading import Loaded, NotifiersOf, Setting, find_file, load
from eemtcleanupd.config.schema import Config, RetentionConfig

__all__ = ["Config", "Loaded", "NotifiersOf", "RetentionConfig", "Setting", "find_file", "load"]
