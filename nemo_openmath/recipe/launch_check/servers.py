"""Servers: every model that a stage generates with is served by the cluster file, answers at its address, or is loaded
by the job itself; and servers' GPUs hold their models."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nemo_openmath.competition.stage import Compete
from nemo_openmath.core.build import Key
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Mode
from nemo_openmath.core.stage import Stage
from nemo_openmath.evaluation.reports.formats import bytes_text
from nemo_openmath.inference.http.server_pool import base_url
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.launch_check.findings import Finding, Note, Unseen, some
from nemo_openmath.recipe.launch_check.models import incomplete
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch, PlannedServer
from nemo_openmath.recipe.model_sizes import ModelSize, model_size, read_config
from nemo_openmath.training.planning.gpus import Gpu

ANSWER_SECONDS = 3.0
_AT_ONCE = 16  # addresses
_SHARE = 0.9  # of a GPU's memory that vLLM takes by default
_WORKSPACE = 3 << 30  # bytes of a GPU for the tensors of a step and CUDA graphs; assumed
_SMALLER = ("quantization", "offload", "kv-cache-dtype", "kv_cache_dtype")  # options with which less memory is needed
_LARGE = 10e9  # bytes of weights with which a CPU answers too slowly


def reachable(launch: PlannedLaunch) -> Iterator[Finding]:
    """Ask the addresses of the recipe which models are there; look for who serves the others."""
    recipe = launch.recipe
    served = {(name, server.served.model.asked) for server in launch.servers for name in server.stages}
    asked: dict[str, list[str]] = {}
    for planned in launch.stages:
        for name in planned.entry.stage.engines():
            if (planned.name, name) not in served:
                asked.setdefault(name, []).append(planned.name)
    addresses: list[_Address] = []
    if (stages := asked.pop("teacher", None)) is not None and not recipe.teacher.is_stand_in:
        teacher = recipe.teacher
        urls = teacher.urls if teacher.url is None else [teacher.url]
        setting = "teacher.urls" if teacher.url is None else "teacher.url"
        addresses += _addresses(setting, urls, teacher.urls_file, [teacher.model], teacher.api_key_env, stages)
    student = recipe.student
    if asked and student.kind == "http":
        stages = [stage for listed in asked.values() for stage in listed]
        made = [name for name in asked if name in recipe.stages]  # no server has them yet
        names = [student.model] if student.model else [_folder(launch, name) for name in asked if name not in made]
        if not student.urls and student.urls_file is None:
            problem = f"is http, and nobody serves {', '.join(asked)} ({some(stages)})"
            yield recipe.error("student.kind", problem, "give the cluster file a server for them, or student.urls")
        addresses += _addresses("student.urls", student.urls, student.urls_file, names, student.api_key_env, stages)
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # each may take some seconds not to answer
        for errors in pool.map(lambda address: list(_asked(recipe, address)), addresses):
            yield from errors
    if student.kind == "embedded":
        yield from _embedded(launch, list(asked))


@dataclass(frozen=True)
class _Address:
    """An address of the recipe, and what is asked for there."""

    setting: str
    url: str
    models: list[str]
    key: str | None
    """The environment variable that holds the server's key."""
    stages: list[str]


def _addresses(
    setting: str, urls: Sequence[str], file: Path | None, models: list[str], key: str | None, stages: list[str]
) -> list[_Address]:
    if file is not None:
        setting, urls = setting.rpartition(".")[0] + ".urls_file", _lines(file)
    return [_Address(setting, url, models, key, stages) for url in urls]


def _embedded(launch: PlannedLaunch, asked: Collection[str]) -> Iterator[Finding]:
    """Look whether jobs that load models themselves have what for it."""
    recipe, student = launch.recipe, launch.recipe.student
    without: dict[Key, list[str]] = {}
    for planned in launch.stages:
        own = [name for name in planned.entry.stage.engines() if name in asked and name != "teacher"]
        if own and student.device.startswith("cuda") and not planned.job.gpus:
            without.setdefault(launch.layer(planned.job, "gpus"), []).append(planned.name)
        for name in own:
            size = model_size(recipe, name)
            weights = size.weight_bytes if size is not None else None
            if student.device == "cpu" and weights is not None and weights > _LARGE:
                yield Note(f"{planned.name}: {name} ({bytes_text(weights)}) generates on the CPU (student.device)")
    for key, names in without.items():
        problem = f"{some(names)} load models on {student.device} (student.device), and their jobs have no GPU"
        yield launch.error(key, problem, "give them gpus: 1, or servers")


def _asked(recipe: Recipe, address: _Address) -> Iterator[UserError]:
    """Ask one address for its models."""
    setting, url, models, stages = address.setting, address.url, address.models, address.stages
    try:
        base = base_url(url)
    except UserError:
        return  # told with the other settings of the recipe
    if _is_loopback(base):
        yield recipe.error(
            setting,
            f"{url} is the node of each job itself, and nothing is started there ({some(stages)})",
            f"give the cluster file a server for {models[0] if models else 'it'}, or name one on another node",
        )
        return
    request = urllib.request.Request(f"{base}/v1/models")
    if address.key is not None and os.environ.get(address.key):
        request.add_header("Authorization", f"Bearer {os.environ[address.key]}")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as our client: no proxy
    try:
        with direct.open(request, timeout=ANSWER_SECONDS) as response:
            answer = json.loads(response.read(1 << 20))
        there = [str(model["id"]) for model in answer["data"]]
    except urllib.error.HTTPError as error:
        why = f"{base}/v1/models answers {error.code}"
        yield recipe.error(
            setting, f"{why} ({some(stages)})", "check the address, and api_key_env where it wants a key"
        )
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", None) or error
        yield recipe.error(
            setting,
            f"no answer from {base}/v1/models within {ANSWER_SECONDS:g} s ({reason}; {some(stages)})",
            "start the server, or let the cluster file start it",
        )
        return
    for model in models:
        if model not in there:
            section = setting.partition(".")[0]
            problem = f"{base} has no model {model!r}; it has {', '.join(there) or 'none'}"
            yield recipe.error(
                setting, problem, f"write one of these as {section}.model, or start the server with that name"
            )


def sandbox(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look whether a sandbox service is where jobs on other nodes reach it."""
    url = launch.recipe.sandbox.url
    users = [planned.name for planned in launch.stages if _runs_code(planned.entry.stage)]
    if url is None or not users:
        return
    if url.startswith("unix:") or _is_loopback(url):
        problem = f"{url} is the node of each job itself, and nothing is started there ({some(users)})"
        yield launch.recipe.error(
            "sandbox.url", problem, "leave it out for a sandbox in each job, or name another node"
        )
        return
    place = urlsplit(url)
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        problem = f"no answer from {url} within {ANSWER_SECONDS:g} s ({error}; {some(users)})"
        yield launch.recipe.error("sandbox.url", problem, "start openmath sandbox serve there, or leave it out")


def _runs_code(stage: Stage) -> bool:
    return isinstance(stage, Compete) or (isinstance(stage, Generate) and stage.config.mode == Mode.TIR)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError):
        return []


def _folder(launch: PlannedLaunch, name: str) -> str:
    """The path by which servers know a model: the folder of the stage that makes it, or a model folder."""
    if name in launch.recipe.stages:
        return str(launch.output / name)
    return str(launch.recipe.relative(name).resolve())


def hold(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold the weights of each model against the GPUs of its server, and what stages ask for against its context."""
    for server in launch.servers:
        asked, folder = server.served.model.asked, Path(server.served.folder)
        made = asked in launch.recipe.stages
        if not made:
            if not folder.is_dir():
                if asked not in launch.recipe.paths and folder not in _tokenizer(launch):  # else told there
                    problem = f"no folder {folder} of {server.served.label}"
                    yield launch.error((*server.key, "model"), problem, "put the model there, or change the path")
                continue
            if read_config(folder) is None:
                problem = f"no readable config.json in {folder}"
                yield launch.error(server.key, problem, "name the folder of a Hugging Face model")
                continue
            if (asked == "teacher" or server.settings.model) and (error := incomplete(folder, others=True)):
                yield launch.error(server.key, error[0], error[1])
        size = model_size(launch.recipe, asked if made else folder)
        if size is None:
            yield Unseen(f"whether the server of {server.served.label} holds it: nothing says how large it is")
            continue
        yield from _gpus(launch, server, size)
        yield from _context(launch, server, size.max_positions)


def _tokenizer(launch: PlannedLaunch) -> list[Path]:
    folder = launch.recipe.teacher.tokenizer
    return [] if folder is None else [launch.recipe.relative(folder).resolve()]


def _gpus(launch: PlannedLaunch, server: PlannedServer, size: ModelSize) -> Iterator[Finding]:
    settings, label, weights = server.settings, server.served.label, size.weight_bytes
    if not settings.gpus:
        if weights is not None and weights > _LARGE:
            problem = f"{label} ({bytes_text(weights)}) is served without a GPU ({some(server.stages)})"
            yield launch.error((*server.key, "gpus"), problem, "give it gpus")
        return
    if size.heads is not None and size.heads % settings.tensor:
        problem = (
            f"{label} has {size.heads} attention heads, no multiple of its tensor parallelism of {settings.tensor}"
        )
        yield launch.error((*server.key, "tensor_parallel"), problem, f"choose a divisor of {size.heads}")
    gpu = launch.gpu_of()
    if gpu is None:
        yield Unseen(f"memory of the GPUs that serve {label}: write gpu: h100 (or another) under default")
    elif weights is not None:
        yield from _memory(launch, server, size, weights, gpu)


def _memory(launch: PlannedLaunch, server: PlannedServer, size: ModelSize, weights: int, gpu: Gpu) -> Iterator[Finding]:
    """Hold the weights, and the keys and values of one request of the longest kind, against the GPUs of a server."""
    settings, label = server.settings, server.served.label
    ways, context = settings.tensor * settings.pipeline_parallel, settings.max_model_len or size.max_positions or 0
    cache = (size.cache_bytes or 0) * context
    cache_ways = ways if size.splits_cache else settings.pipeline_parallel
    usable = _SHARE * gpu.memory - _WORKSPACE
    if weights / ways + cache / cache_ways <= usable:
        return
    if any(word in " ".join(settings.arguments) for word in _SMALLER) or settings.engine == "command":
        yield Note(f"whether {label} fits {ways} x {gpu.name} was not computed, for what its command says of memory")
        return
    least = ways
    heads = size.heads or 0 if settings.pipeline_parallel == 1 else 0  # which are divided evenly
    while least < 1024 and (
        weights / least + cache / (least if size.splits_cache else cache_ways) > usable
        or (least <= heads and heads % least)
    ):
        least += 1
    text = f"{bytes_text(weights)} of weights and {bytes_text(cache)} of keys and values for {context} tokens"
    yield launch.error(
        server.key,
        f"{label} has {text}: too much for {ways} x {gpu.name}, which have some {bytes_text(usable * ways)} for them",
        f"spread it over {least} GPUs or more (fewer replicas, or more nodes with pipeline_parallel)"
        + ("; or lower max_model_len" if weights / ways <= usable else ""),
    )


def _context(launch: PlannedLaunch, server: PlannedServer, positions: int | None) -> Iterator[Finding]:
    """A server refuses requests whose prompt and completion are longer than its context."""
    own, label = server.settings.max_model_len, server.served.label
    context, source = own or positions, "max_model_len" if own else "max_position_embeddings of its config.json"
    longer = any("rope" in word or "overrides" in word for word in server.settings.arguments)
    longer = longer or "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in server.served.place.environment
    if own and positions and own > positions and not longer:
        problem = f"{own} tokens, and config.json of {label} says {positions} (max_position_embeddings)"
        yield launch.error((*server.key, "max_model_len"), problem, f"write {positions} or less")
        context = positions
    for name in server.stages:
        entry = launch.recipe.stages[name]
        config = entry.stage.config
        setting = "solver" if isinstance(entry.stage, Compete) else "max_tokens"
        wanted = config.solver.rollout.max_tokens if setting == "solver" else getattr(config, "max_tokens", None)
        if isinstance(wanted, int) and context is not None and wanted >= context:
            problem = f"{wanted}, and the server of {label} has room for {context} tokens with the prompt ({source})"
            yield entry.error(problem, "give the server a longer context, or the stage fewer tokens", setting)
