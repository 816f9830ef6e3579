# shellcheck shell=bash
# Sourced by the other scripts: Debian packages, installed quietly, and only where nobody has to be asked for a password.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_install() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null
}

# apt_install PACKAGE...
# Starts no service. Says nothing when it works; otherwise shows the end of apt's output and returns 1.
apt_install() {
    local log
    log=$(mktemp)
    if ! _apt_install "$@" >"$log" 2>&1; then
        echo "apt-get could not install $*. The end of its output:" >&2
        tail -n 15 "$log" | sed 's/^/  /' >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# In a subshell, so that the EXIT trap takes back what was put in place however the installation ends.
_apt_install() (
    policy=/usr/sbin/policy-rc.d # where there is one, and it says 101, packages do not start their services
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy"
        as_root chmod 755 "$policy"
    fi
    apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update || echo "apt-get update failed; the installation decides whether that matters"
    "${apt[@]}" install --no-install-recommends "$@"
)
