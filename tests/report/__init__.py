"""Tests of reports, and of the state of jobs."""
