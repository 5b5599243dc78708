"""The routes below ``/api/cleanup``, grouped by what they do."""
