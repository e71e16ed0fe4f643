"""What runs in a mount pod, the same text in every one: data comes as arguments and in the environment, quoted."""

from typing import Final

# The client of a container: one lock for its life, the hand-over of a client before it, and a loop, since kubelet's
# own restarts are backed off by minutes. It ends when its mount is gone, or never came.
# The lock is this shell's alone. When it is killed, the kernel kills the rest of its pid namespace, but one of them may
# wait for an answer of the mount that nobody serves any more: it holds nothing that the next client needs.
SCRIPT: Final = r"""
set -u
exec 9>>/tmp/alive
trap 'exit 143' TERM
flock -w 900 9 &
wait $! || { echo 'the client before this one has not ended'; exit 75; }
trap - TERM
echo $$ >/run/serving
if [ -n "$CSI_FORMAT" ] && [ ! -e /tmp/formatted ]; then
    (set -f; IFS='
'; exec /usr/local/bin/juicefs $CSI_FORMAT) || exit
    : >/tmp/formatted
fi
# A connection is carried on by a client of the same file system alone.
[ ! -e /tmp/address ] || [ "$(cat /tmp/address)" = "$CSI_META_URL" ] || { echo 'another file system'; exit 76; }
[ -e /tmp/address ] || { printf '%s' "$CSI_META_URL" >/tmp/address.new && mv /tmp/address.new /tmp/address; } || exit
clean() {
    uuid=$(/usr/local/bin/juicefs config "$CSI_META_URL" 2>/dev/null |
        sed -n 's/.*"UUID": "\([0-9a-f-]\{36\}\)".*/\1/p')
    [ -n "$uuid" ] || return
    (set -f; IFS='
'; for cache in $CSI_CLEAN; do find "$cache/$uuid/raw" -xdev -type f -delete; done)
}
is_mounted() { grep -qF " $CSI_MOUNT_POINT " /proc/self/mountinfo; }
since=$(date +%s)
while :; do
    if [ -e /tmp/resume ]; then
        { read -r _JFS_META_SID; read -r _FUSE_STATE_PATH; } </tmp/resume
        rm -f /tmp/resume
        export _JFS_META_SID _FUSE_STATE_PATH
    fi
    began=$(date +%s)
    : >/tmp/began
    setsid "$@" 9>&- &
    client=$!
    wait "$client"
    code=$?
    unset _JFS_META_SID _FUSE_STATE_PATH
    kill -KILL "-$client" 2>/dev/null
    if [ "$code" -eq 0 ]; then
        is_mounted || [ -z "$CSI_CLEAN" ] || clean
        exit 0
    fi
    is_mounted || exit "$code"
    now=$(date +%s)
    # One that never takes over keeps calls waiting, and the lock: kubelet, and who looks at the pod, are to know.
    [ ! /tmp/served -nt /tmp/began ] || since=$now
    [ $((now - since)) -lt 30 ] || exit "$code"
    [ $((now - began)) -ge 2 ] || sleep 0.5
done
"""
# Before the pod ends: the client saves what is open, and the next one, which waits for the lock, goes on with it. The
# node says by /tmp/resume that it holds the descriptor; without that the client would only start itself anew.
LEAVE: Final = r"""
[ -e /run/serving ] || exit 0
: >/tmp/leaving
tries=0
until [ -e /tmp/resume ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 80 ] || { rm -f /tmp/leaving; exit 0; }
    sleep 0.1
done
rm -f /tmp/leaving
main=$(cat /run/serving)
for supervisor in $(cat "/proc/$main/task/$main/children"); do
    kill -HUP $(cat "/proc/$supervisor/task/"*/children)
done
while [ -n "$(cat "/proc/$main/task/$main/children" 2>/dev/null)" ]; do sleep 0.05; done
"""
