"""The routes below ``/api/cleanup``: runs, queries, and changes to single jobs."""
