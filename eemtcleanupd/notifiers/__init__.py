"""Notifiers that come with eemtcleanupd; each module is a plugin like those of others."""
