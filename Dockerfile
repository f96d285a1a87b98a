# NeMo-OpenMath on NVIDIA's PyTorch image: its torch, TransformerEngine and flash-attn stay as they are.
#   docker build -t openmath .
#   docker run --rm --gpus all -v "$PWD/runs:/workspace/runs" openmath openmath recipe run /opt/openmath/examples/tiny.yaml --output runs/tiny
# Another base: --build-arg BASE=... (one whose torch pyproject.toml allows; the build says so if it does not).
ARG BASE=nvcr.io/nvidia/pytorch:26.07-py3
FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/openmath
COPY pyproject.toml setup.py README.md LICENSE ./

# Dependencies first, so that a change of code does not install them again. torch is the image's: pip is shown its exact
# version as a constraint, and never asked for it (the image's is a pre-release, which pip would replace).
RUN python - <<'CHECK'
import importlib.metadata, pathlib, re, tomllib
have = importlib.metadata.version("torch")
wanted = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["dependencies"]
low = next(re.search(r"torch>=([\d.]+)", w)[1] for w in wanted if re.match(r"torch\b", w))
if tuple(map(int, have.split(".")[:2])) != tuple(map(int, low.split(".")[:2])):
    raise SystemExit(f"this image has torch {have}, the project needs {low}: choose another --build-arg BASE")
pathlib.Path("/tmp/constraints.txt").write_text(f"torch=={have}\n")
pathlib.Path("/tmp/requirements.txt").write_text("\n".join(w for w in wanted if not re.match(r"torch\b", w)) + "\n")
CHECK
# The image's own PIP_CONSTRAINT pins packages that we need in other versions.
RUN PIP_CONSTRAINT=/tmp/constraints.txt pip install --requirement /tmp/requirements.txt

COPY nemo_openmath nemo_openmath
COPY conversion conversion
COPY launcher_scripts launcher_scripts
COPY examples examples
RUN PIP_CONSTRAINT= pip install --no-deps . \
    && python -c "import torch, megatron.core; from nemo_openmath.cli.main import build_parser; build_parser()"

# Runs as anyone: clusters start containers under the user's own id, which has no home here.
RUN useradd --create-home --uid 10001 openmath && mkdir -p /workspace && chmod 1777 /workspace
ENV HOME=/workspace HF_HOME=/workspace/.cache/huggingface TRITON_CACHE_DIR=/tmp/triton
WORKDIR /workspace
USER openmath
CMD ["openmath", "--help"]
