"""Remembering: the job table and our own ledger, in one database."""
