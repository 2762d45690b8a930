#!/usr/bin/env bash
# Instructions of parts of the frame path, compared with benches/guards.txt: a part that
# takes 3 % more than is written there fails. Counted by valgrind, so a busy machine changes
# nothing, and neither does the directory, since a release is compiled as one unit. Another
# compiler or processor may: with others than the file names nothing fails.
#
#   benches/guards.sh          compare
#   benches/guards.sh write    write the file anew
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
file=benches/guards.txt
times=2000
# libc and the check of UTF-8 choose their code by what the processor can do.
vectors=$(grep -qw avx2 /proc/cpuinfo && echo avx2 || echo none)
here="rustc $(rustc --version | cut -d ' ' -f 2), $(uname -m), vectors $vectors"
tolerance=3

if ! command -v valgrind >/dev/null; then
    echo "guards: skipped, valgrind is not installed (Debian: apt-get install valgrind)" >&2
    exit 0
fi
cargo build --locked --release --example guards
program=${CARGO_TARGET_DIR:-target}/release/examples/guards

# Instructions of one run of a part so many times.
count() {
    valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null "$program" "$1" "$2" 2>&1 |
        awk '/I +refs/ { gsub(",", "", $NF); print $NF }'
}

each() {
    local none all
    # What fails is not counted, and says why.
    "$program" "$1" 1 >/dev/null
    none=$(count "$1" 0)
    all=$(count "$1" $times)
    echo $(((all - none) / times))
}

if [ "${1:-}" = write ]; then
    names=$(sed -n 's/^        "\([a-z0-9-]*\)" => .*/\1/p' examples/guards.rs)
    { echo "$here"; for name in $names; do echo "$name $(each "$name")"; done; } | tee $file
    exit
fi
failed=0 may_fail=1
if [ "$(grep '^rustc ' $file)" != "$here" ]; then
    echo "guards: $file was not written with $here: nothing fails" >&2
    may_fail=0
fi
while read -r name before; do
    now=$(each "$name")
    verdict=ok
    if [ $((now * 100)) -gt $((before * (100 + tolerance))) ]; then
        verdict="MORE than $tolerance % over the baseline"
        failed=$may_fail
    elif [ $((now * 100)) -lt $((before * (100 - tolerance))) ]; then
        verdict="less: write the file anew"
    fi
    printf '%-22s %8d instructions, was %8d: %s\n' "$name" "$now" "$before" "$verdict"
done < <(grep -v '^rustc ' $file)
exit $failed
