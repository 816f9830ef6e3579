#!/usr/bin/env bash
# Builds a small Debian of a newer suite, with the newer RabbitMQ in it, for tests to start private nodes in by chroot.
#
#   scripts/rabbitmq-next.sh [SUITE]      forky (the default): RabbitMQ 4.3     trixie: RabbitMQ 4.0
#
# Prints the folder, ${WORKERKIT_CACHE:-/var/tmp/workerkit}/SUITE. Takes about a minute the first time, nothing after.
# Where it cannot be built, says why and ends with 0 all the same: the tests that need it are then skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib/apt.sh

suite=${1:-forky}
cache=${WORKERKIT_CACHE:-/var/tmp/workerkit}
folder=$cache/$suite
partial=$folder.partial
log=$folder.log

skip() {
    echo "rabbitmq-next: no RabbitMQ of Debian $suite, its tests will be skipped: $*" >&2
    exit 0
}

# The mirror that this machine's apt uses for its own Debian release.
debian_mirror() {
    local codename
    codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") || return 0
    # shellcheck disable=SC2016 # the dollars are apt's
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v codename="$codename" '($2 == codename || $2 == "stable") && $3 == "main" { print $1; exit }'
}

build() {
    local mirror=$1 script=/usr/share/debootstrap/scripts/$suite proxy=
    if [ ! -e "$script" ]; then script=${script%/*}/sid; fi # debootstrap is older than the suite
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    # In namespaces of its own, what debootstrap mounts and starts goes away with it, even if it is killed.
    http_proxy=${http_proxy:-$proxy} timeout 900 unshare --mount --pid --fork --kill-child --mount-proc \
        debootstrap --variant=minbase --include=rabbitmq-server "$suite" "$partial" "$mirror" "$script" || return
    rm -f "$partial"/var/cache/apt/archives/*.deb
}

main() {
    local mirror
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then skip "apt has no Debian mirror configured here"; fi
    if ! command -v debootstrap >/dev/null; then
        apt_install debootstrap || skip "debootstrap could not be installed"
    fi
    echo "rabbitmq-next: building Debian $suite with its RabbitMQ in $folder (about a minute)" >&2
    # What an interrupted run left. Without --one-file-system this could walk into something mounted there.
    rm -rf --one-file-system "$partial" || skip "$partial cannot be removed"
    if ! build "$mirror" >"$log" 2>&1; then
        tail -n 5 "$log" | sed 's/^/  /' >&2
        skip "debootstrap failed, see $log"
    fi
    mv "$partial" "$folder" || skip "$folder cannot be made" # a folder of this name is complete
}

if [ "$(id -u)" -ne 0 ]; then skip "only root can build it and start it"; fi
mkdir -p "$cache" || skip "$cache cannot be made"
# One build at a time. debootstrap inherits the lock, so one that outlives its script, which was killed, is waited for.
exec 9>"$cache/$suite.lock"
flock --wait 900 9 || skip "another run is still building it"
if [ ! -d "$folder" ]; then main; fi
echo "$folder"
