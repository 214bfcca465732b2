#!/usr/bin/env bash
# A Docker engine for the tests, where none runs: `engine.sh get|start|stop STATE`; `start` gets what is missing too.
#
# Wants root and Debian with a newer release in its archive. STATE is a folder, which keeps programs and images for the next time.
# What `start` prints is to be evaluated by the caller's shell: where the engine's socket and programs are.
#
# A newer release's packages are unpacked in STATE, not installed: this release's engine knows no named build contexts. The
# engine has mount, pid and cgroup namespaces of its own, so that ending one process ends all containers and mounts.
# It writes no firewall rule and turns no forwarding on: a running container reaches its neighbours and nothing else, and only
# steps of a build that are given the host's network reach an index of packages.
set -euo pipefail

action=$1
STATE=$(mkdir -p "$2" && cd "$2" && pwd)
NEWER=${NEWER:-trixie}
PROGRAMS=$STATE/programs
export PATH=$PROGRAMS/usr/sbin:$PROGRAMS/usr/bin:/usr/sbin:/sbin:$PATH
export DOCKER_HOST=unix://$STATE/docker.sock DOCKER_CONFIG=$STATE/config

# Kept apart from the system's own lists, which stay as they are.
newer_apt() {
    apt-get -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$STATE/apt/sources" \
        -o Dir::State::lists="$STATE/apt/lists" -o Dir::Cache="$STATE/apt/cache" -o APT::Sandbox::User=root "$@"
}

get_programs() {
    local program package missing=()
    # An `iptables` must be there, though no rule is written: without it containers find no names.
    for pair in runc:runc debootstrap:debootstrap ip:iproute2 iptables:iptables; do
        program=${pair%:*} package=${pair#*:}
        command -v "$program" >/dev/null || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        apt-get -q update
        apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
    fi
    if [ ! -e "$STATE/programs.complete" ]; then
        local codename
        codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
        rm -rf "$STATE/apt" "$PROGRAMS"
        mkdir -p "$STATE"/apt/{sources,debs,lists/partial,cache/archives/partial}
        sed "s/$codename/$NEWER/g" /etc/apt/sources.list.d/debian.sources >"$STATE/apt/sources/newer.sources"
        newer_apt update
        # Not runc: the newer one wants a newer libc.
        (cd "$STATE/apt/debs" && newer_apt download \
            docker.io docker-cli docker-buildx docker-compose containerd tini prometheus promtool)
        for package in "$STATE"/apt/debs/*.deb; do dpkg -x "$package" "$PROGRAMS"; done
        rm -rf "$STATE/apt"
        touch "$STATE/programs.complete"
    fi
    mkdir -p "$DOCKER_CONFIG/cli-plugins"
    ln -sf "$PROGRAMS"/usr/libexec/docker/cli-plugins/docker-* "$DOCKER_CONFIG/cli-plugins/"
}

start() {
    docker version && return
    local interface mtu
    interface=$(ip -o route show default | awk '{print $5; exit}')
    mtu=$(cat "/sys/class/net/${interface:-lo}/mtu")
    [ "$mtu" -le 1500 ] || mtu=1500
    # What the engine leaves in these cgroups is removed by `stop`.
    sed -E 's/^[0-9]+:(name=)?([^:]*):/\2 /' /proc/self/cgroup >"$STATE/cgroups"
    { ip link show docker0 >/dev/null 2>&1 && echo there || echo none; } >"$STATE/bridge"
    rm -rf "$STATE/docker.pid" "$STATE/run"  # left by an engine that was killed
    setsid unshare --mount --cgroup --pid --fork --kill-child --mount-proc bash -c '
        set -e
        if [ "$(stat -fc %T /sys/fs/cgroup)" = tmpfs ]; then  # version 1: mounted anew, as this namespace sees it
            mounted=$(awk "\$3 == \"cgroup\" {print \$2}" /proc/mounts)
            umount -R /sys/fs/cgroup
            mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
            for point in $mounted; do
                name=${point##*/} options=${point##*/}
                [ "$name" = systemd ] && options=none,name=systemd
                mkdir -p "$point"
                mount -t cgroup -o "$options" cgroup "$point"
            done
        fi
        exec dockerd "$@"
    ' dockerd --data-root "$STATE/data" --exec-root "$STATE/run" --pidfile "$STATE/docker.pid" --host "$DOCKER_HOST" \
        --mtu "$mtu" --iptables=false --ip6tables=false --ip-forward=false >"$STATE/engine.log" 2>&1 </dev/null &
    echo $! >"$STATE/outer.pid"
    for _ in $(seq 120); do
        docker version 2>/dev/null && return
        kill -0 "$(cat "$STATE/outer.pid")" 2>/dev/null || break
        sleep 0.25
    done
    tail -20 "$STATE/engine.log"
    return 1
}

is_running() {  # nobody may be there to collect an orphan, which then stays on as a zombie
    case "$(ps -o stat= -p "$1" 2>/dev/null)" in '' | Z*) return 1 ;; esac
}

stop() {
    [ -e "$STATE/outer.pid" ] || return 0
    local outer child controller group folder
    outer=$(cat "$STATE/outer.pid")
    for child in $(ps -o pid= --ppid "$outer"); do kill -TERM "$child" 2>/dev/null || true; done
    for _ in $(seq 60); do is_running "$outer" && sleep 0.25 || break; done
    kill -KILL "$outer" 2>/dev/null || true
    rm -f "$STATE/outer.pid"
    if [ "$(cat "$STATE/bridge")" = none ]; then ip link del docker0 2>/dev/null || true; fi
    while read -r controller group; do
        for folder in "/sys/fs/cgroup/${controller:-unified}${group%/}/docker" "/sys/fs/cgroup/${group%/}/docker"; do
            if [ -d "$folder" ]; then find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || true; fi
        done
    done <"$STATE/cgroups"
}

case $action in
    start)
        { get_programs && start; } >"$STATE/start.log" 2>&1 || { tail -20 "$STATE/start.log" >&2; exit 1; }
        printf 'export PATH=%q DOCKER_HOST=%q DOCKER_CONFIG=%q\n' "$PATH" "$DOCKER_HOST" "$DOCKER_CONFIG"
        ;;
    get) get_programs >"$STATE/get.log" 2>&1 || { tail -20 "$STATE/get.log" >&2; exit 1; } ;;
    stop) stop ;;
    *) sed -n '2,12s/^# \?//p' "$0" >&2; exit 2 ;;
esac
