#!/usr/bin/env bash
# `make e2e`: builds the image, brings the whole of docker-compose.yml up, uses it, and takes it down again; then the same
# with several instances behind docker/scale-out.yml's proxy, by an image that sends spans.
#
# With a Docker engine on the machine it is used, and images come from their registry. Where there is none, and whoever runs this is root on
# Debian, an engine is started for the time, and images of the same names are made (standin/). Its programs and
# images stay in E2E_STATE, `.e2e` unless told otherwise, for the next time; all else is as it was. Where that can't be, it is skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
STATE=${E2E_STATE:-$PWD/.e2e}
PYTHON=${PYTHON:-.venv/bin/python}
export API_IMAGE=seglens:e2e PROMETHEUS_IMAGE=prom/prometheus:v2.53.3 GRAFANA_IMAGE=grafana/grafana:11.6.0 HAPROXY_IMAGE=haproxy:3.0
export BASE_IMAGE=python:3.11-slim-bookworm
export API_PORT=18000 PROMETHEUS_PORT=19090 GRAFANA_PORT=13000 COLLECTOR_PORT=14318 MODEL_DIR=$STATE/checkpoints
export COMPOSE_PROJECT_NAME=seglens-e2e COMPOSE_FILE=docker-compose.yml

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
skip() { echo "e2e skipped: $*"; exit 0; }
quietly() {  # NAME COMMAND...: its output matters only if it fails
    local log=$STATE/$1.log
    "${@:2}" >"$log" 2>&1 || { tail -40 "$log"; say "failed: ${*:2}; all of it is in $log"; return 1; }
}

own_engine=
clean_up() {
    if docker info >/dev/null 2>&1; then docker compose down --volumes --remove-orphans --timeout 10 >/dev/null 2>&1 || true; fi
    if [ "$own_engine" ]; then tests/docker/engine.sh stop "$STATE"; fi
    say "down"
}

mkdir -p "$STATE" "$MODEL_DIR"
if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
    trap clean_up EXIT
else
    [ "$(id -u)" = 0 ] || skip "no Docker engine answers, and only root can start one"
    [ -e /etc/apt/sources.list.d/debian.sources ] || skip "no Docker engine answers, and this is not the Debian from which one could be had"
    unshare --mount --cgroup --pid --fork true 2>/dev/null || skip "no Docker engine answers, and this kernel gives none its namespaces"
    own_engine=yes
    trap clean_up EXIT
    tests/docker/engine.sh get "$STATE" || skip "the engine's packages are not to be had"
    tests/docker/standin/rootfs.sh "$STATE/rootfs.tar" >"$STATE/rootfs.log" 2>&1 & rootfs=$!
    environment=$(tests/docker/engine.sh start "$STATE") || skip "no Docker engine starts here"
    eval "$environment"
    say "engine $(docker version --format '{{.Server.Version}}'), compose $(docker compose version --short)"
    wait "$rootfs" || { tail "$STATE/rootfs.log"; exit 1; }
    quietly images tests/docker/standin/images.sh "$STATE/rootfs.tar" "$BASE_IMAGE" "$PROMETHEUS_IMAGE" \
        "$HAPROXY_IMAGE" "$GRAFANA_IMAGE"
    say "images made in place of $BASE_IMAGE, $PROMETHEUS_IMAGE, $HAPROXY_IMAGE and, without being one, $GRAFANA_IMAGE"
    # The torch that this machine's pip would take, wherever it has it from; a build knows nothing of pip's settings here.
    export WHEELS=$STATE/wheels COMPOSE_FILE=docker-compose.yml:tests/docker/compose.yml
    mkdir -p "$WHEELS"
    quietly wheels "$PYTHON" -m pip download --no-deps --constraint constraints.txt --dest "$WHEELS" torch
fi

quietly build docker compose --progress plain build api
say "built: $(docker image inspect --format '{{.Size}}' "$API_IMAGE") bytes"
quietly up docker compose up --detach --no-build --wait
say "up: $(docker compose ps --format '{{.Service}} {{.Status}}' | paste -sd, -)"
STACK=single "$PYTHON" -m pytest -q --no-cov -rfE tests/docker/test_stack.py

docker compose down --volumes --timeout 10 >/dev/null 2>&1
export API_IMAGE=seglens:e2e-otel API_EXTRAS=otel COMPOSE_FILE=$COMPOSE_FILE:docker/scale-out.yml:tests/docker/compose.scaled.yml
quietly build-otel docker compose --progress plain build api
say "built with EXTRAS=otel: $(docker image inspect --format '{{.Size}}' "$API_IMAGE") bytes"
quietly up-scaled docker compose up --detach --no-build --wait --scale api=2 api prometheus proxy collector
say "up: $(docker compose ps --format '{{.Name}} {{.Status}}' | paste -sd, -)"
STACK=scaled "$PYTHON" -m pytest -q --no-cov -rfE tests/docker/test_scaled_stack.py
