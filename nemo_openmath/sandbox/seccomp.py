"""The system-call wall: a seccomp allow-list, assembled here into classic BPF (no libseccomp needed).

Every call that is not listed fails with EPERM, so the code sees an ordinary ``PermissionError`` and the session
goes on. What matters most is what is *not* listed: ``fork``/``vfork``/``execve`` (and ``clone`` for anything but a
thread), ``socket``/``connect``/``bind``/``sendmsg``, ``ptrace``, ``process_vm_*``, ``pidfd_*``, ``mount``,
``unshare``, ``setns``, ``prctl``, ``setrlimit``, ``chmod``/``chown``/``utime``/``*xattr`` (Landlock does not cover
these), ``symlink``/``link``/``mknod``, ``memfd_create``, ``shm*``, ``bpf``, ``io_uring_*``, ``perf_event_open``,
``userfaultfd``, ``seccomp`` itself.

Sources: ``linux/seccomp.h``, ``linux/filter.h``, ``asm/unistd_64.h`` (x86_64), ``asm-generic/unistd.h`` (aarch64).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

from nemo_openmath.sandbox.libc import libc, syscall

# name = x86_64 number / aarch64 number; "-" where the architecture has no such call.
_NUMBERS = """
read=0/63 write=1/64 readv=19/65 writev=20/66 pread64=17/67 pwrite64=18/68 preadv=295/69 pwritev=296/70
close=3/57 fstat=5/80 newfstatat=262/79 statx=332/291 stat=4/- lstat=6/- lseek=8/62
access=21/- faccessat=269/48 faccessat2=439/439 readlink=89/- readlinkat=267/78 getdents64=217/61 getcwd=79/17
chdir=80/49 fchdir=81/50 mkdir=83/- mkdirat=258/34 unlink=87/- unlinkat=263/35 rmdir=84/- rename=82/-
renameat=264/38 renameat2=316/276 ftruncate=77/46 fsync=74/82 fdatasync=75/83 statfs=137/43 fstatfs=138/44
umask=95/166 sendfile=40/71 copy_file_range=326/285
mprotect=10/226 munmap=11/215 mremap=25/216 madvise=28/233 brk=12/214 msync=26/227 get_mempolicy=239/236
rt_sigaction=13/134 rt_sigprocmask=14/135 rt_sigreturn=15/139 rt_sigpending=127/136 rt_sigsuspend=130/133
rt_sigtimedwait=128/137 sigaltstack=131/132 restart_syscall=219/128 pause=34/-
dup=32/23 dup2=33/- dup3=292/24 pipe=22/- pipe2=293/59 eventfd2=290/19 poll=7/- ppoll=271/73 select=23/-
pselect6=270/72 epoll_create1=291/20 epoll_ctl=233/21 epoll_wait=232/- epoll_pwait=281/22 recvfrom=45/207
futex=202/98 futex_waitv=449/449 nanosleep=35/101 clock_nanosleep=230/115 clock_gettime=228/113
clock_getres=229/114 gettimeofday=96/169 time=201/- timer_settime=223/110 timer_gettime=224/108
setitimer=38/103 getitimer=36/102 alarm=37/- times=100/153
getpid=39/172 gettid=186/178 getppid=110/173 getpgrp=111/- getpgid=121/155 getsid=124/156 getuid=102/174
geteuid=107/175 getgid=104/176 getegid=108/177 getresuid=118/148 getresgid=120/150 getgroups=115/158
getrusage=98/165 getrlimit=97/163 sysinfo=99/179 uname=63/160 getcpu=309/168 getpriority=140/141
sched_yield=24/124 sched_getaffinity=204/123 sched_getparam=143/121 sched_getscheduler=145/120
sched_get_priority_max=146/125 sched_get_priority_min=147/126
getrandom=318/278 set_robust_list=273/99 get_robust_list=274/100 rseq=334/293 membarrier=324/283
set_tid_address=218/96 arch_prctl=158/- exit=60/93 exit_group=231/94
"""
# Allowed only with the arguments of `_argument_rules`.
_GUARDED_NUMBERS = """
openat=257/56 mmap=9/222 fcntl=72/25 ioctl=16/29 clone=56/220 kill=62/129 tgkill=234/131 prlimit64=302/261
socketpair=53/199 sendto=44/206 close_range=436/436
"""
_CLONE3 = 435  # on both; answered ENOSYS so that libc falls back to clone, whose flags a filter can read

_LOAD, _AND, _JUMP_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NR_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # struct seccomp_data


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between the two supported machines."""

    name: str
    column: int
    """In the tables above."""
    audit: int
    """AUDIT_ARCH_*."""
    seccomp: int
    """Number of seccomp(2)."""


_ARCHITECTURES = {
    "x86_64": Architecture("x86_64", 0, 0xC000003E, 317),
    "aarch64": Architecture("aarch64", 1, 0xC00000B7, 277),
}


def architecture() -> Architecture | None:
    """Return this machine's entry, or None where we have no table: the sandbox then refuses to start."""
    little_endian_64 = struct.calcsize("P") == 8
    return _ARCHITECTURES.get(platform.machine()) if little_endian_64 else None


@dataclass(frozen=True, slots=True)
class Argument:
    """A rule for one argument of a system call.

    It passes if the low 32 bits of argument ``index``, masked, are one of ``values``. A ``pointer`` must also have its
    high 32 bits zero (the kernel ignores the high half of int arguments, so the filter does too).
    """

    index: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    pointer: bool = False


def _argument_rules(pid: int) -> dict[str, tuple[Argument, ...]]:
    read_only, write_only, read_write, truncate = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_TRUNC
    # CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD: a table of open files of its own would hide them
    thread = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000
    namespaces = 0x7E020000 | 0x80  # every CLONE_NEW*, including CLONE_NEWTIME
    return {
        # Landlock before ABI 3 lets O_RDONLY|O_TRUNC empty a readable file.
        "openat": (
            Argument(
                2, (read_only, write_only, read_write, write_only | truncate, read_write | truncate), 3 | truncate
            ),
        ),
        "mmap": (Argument(3, (0,), 0x40000),),  # no MAP_HUGETLB: a pool shared with the host
        # F_DUPFD..F_SETLKW, F_OFD_*LK*, F_DUPFD_CLOEXEC; not F_SETOWN, which lets the kernel signal other processes
        "fcntl": (Argument(1, (*range(8), 36, 37, 38, 1030)),),
        # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
        "ioctl": (Argument(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),),
        "clone": (Argument(0, (thread,), thread | namespaces),),
        "kill": (Argument(0, (pid,)),),
        "tgkill": (Argument(0, (pid,)),),
        "prlimit64": (Argument(2, (0,), pointer=True),),  # reading limits, never setting them
        "socketpair": (Argument(0, (1,)),),  # AF_UNIX: asyncio wakes itself through one
        "sendto": (Argument(4, (0,), pointer=True),),  # no destination address
        "close_range": (Argument(2, (0, 4)),),  # not CLOSE_RANGE_UNSHARE
    }


def _table(text: str, column: int) -> dict[str, int]:
    entries = (entry.split("=") for entry in text.split())
    return {name: int(n) for name, numbers in entries if (n := numbers.split("/")[column]) != "-"}


def _instruction(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jump_true, jump_false, k)


def _check(argument: Argument, to_failure: int) -> list[bytes]:
    """Return the instructions that fall through if the argument passes. ``to_failure``: instructions between this
    check's end and the failure."""
    offset = _ARGUMENTS_OFFSET + 8 * argument.index
    code = []
    last = len(argument.values) - 1
    for i, value in enumerate(argument.values):
        code.append(_instruction(_JUMP_EQUAL, value, last - i, to_failure if i == last else 0))
    if argument.mask != 0xFFFFFFFF:
        code.insert(0, _instruction(_AND, argument.mask))
    code.insert(0, _instruction(_LOAD, offset))
    if argument.pointer:
        high = [_instruction(_LOAD, offset + 4), _instruction(_JUMP_EQUAL, 0, 0, len(code) + to_failure)]
        code = high + code
    return code


def program(arch: Architecture, pid: int) -> bytes:
    """Return the filter for the process ``pid`` (as it sees itself), as an array of ``struct sock_filter``."""
    deny = _instruction(_RETURN, _ERRNO | errno.EPERM)
    allow = _instruction(_RETURN, _ALLOW)
    code = [
        _instruction(_LOAD, _ARCH_OFFSET),
        _instruction(_JUMP_EQUAL, arch.audit, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),  # 32-bit calls on a 64-bit kernel: other numbers, other rules
        _instruction(_LOAD, _NR_OFFSET),
    ]  # x32 numbers (bit 30 set) match nothing below
    for number in _table(_NUMBERS, arch.column).values():
        code += [_instruction(_JUMP_EQUAL, number, 0, 1), allow]
    rules = _argument_rules(pid)
    for name, number in _table(_GUARDED_NUMBERS, arch.column).items():
        block = [allow, deny]
        for argument in reversed(rules[name]):
            block = _check(argument, to_failure=len(block) - 1) + block
        code += [_instruction(_JUMP_EQUAL, number, 0, len(block)), *block]
    code += [_instruction(_JUMP_EQUAL, _CLONE3, 0, 1), _instruction(_RETURN, _ERRNO | errno.ENOSYS), deny]
    return b"".join(code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def available() -> bool:
    """Return whether this kernel and architecture can load a filter (SECCOMP_GET_ACTION_AVAIL of ERRNO)."""
    arch = architecture()
    if arch is None:
        return False
    action = ctypes.c_uint32(_ERRNO)
    return libc.syscall(arch.seccomp, 2, 0, ctypes.byref(action)) == 0


def restrict(arch: Architecture, code: bytes) -> None:
    """Put the filter on the calling thread, for good. Needs no_new_privs. Raises OSError."""
    buffer = ctypes.create_string_buffer(code, len(code))
    loaded = _Program(len(code) // 8, ctypes.addressof(buffer))
    syscall(arch.seccomp, 1, 0, ctypes.byref(loaded))
