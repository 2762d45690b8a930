#!/usr/bin/env bash
# Fuzzes every target, or those named, for SECONDS each, and prints a table.
#
#   fuzz/run.sh [SECONDS] [TARGET…]      default: 20 seconds, all targets
#
# Needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz --locked). Exit 75: they are
# not here. What is new is kept in fuzz/found, what crashed in fuzz/artifacts; a crash belongs
# into fuzz/corpus, where the unit tests replay it.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-20}
shift || true
if ! cargo fuzz --version >/dev/null 2>&1 || ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz/run.sh: no cargo-fuzz, or no nightly toolchain" >&2
    exit 75
fi
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls corpus)

cargo +nightly fuzz build
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rows=()
failed=0
for target in "${targets[@]}"; do
    mkdir -p "found/$target"
    ended=ok
    cargo +nightly fuzz run "$target" "found/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 >"$log" 2>&1 || { ended=FAILED; failed=1; tail -n 40 "$log"; }
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    rows+=("| $target | ${executed:-?} | ${edges:-?} | ${peak:-?} | $ended |")
done
printf '\n| Target | Executions | Edges | Peak MiB | |\n|---|---|---|---|---|\n'
printf '%s\n' "${rows[@]}"
exit "$failed"
