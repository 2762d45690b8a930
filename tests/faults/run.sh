#!/usr/bin/env bash
# The fault matrix: rings under load of which something breaks, judged by the checker where it
# can judge (I1 to I8), and one table of all.
#
#   tests/faults/run.sh [PATTERN]     only faults whose name or test matches (a regular expression)
#
# RINGSPAN_LOSS="1 5" sets which parts of all packets, in percent, are lost in turn (default: 1).
# RINGSPAN_LOSS_TIMING=default loses them with the default lease of 15 s instead of one of 1.5 s,
# which does not outlast a few lost packets (default: fast).
# RINGSPAN_PREVIOUS names the binary of an earlier release (./test.sh faults --upgrade builds it).
#
# Partitions, names and loss need root, nft and ip; stepping clocks need libfaketime. What is
# not here is printed as not run. Exit 75: nothing could be run.
set -euo pipefail
cd "$(dirname "$0")/../.."
loss_timing=${RINGSPAN_LOSS_TIMING:-fast}

# Columns: fault | what the test needs | tests, as filters of the test binary.
matrix() {
    cat <<'CASES'
An owner or edge is killed|-|roll::owners_killed_under_load_leave_only_what_is_said_to_be_unknown
Owner and heir are killed at once|-|faults::kills::owner_and_heir_killed_at_once_double_nothing
The same, conversations in the database|-|faults::kills::owner_and_heir_killed_at_once_lose_no_conversation_that_the_database_has
Each node stands still for one lease|-|faults::stops::nodes_that_stand_still_for_a_lease_double_nothing
Each node stands still for three leases|-|faults::stops::nodes_that_stand_still_for_three_leases_double_nothing
Each certified node stands still and wakes|-|faults::outages::certified_nodes_that_stand_still_double_nothing
Two nodes apart, both ways|lab|faults::partitions::nodes_that_do_not_reach_each_other_fail_no_session_for_good
Two nodes apart, one way|lab|faults::partitions::a_node_that_is_not_heard_by_another_fails_no_session_for_good
Two nodes apart, the other way|lab|faults::partitions::a_node_that_does_not_hear_another_fails_no_session_for_good
A node apart from Postgres, both ways|lab|faults::partitions::a_node_apart_from_the_database_doubles_nothing
A node apart from Postgres, answers lost|lab|faults::partitions::a_node_whose_commits_are_not_answered_doubles_nothing
A node apart from Postgres and peers|lab|faults::partitions::a_node_apart_from_the_database_and_its_peers_doubles_nothing
Postgres is stopped at once, nodes fail|-|soak::nodes_and_the_database_fail_in_turn_and_the_node_that_stays_breaks_no_invariant
Postgres stands still for three leases|-|faults::outages::a_database_that_stands_still_for_three_leases_moves_no_session_and_doubles_nothing
Postgres is gone for 30 s|-|roll::long_the_database_goes_for_half_a_minute_and_comes_back
Lines of 50 ms, give or take 40|-|faults::delays::a_ring_replaced_over_long_lines_fails_no_turn
Clocks of nodes step by an hour|clock|faults::clocks::clocks_of_nodes_that_step_by_an_hour_change_nothing
The clock of Postgres steps by an hour|clock|faults::clocks::a_clock_of_the_database_that_steps_by_an_hour_costs_no_node_its_lease
Names lag, addresses are used again|lab|faults::names::a_name_that_leads_to_another_process_leads_no_session_astray
Two releases in one ring, and back|previous|upgrade::a_ring_goes_to_the_next_release_and_back_under_load
The upstream refuses, hangs, is silent, fails|-|pool:: bad_days::an_upstream
The upstream fails, hangs, ends connections, under load|-|faults::upstream::an_upstream_that_fails_hangs_and_hangs_up_under_load_is_told_in_its_own_words
The upstream says what nobody asked|-|responses::an_event_of_a_foreign_response_does_not_reach_the_client
CASES
    local lost='of packets lost'
    [ "$loss_timing" = fast ] || lost+=", $loss_timing lease"
    for percent in ${RINGSPAN_LOSS:-1}; do
        cat <<CASES
$percent % $lost, a roll|loss $percent|roll::a_ring_replaced_under_load_fails_no_turn_and_breaks_no_invariant
$percent % $lost, kills|loss $percent|roll::owners_killed_under_load_leave_only_what_is_said_to_be_unknown
$percent % $lost, a soak|loss $percent|soak::nodes_and_the_database_fail_in_turn_and_the_node_that_stays_breaks_no_invariant
CASES
    done
}

lossy() { # PERCENT COMMAND…: in a network of its own, where so many packets are lost.
    local percent=$1
    shift
    RINGSPAN_TIMING=$loss_timing unshare --net sh -c '
        ip link set lo up
        nft add table inet faults
        nft add chain inet faults input "{ type filter hook input priority 0; }"
        nft add rule inet faults input numgen random mod 1000 lt "$0" counter drop
        "$@"' "$((percent * 10))" "$@"
}

# tests/support/lab.rs builds the rest of it.
lab() { # COMMAND…: in a network and with mounts of its own.
    RINGSPAN_LAB=1 RINGSPAN_PG_HOST=10.77.0.2 unshare --net --mount -- "$@"
}

lacks() { # NEED: prints why it cannot be had.
    case $1 in
    lab)
        if ! command -v nft >/dev/null || ! command -v ip >/dev/null; then
            echo "no nft or no ip (nftables, iproute2)"
        elif ! lab sh -c 'ip netns list && ip link add name probe type veth peer name eborp' >/dev/null 2>&1; then
            echo "no network of its own (root)"
        fi
        ;;
    loss*)
        if ! command -v nft >/dev/null; then
            echo "no nft (nftables)"
        elif ! lossy 1 true 2>/dev/null; then
            echo "no network of its own (root)"
        fi
        ;;
    clock)
        compgen -G '/usr/lib*/*/faketime/libfaketimeMT.so.1' >/dev/null ||
            compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null ||
            echo "no libfaketime"
        ;;
    previous) [ -x "${RINGSPAN_PREVIOUS:-}" ] || echo "RINGSPAN_PREVIOUS names no binary (--upgrade)" ;;
    esac
}

pattern=${1:-.}
build=$(cargo test --locked --test it --no-run 2>&1) || { echo "$build" >&2; exit 1; }
binary=$(sed -n 's/^ *Executable tests\/it\/main.rs (\(.*\))$/\1/p' <<<"$build")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rows=()
failed=0
ran=0
while IFS='|' read -r fault need tests; do
    grep -qE -- "$pattern" <<<"$fault $tests" || continue
    why=$(lacks "$need")
    if [ -n "$why" ]; then
        echo "==> $fault: not run: $why"
        rows+=("| $fault | | | | | | | | not run: $why |")
        continue
    fi
    echo "==> $fault: $tests"
    # Not one of several: the whole name of a test, which may be a long one.
    exact="--exact --include-ignored"
    case $tests in *" "* | *::) exact= ;; esac
    command=("$binary" $tests $exact --nocapture --test-threads=1)
    case $need in
    lab) command=(lab "${command[@]}") ;;
    loss*) command=(lossy "${need#loss }" "${command[@]}") ;;
    esac
    began=$SECONDS
    ended=ok
    "${command[@]}" >"$log" 2>&1 </dev/null || { ended=FAILED; failed=1; }
    ran=$((ran + 1))
    # The log of a failure holds those of the nodes as well.
    if [ "$ended" = ok ]; then grep -v '^{' "$log"; else cat "$log"; fi
    turns=$(sed -n 's/.*[^0-9]\([0-9]* turns\)[:,].*/\1/p; s/^\([0-9]* turns\),.*/\1/p' "$log" | tail -n 1)
    if grep -q '^I1 ' "$log"; then
        found=$(awk '
            /^I[1-8] / {checked += $2; violations += $3; broken[$1] = $3}
            /turns whose outcome was said to be unknown/ {unknown += $1}
            /^REFUSED / {refused += $2}
            END {printf "%d | %d | %d | %d | %d | %d", broken["I6"], broken["I2"], unknown,
                refused, checked, violations}' "$log")
    else
        found="| | | | $(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1 tests/p' "$log") |"
    fi
    rows+=("| $fault | ${turns% turns} | $found | $ended, $((SECONDS - began)) s |")
done < <(matrix)

printf '\n| Fault | Turns | Lost | Doubled | Unknown, and said so | Given up after refusals | Facts | Violations | |\n'
printf '|---|---|---|---|---|---|---|---|---|\n'
printf '%s\n' "${rows[@]}"
[ "$ran" -gt 0 ] || exit 75
exit "$failed"
