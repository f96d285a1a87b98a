"""The sandbox over HTTP: `SandboxService` on one side, `RemoteSandbox` on the other."""

from nemo_openmath.sandbox.service.client import RemoteSandbox
from nemo_openmath.sandbox.service.server import SandboxService, serve
from nemo_openmath.sandbox.service.settings import ServiceSettings

__all__ = ["RemoteSandbox", "SandboxService", "ServiceSettings", "serve"]
