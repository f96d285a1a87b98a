"""Servers: the embedded engine over HTTP, and other engines started, watched and restarted."""
