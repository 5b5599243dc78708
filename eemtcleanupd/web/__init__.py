"""Showing: the HTTP interface and the dashboard; the router also mounts in the EEMT web interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eemtcleanupd.web.router import cleanup_router

__all__ = ["cleanup_router"]


def __getattr__(name: str) -> Any:
    """Load FastAPI only when it is asked for."""
    if name == "cleanup_router":
        from eemtcleanupd.web.router import cleanup_router

        return cleanup_router
    raise AttributeError(name)
