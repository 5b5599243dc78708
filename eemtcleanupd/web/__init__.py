"""HTTP interface: the API under ``/api/cleanup``, metrics, health and the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eemtcleanupd.web.router import cleanup_router, install

__all__ = ["cleanup_router", "install"]


def __getattr__(name: str) -> Any:
    """Import FastAPI only when the routes are used."""
    if name in __all__:
        from eemtcleanupd.web import router

        return getattr(router, name)
    raise AttributeError(name)
