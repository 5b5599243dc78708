"""Plugins: discovery, their settings, and isolated calls of their hooks."""

from eemtcleanupd.plugins.discovery import from_dict, load, schema, to_dict
from eemtcleanupd.plugins.manager import Plugins

__all__ = ["Plugins", "from_dict", "load", "schema", "to_dict"]
