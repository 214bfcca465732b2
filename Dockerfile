# The service: `docker build .`, or `docker compose up` with a Prometheus and a Grafana.
#
# On x86-64 the ordinary torch is its CUDA build, of several GB. For the small CPU image set PIP_EXTRA_INDEX_URL to the index that
# PyTorch's install page names for "CPU", or have its wheel in a folder: `--build-context wheels=FOLDER`.
# With wheels of everything in that folder and PIP_NO_INDEX=1 the build needs no network.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Empty, unless the build is given a folder of that name.
FROM scratch AS wheels

# Only the dependencies' own text comes out of here: another line of pyproject.toml does not install them again.
# EXTRAS are names of optional ones, as in `--build-arg EXTRAS=otel`.
FROM ${BASE_IMAGE} AS requirements
ARG EXTRAS=
WORKDIR /build
COPY pyproject.toml ./
RUN python -c 'import sys, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]; \
print(*project["dependencies"], *extras, sep="\n")' ${EXTRAS} > requirements.txt

FROM ${BASE_IMAGE} AS environment
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_NO_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
# From the largest and most seldom changed to the smallest: torch, the other packages, the code.
COPY constraints.txt ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    pip install --find-links /wheels --constraint constraints.txt torch \
    # Nothing is compiled or tested where it runs: an eighth less.
    && torch=$(echo /opt/venv/lib/python3*/site-packages/torch) \
    && rm -rf "$torch/include" "$torch/share" "$torch/test" "$torch"/bin/*[Tt]est* "$torch"/bin/protoc*
COPY --from=requirements /build/requirements.txt ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    pip install --find-links /wheels --constraint constraints.txt --requirement requirements.txt

FROM ${BASE_IMAGE} AS code
WORKDIR /srv
COPY app app
COPY models models
# Where it runs nothing can be written.
RUN python -m compileall -q --invalidation-mode unchecked-hash app models

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="SegLens" \
      org.opencontainers.image.description="Semantic segmentation over HTTP, with attention maps and latency by module" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-NC-4.0"
RUN groupadd --gid 10001 seglens && useradd --uid 10001 --gid 10001 --no-create-home seglens
COPY --from=environment /opt/venv /opt/venv
# Triton, which the CUDA build of torch brings, compiles what launches its kernels where it runs.
# hadolint ignore=DL3008
RUN if ls -d /opt/venv/lib/python3*/site-packages/triton && ! command -v gcc; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=code /srv /srv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=/tmp/triton \
    SEGLENS_HOST=0.0.0.0 SEGLENS_LOG_FORMAT=json
WORKDIR /srv
USER 10001:10001
EXPOSE 8000
# As soon as it takes requests: after seconds, but of a large model on few cores after minutes. Not by the proxy that
# Docker's own settings may name in each container.
HEALTHCHECK --interval=5s --timeout=3s --start-period=600s --retries=3 \
    CMD ["python", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/readyz', timeout=2)"]
# The server drains at SIGTERM, for SEGLENS_DRAIN_TIMEOUT and seven seconds more: stop it with a grace of 35 s.
STOPSIGNAL SIGTERM
CMD ["python", "-m", "app", "serve"]
# Last, since they change with each commit.
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
