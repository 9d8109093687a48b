# The command `dino` in a container. BASE is any image with Python 3.11 or newer; TORCH_INDEX is where pip finds PyTorch,
# empty if BASE has it. docs/export.md has the commands for a CPU and for CUDA.
ARG BASE=python:3.12-slim
# BASE has its tag.
# hadolint ignore=DL3006
FROM ${BASE}

ARG EXTRAS=export,openvino
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

COPY pyproject.toml README.md LICENSE NOTICE /opt/dino/
COPY dinocli /opt/dino/dinocli
COPY dinocore /opt/dino/dinocore
COPY presets /opt/dino/presets
# Any user may run it (docker run --user), so the home with its caches is everybody's. The package says which versions.
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "/opt/dino[${EXTRAS}]" \
    && useradd --create-home --uid 10001 dino \
    && chmod 777 /home/dino

ENV HOME=/home/dino
USER 10001
WORKDIR /work
ENTRYPOINT ["dino"]
CMD ["--help"]
