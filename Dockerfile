# NeMo-OpenMath on NVIDIA's PyTorch image: its torch, TransformerEngine and flash-attn stay as they are.
#
#   docker build -t openmath --build-arg COMMIT="$(git rev-parse HEAD)" .
#   mkdir -p runs
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 --user "$(id -u):$(id -g)" \
#     -v "$PWD/runs:/workspace/runs" openmath openmath recipe run /opt/openmath/examples/tiny.yaml --output runs/tiny
#
# podman and buildah take the same file: buildah build -t openmath . (any version; nothing here needs BuildKit).
#   --build-arg BASE=...     another base: one with Python 3.11 or 3.12 and a torch that pyproject.toml allows
#   --build-arg EXTRAS=...   optional groups of pyproject.toml, such as "datasets watch quantize"; datasets is what the
#                            recipes of the paper read. vLLM, SGLang and TensorRT-LLM bring a torch of their own: models
#                            are served from their own images.
# docs/howto/containers.md: enroot, Apptainer, a read-only root, and what was tried.
ARG BASE=nvcr.io/nvidia/pytorch:26.07-py3
FROM ${BASE}
ARG BASE
ARG EXTRAS=datasets

# PYTHONNOUSERSITE: ~/.local of a home that is mounted must not come before the image's packages.
# NVIDIA_*: enroot and Docker show GPUs only to images that ask for them; NVIDIA's own do, others may not.
# OPENMATH_IMAGE: jobs write down which commit they ran; labels are not seen from inside.
ENV PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 OPENMATH_IMAGE=/opt/openmath/image.json \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Dependencies first, so that a change of code does not install them again. The base's own PIP_CONSTRAINT pins packages
# that we need in other versions; packages.py writes one that keeps torch and what is compiled against it.
WORKDIR /opt/openmath
COPY pyproject.toml constraints.txt containers/packages.py ./
RUN python packages.py plan --extras "${EXTRAS}" \
    && PIP_CONSTRAINT=/opt/openmath/constraints-image.txt PIP_BREAK_SYSTEM_PACKAGES=1 \
       pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --requirement requirements.txt

COPY setup.py README.md LICENSE ./
COPY nemo_openmath nemo_openmath
COPY conversion conversion
COPY launcher_scripts launcher_scripts
COPY examples examples
# Anyone must be able to read them: COPY keeps the modes of a checkout under umask 077.
ARG COMMIT=
RUN chmod -R a+rX . \
    && PIP_CONSTRAINT= PIP_BREAK_SYSTEM_PACKAGES=1 \
       pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --no-deps . \
    && rm -rf build *.egg-info \
    && python packages.py check --base "${BASE}" --commit "${COMMIT}" \
    && python -c "import torch, megatron.core; from nemo_openmath.cli.main import build_parser; build_parser()"

LABEL org.opencontainers.image.title="nemo-openmath" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}"

# Runs as anyone: `--user`, enroot and Apptainer start it under the caller's own id, whatever that is. Caches are not
# named here, since the folder that can be written differs: openmath finds one (XDG_CACHE_HOME, HOME, TMPDIR).
RUN useradd --create-home --uid 10001 openmath && mkdir -p /workspace && chmod 1777 /workspace
WORKDIR /workspace
USER openmath
CMD ["openmath", "--help"]
