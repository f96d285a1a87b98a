"""The sandbox over HTTP: `SandboxService` on one side, `RemoteSandbox` on the other."""

from nemo_openmath.sandbox.service.client import RemoteSandbox
from nemo_openmath.sandbox.service.server import SandboxService, ServiceSettings, serve

__all__ = ["RemoteSandbox", "SandboxService", "ServiceSettings", "serve"]
