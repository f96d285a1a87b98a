"""Isolated Python sessions: run a model's code, give it nothing else. Start with `LocalSandbox`; see README.md."""

from nemo_openmath.core.sandbox import Execution, Limits, Sandbox, SandboxError, Session, Status
from nemo_openmath.sandbox.local import LocalSandbox, exec_file

__all__ = ["Execution", "Limits", "LocalSandbox", "Sandbox", "SandboxError", "Session", "Status", "exec_file"]
