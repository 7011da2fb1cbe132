# The server, on a CPU or on a CUDA device:
#
#   docker build --tag didi .
#   docker build --tag didi:cuda --build-arg DEVICE=cuda .
#   docker run --publish 8000:8000 --env DIDI_SERVE_TOKEN=... didi
#   docker run --publish 9000:9000 --env DIDI_SERVE_PORT=9000 --env DIDI_SERVE_TOKEN=... didi
#   docker run --gpus all --publish 8000:8000 --env DIDI_SERVE_TOKEN=... --volume ./runs:/models:ro didi:cuda /models/student/bundle --host 0.0.0.0
#
# The wheel of torch on PyPI holds CUDA too; PIP_EXTRA_INDEX_URL names an index with a smaller one for CPUs.
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS base-cpu

FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS base-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM base-${DEVICE} AS build
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY docs/licences.md docs/licences.md
COPY src src
RUN python3 -m venv /opt/didi \
    && /opt/didi/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]'

# hadolint ignore=DL3006
FROM base-${DEVICE}
COPY --from=build /opt/didi /opt/didi
RUN useradd --create-home --uid 10001 didi
USER 10001
WORKDIR /home/didi
# didi serve and the health check read DIDI_SERVE_PORT.
ENV PATH=/opt/didi/bin:$PATH DIDI_SERVE_PORT=8000
EXPOSE $DIDI_SERVE_PORT
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; urlopen('http://127.0.0.1:' + os.environ['DIDI_SERVE_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["didi", "serve"]
CMD ["tiny-news", "--host", "0.0.0.0"]
