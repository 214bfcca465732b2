#!/usr/bin/env bash
# `rootfs.sh FILE`: Debian with its Python as a tar file, which needs no engine to be made.
set -euo pipefail
file=$1
[ ! -e "$file" ] || exit 0
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
tar -C "$root" --numeric-owner -c . >"$file.part"
mv "$file.part" "$file"
