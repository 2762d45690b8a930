#!/usr/bin/env bash
# Runs rings that are rolled, killed and soaked over a network that loses packets, each judged by
# the checker, and prints a table.
#
#   tests/faults/run.sh [PERCENT…]       default: 1
#
# Needs root, for a network of its own, and nft (Debian: nftables). Exit 75: they are not here.
set -euo pipefail
cd "$(dirname "$0")/../.."

lossy() { # PERCENT COMMAND…: in a network of its own, where so many packets are lost.
    local percent=$1
    shift
    unshare --net sh -c '
        ip link set lo up
        nft add table inet faults
        nft add chain inet faults input "{ type filter hook input priority 0; }"
        nft add rule inet faults input numgen random mod 1000 lt "$0" counter drop
        "$@"' "$((percent * 10))" "$@"
}

if ! command -v nft >/dev/null || ! lossy 1 true 2>/dev/null; then
    echo "tests/faults/run.sh: no nft, or no network of its own (root)" >&2
    exit 75
fi
percents=("$@")
[ ${#percents[@]} -gt 0 ] || percents=(1)
tests=(
    roll::a_ring_replaced_under_load_fails_no_turn_and_breaks_no_invariant
    roll::owners_killed_under_load_leave_only_what_is_said_to_be_unknown
    soak::nodes_and_the_database_fail_in_turn_and_the_node_that_stays_breaks_no_invariant
)
cargo test --locked --test it --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rows=()
failed=0
for percent in "${percents[@]}"; do
    for test in "${tests[@]}"; do
        echo "==> $percent % of all packets are lost: $test"
        ended=ok
        lossy "$percent" cargo test --locked --quiet --test it -- --exact "$test" --nocapture >"$log" 2>&1 \
            || { ended=FAILED; failed=1; }
        # The log of a failure holds those of the nodes as well.
        if [ "$ended" = ok ]; then grep -v '^{' "$log"; else cat "$log"; fi
        facts=$(awk '/^I[1-8] /{checked += $2; violations += $3} END {print checked + 0 " | " violations + 0}' "$log")
        turns=$(sed -n 's/.*[^0-9]\([0-9]* turns\)[:,].*/\1/p; s/^\([0-9]* turns\),.*/\1/p' "$log" | tail -n 1)
        rows+=("| $percent % | ${test#*::} | ${turns:-?} | $facts | $ended |")
    done
done
printf '\n| Packets lost | Test | Turns | Facts checked | Violations | |\n|---|---|---|---|---|---|\n'
printf '%s\n' "${rows[@]}"
exit "$failed"
