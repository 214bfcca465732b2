#!/usr/bin/env bash
# Images of the names that Dockerfile and docker-compose.yml ask for, made where no registry of images can be reached.
#
# `images.sh PYTHON PROMETHEUS GRAFANA`: Debian with its Python, as the first name; Debian's Prometheus, as the second; and under the
# third no Grafana, but what checks all that Grafana would read from where it would read it.
set -euo pipefail
cd "$(dirname "$0")"
python=$1 prometheus=$2 grafana=$3

is_there() { docker image inspect "$1" >/dev/null 2>&1; }

if ! is_there "$python"; then
    root=$(mktemp -d -p /dev/shm)  # in memory: there is no disk to wait for
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv,netbase,tzdata bookworm "$root"
    # As in the real image: Python under /usr/local, and a pip that installs.
    ln -s /usr/bin/python3 "$root/usr/local/bin/python"
    ln -s /usr/bin/python3 "$root/usr/local/bin/python3"
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    # Whom this machine trusts, builds on it trust.
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -a /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* \
        "$root"/usr/share/doc/* "$root"/usr/share/man/*
    tar -C "$root" --numeric-owner -c . | docker import -c 'ENV LANG=C.UTF-8' \
        -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'CMD ["python3"]' - "$python"
fi
programs=$(dirname "$(command -v prometheus)")
is_there "$prometheus" || docker build --build-arg BASE="$python" --build-context programs="$programs" \
    --file Dockerfile.prometheus --tag "$prometheus" .
is_there "$grafana" || docker build --network host --build-arg BASE="$python" --file Dockerfile.grafana --tag "$grafana" .
