#!/bin/sh
# Installs the system programs that stages and tests need when it can, else names them in one line.
missing=""
need() { # program package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
need bwrap bubblewrap
need mksquashfs squashfs-tools
need cryptsetup cryptsetup-bin
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing system packages:$missing" >&2
    apt-get install -y -qq $missing >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq $missing >/dev/null; }
else
    echo "please install these system packages first:$missing" >&2
    exit 2
fi
