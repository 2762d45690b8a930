#!/usr/bin/env bash
# What a hop costs: ringspan against nginx, haproxy and a plain TCP copy, in one run.
#
#   benches/hop.sh --quick               one short round, about ten minutes
#   benches/hop.sh                       all of it, about forty minutes
#   benches/hop.sh --only frames,idle    parts: frames idle setup turns start moves handoffs slow
#                                        growth members
#   benches/hop.sh vigil                 20,000 idle sessions for an hour
#
# More options: benches/hop.sh --help. How to read it: benches/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
[ -x /usr/sbin/nginx ] || missing+=(nginx-light)
[ -x /usr/sbin/haproxy ] || missing+=(haproxy)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || [ -n "${PG_BIN:-}" ] || missing+=(postgresql)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]}" >&2
        # Runlevel 1: packages do not start their services.
        export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
        apt-get -qq update </dev/null
        apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
    else
        echo "not installed, and left out: ${missing[*]} (Debian: apt-get install ${missing[*]})" >&2
    fi
fi

cargo build --locked --release --bin ringspan --example hop
target=${CARGO_TARGET_DIR:-target}/release
# Two descriptors for each session at the proxy: as many as may be.
ulimit -n "$(ulimit -Hn)"
command=run
[ "${1:-}" = vigil ] && { command=vigil; shift; }
exec "$target/examples/hop" "$command" --ringspan "$target/ringspan" "$@"
