"""HTTP interface: the API under ``/api/cleanup``, metrics, health and the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eemtcleanupd.web.router import cleanup_router

__all__ = ["cleanup_router"]


def __getattr__(name: str) -> Any:
    """Import FastAPI only when :func:`cleanup_router` is used."""
    if name == "cleanup_router":
        from eemtcleanupd.web.router import cleanup_router

        return cleanup_router
    raise AttributeError(name)
