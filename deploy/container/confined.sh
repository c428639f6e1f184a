#!/bin/sh
# Run a program in the root file system of an image as a locked-down container would: root read-only, /tmp in memory,
# another user, no capability and no way to get one. It is for buildah, whose `run` makes no root read-only; docker does
# it by --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges.
#
# confined.sh ROOT VOLUME USER:GROUP DIRECTORY [NAME=VALUE ...] PROGRAM [ARGUMENT ...]
#
# Started by unshare as process 1 of mount, PID, IPC and UTS namespaces of its own; VOLUME, which may be empty, appears
# at /models.
set -eu
root=$1 volume=$2 user=$3 directory=$4
shift 4

mount --bind "$root" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,noexec,mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=64m tmpfs "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777 tmpfs "$root/tmp"
for file in hosts resolv.conf; do # every engine provides them
    touch "$root/etc/$file"
    mount --bind "/etc/$file" "$root/etc/$file"
    mount -o remount,bind,ro "$root/etc/$file"
done
if [ -n "$volume" ]; then
    mkdir -p "$root/models"
    mount --bind "$volume" "$root/models"
    mount -o remount,bind,ro "$root/models"
fi
mount -o remount,bind,ro "$root"

exec chroot "$root" setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups --no-new-privs \
    --inh-caps=-all --ambient-caps=-all --bounding-set=-all \
    env --ignore-environment --chdir="$directory" "$@"
