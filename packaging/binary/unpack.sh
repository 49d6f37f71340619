#!/bin/sh
# Infernet @VERSION@, one file: this script, and behind its last line the program, packed.
#
# The first start unpacks it, checked, into a folder of this user's (INFERNET_HOME/cache, else XDG_CACHE_HOME/infernet,
# else ~/.cache/infernet) and every start becomes the program there. A newer version gets a folder of its own.
set -eu

fail() {
    echo "infernet: $1" >&2
    exit 1
}

file=$0
case $file in
*/*) ;;
*) [ -f "$file" ] || file=$(command -v -- "$file") || fail "cannot find its own file: start it by its path" ;;
esac
case $file in
/*) ;;
*) file=$PWD/$file ;;
esac

if [ -n "${INFERNET_HOME:-}" ]; then
    cache=$INFERNET_HOME/cache
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
    cache=$XDG_CACHE_HOME/infernet
elif [ -n "${HOME:-}" ]; then
    cache=$HOME/.cache/infernet
else
    fail "there is no folder to unpack the program in: set HOME, or INFERNET_HOME to a folder of your own"
fi
program=$cache/program-@VERSION@-@DIGEST_START@

payload() {
    start=@PAYLOAD_START@
    tail -c "+$start" "$file"
}

check() {
    if command -v sha256sum >/dev/null 2>&1; then
        sum=$(payload | sha256sum)
    elif command -v shasum >/dev/null 2>&1; then
        sum=$(payload | shasum -a 256)
    else
        return 0
    fi
    [ "${sum%% *}" = @DIGEST@ ] || fail "$file is damaged (its sha256 differs): download it again"
}

unpack() {
    umask 077
    check
    draft=
    trap '[ -z "$draft" ] || rm -rf "$draft"' EXIT
    trap 'exit 130' HUP INT TERM
    mkdir -p "$cache" 2>/dev/null && draft=$(mktemp -d "$cache/.program-XXXXXX" 2>/dev/null) ||
        fail "cannot write to $cache: make it yours, or choose another folder with INFERNET_HOME"
    payload | gzip -dc 2>/dev/null | tar -xf - -C "$draft" 2>/dev/null ||
        fail "cannot unpack into $cache: it needs gzip, tar and @NEEDED_MB@ MB of disk"
    "$draft/infernet/infernet" version >/dev/null ||
        fail "the program does not run here: it is made for @PLATFORM@, and $cache must allow programs"
    # Fails where somebody was quicker, for there a file has this name; that one is as good.
    mv "$draft/infernet" "$program" 2>/dev/null || [ -x "$program/infernet" ] ||
        fail "cannot write to $cache: make it yours, or choose another folder with INFERNET_HOME"
    rm -rf "$draft"
    trap - EXIT HUP INT TERM
}

[ -x "$program/infernet" ] || (unpack)
[ -O "$program" ] || fail "$program belongs to another user: choose another folder with INFERNET_HOME"
INFERNET_PACKAGED_FILE=$file exec "$program/infernet" "$@"
exit 1
