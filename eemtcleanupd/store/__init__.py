"""Persistence: the job table, and the ledger of this program in the same database."""
