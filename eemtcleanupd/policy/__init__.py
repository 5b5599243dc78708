"""Deciding: pure functions from facts to decisions with reasons."""
