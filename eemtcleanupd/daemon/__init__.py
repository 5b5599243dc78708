"""The daemon: its event loop, timers, configuration reload, leader election and status."""
