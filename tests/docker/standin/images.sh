#!/usr/bin/env bash
# Images of the names that Dockerfile and docker-compose.yml ask for, made where no registry of images can be reached.
#
# `images.sh ROOTFS PYTHON PROMETHEUS HAPROXY GRAFANA`: what rootfs.sh has made, as PYTHON; Debian's Prometheus and HAProxy; and under the
# last name no Grafana, but what checks all that Grafana would read from where it would read it.
set -euo pipefail
rootfs=$1 python=$2 prometheus=$3 haproxy=$4 grafana=$5
cd "$(dirname "$0")"

is_there() { docker image inspect "$1" >/dev/null 2>&1; }

is_there "$python" || docker import -c 'ENV LANG=C.UTF-8' -c 'CMD ["python3"]' \
    -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' "$rootfs" "$python"
programs=$(dirname "$(command -v prometheus)")
is_there "$prometheus" || docker build --build-arg BASE="$python" --build-context programs="$programs" \
    --file Dockerfile.prometheus --tag "$prometheus" .
is_there "$haproxy" || docker build --network host --build-arg BASE="$python" --file Dockerfile.haproxy --tag "$haproxy" .
# Always, since what it checks with is ours; a build of what is there takes no time.
docker build --network host --build-arg BASE="$python" --file Dockerfile.grafana --tag "$grafana" .
