"""Plugins: found, asked what their settings are, and put to use, each by itself."""

from eemtcleanupd.plugins.discovery import from_dict, load, schema, to_dict
from eemtcleanupd.plugins.manager import Plugins

__all__ = ["Plugins", "from_dict", "load", "schema", "to_dict"]
