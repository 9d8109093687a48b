# The command `dino` in a container; BASE is any image with Python 3.11 or newer, with CUDA for a GPU.
#   docker build -t dino --build-arg BASE=python:3.12-slim .
#   docker run --rm -v "$PWD:/work" dino predict img.jpg --out boxes.json
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG EXTRAS=export,openvino
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

COPY pyproject.toml README.md LICENSE /opt/dino/
COPY dinocli /opt/dino/dinocli
COPY dinocore /opt/dino/dinocore
COPY presets /opt/dino/presets
RUN pip install "/opt/dino[${EXTRAS}]" \
    && useradd --create-home dino

USER dino
WORKDIR /work
ENTRYPOINT ["dino"]
CMD ["--help"]
