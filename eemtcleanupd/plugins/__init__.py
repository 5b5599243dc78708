"""Plugins: found, asked what their settings are, and put to use, each by itself."""

from eemtcleanupd.plugins.discovery import load, packed, schema, unpacked
from eemtcleanupd.plugins.manager import PluginSet

__all__ = ["PluginSet", "load", "packed", "schema", "unpacked"]
