"""The configuration: its schema, the sources of its values, and its error messages."""

from eemtcleanupd.config.loading import Loaded, NotifiersOf, Setting, find_file, load
from eemtcleanupd.config.schema import Config, RetentionConfig

__all__ = [
    "Config",
    "Loaded",
    "NotifiersOf",
    "RetentionConfig",
    "Setting",
    "find_file",
    "load",
]
