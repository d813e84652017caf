# syntax=docker/dockerfile:1
# The bundled demo, on the CPU; results are in the folder that is mounted:
#   docker build -t vipbench . && docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" vipbench
# With CUDA:
#   docker build -t vipbench:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg TORCH=cu128 .
#   docker run --rm --gpus all -v "$PWD:/work" -u "$(id -u):$(id -g)" vipbench:cuda run --device cuda
# Any command of vipbench in the place of `run`. EXTRAS=[dicom,tensorboard] adds extras.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends python3 python3-venv \
  && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/vipbench/bin:$PATH \
  VIRTUAL_ENV=/opt/vipbench \
  UV_COMPILE_BYTECODE=1
RUN python3 -m venv /opt/vipbench && pip install --no-cache-dir uv==0.13.9

WORKDIR /opt/source
COPY pyproject.toml README.md LICENSE ./
COPY vipbench vipbench
# The build of PyTorch: cpu, or that of the base's CUDA.
ARG TORCH=cpu
ARG EXTRAS=
RUN uv pip install --no-cache --torch-backend "${TORCH}" ".${EXTRAS}" && rm -rf /opt/source/*

# Caches go where every user may write: the container runs as whoever mounts the folder.
ENV HOME=/tmp \
  VIPBENCH_CACHE=/tmp/vipbench
RUN mkdir -m 1777 /work
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["vipbench"]
CMD ["run"]
