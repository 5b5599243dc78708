"""Built-in notifiers: each module is a plugin, except ``http``, ``messages`` and ``smtp``, which they use."""
