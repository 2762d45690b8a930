#!/usr/bin/env bash
# Where the CPU of a hop goes: a flame graph of one ringspan under load, and its largest parts.
#
#   benches/profile.sh                    ping-pong of 200 bytes over 256 connections
#   benches/profile.sh --kind turns --connections 8
#                                         any load of `hop load --help`
#   benches/profile.sh --database-url postgres://… --kind setup --connections 32
#                                         the ring in that Postgres (a database of its own: it
#                                         is migrated) in the place of SQLite
#
# Writes target/profile/flame.svg and stacks.txt (folded). Needs perf and inferno
# (`cargo install inferno`). Samples the processor's clock, so it works in virtual machines too.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in perf inferno-collapse-perf inferno-flamegraph; do
    command -v $tool >/dev/null || { echo "profile: no $tool (perf: Debian linux-perf; inferno: cargo install inferno)" >&2; exit 69; }
done
database= load=()
while [ $# -gt 0 ]; do
    case $1 in
    --database-url) database=${2:?an address}; shift 2 ;;
    *) load+=("$1"); shift ;;
    esac
done
[ ${#load[@]} -gt 0 ] || load=(--kind pingpong --connections 256 --bytes 200)
seconds=8

# Symbols and frame pointers, else the same release.
out=target/profile
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$out/build} CARGO_PROFILE_RELEASE_STRIP=none RUSTFLAGS="-C force-frame-pointers=yes"
cargo build --locked --release --bin ringspan --example hop
bin=$CARGO_TARGET_DIR/release

work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
cat >"$work/config.toml" <<TOML
listen = "127.0.0.1:7002"
peer_listen = "127.0.0.1:7003"
admin_listen = "127.0.0.1:7004"
threads = 1
capacity = 100000
max_clients = 100000
[auth]
mode = "none"
[[upstream]]
name = "plain"
url = "ws://127.0.0.1:7001"
[[upstream]]
name = "responses"
url = "ws://127.0.0.1:7001/v1/responses"
[[route]]
path = "/v1/responses"
profile = "responses"
upstream = "responses"
[[route]]
path = "/echo"
profile = "opaque"
upstream = "plain"
[[route]]
path = "/tokens"
profile = "opaque"
upstream = "plain"
TOML
ulimit -n "$(ulimit -Hn)"
# The subject has the last processor, load and upstream share the first.
last=$(($(nproc) - 1))
taskset -c 0 "$bin/examples/hop" upstream 127.0.0.1:7001 &
pids+=($!)
taskset -c $last "$bin/ringspan" serve --config "$work/config.toml" --node-id profile \
    --database-url "${database:-sqlite://$work/ring.db}" --migrate-on-start >"$work/log" 2>&1 &
subject=$!
pids+=($subject)
timeout 20 sh -c "until grep -q 'is ready' '$work/log'; do sleep 0.1; done"
taskset -c 0 "$bin/examples/hop" load --to 127.0.0.1:7002 --seconds $((seconds + 4)) "${load[@]}" >/dev/null &
pids+=($!)
sleep 2 # connected and warm
perf record -q -o "$work/perf.data" -e cpu-clock -F 1999 -g -p $subject -- sleep $seconds
perf script -i "$work/perf.data" 2>/dev/null | inferno-collapse-perf >$out/stacks.txt
inferno-flamegraph --title "ringspan, ${load[*]}" $out/stacks.txt >$out/flame.svg

# A stack belongs to the first of these that it goes through.
awk '
function part(s) {
    if (s ~ /sqlite/) return "SQLite: its thread, its files"
    if (s ~ /sqlx_postgres|ringspan::store::postgres/) return "Postgres: its client, its sockets"
    if (s ~ /try_to_wake_up|ttwu|select_task_rq/) return "kernel: waking the other processor"
    if (s ~ /entry_SYSCALL|do_syscall|asm_|el0_svc/) return "kernel: TCP, copies, system calls"
    if (s ~ /ringspan::wire/) return "codec, masks, queues of bytes"
    if (s ~ /ringspan::(link|bell)/) return "link between socket and session"
    if (s ~ /ringspan::session/) return "session, with the log"
    if (s ~ /ringspan::edge/) return "socket of the client"
    if (s ~ /tokio::|mio::/) return "tokio: scheduler, readiness"
    return "other"
}
{ n = $NF; sub(/ [0-9]+$/, ""); all += n; sum[part($0)] += n }
END { for (p in sum) printf "%5.1f %%  %s\n", 100 * sum[p] / all, p }' $out/stacks.txt | sort -rn
echo "$out/flame.svg"
