#!/usr/bin/env bash
# How exact limits in Redis are, and what faults of Redis cost clients, measured and kept in benches/limits/runs: a million requests for
# each algorithm through four gateways with wrong clocks, twenty rounds of each fault under load, leases and the script at full
# length; how local limits count, ten million keys in the least memory, and how long 100,000 consumers take to load. On a machine that does nothing else, about half an hour; its tests fail where a bound of docs/limits.md does not hold.
#
#   benches/limits/measure.sh          # a release build of the gateway, everything
#   binary=target/pgo/gatewright benches/limits/measure.sh                   # as make release builds it
#   binary=target/debug/gatewright FULL=0 ROUNDS=1 OUT=/tmp/limits benches/limits/measure.sh    # whether it works
#
# A run that is kept here must be of a commit: with changes in the tree it is refused, unless KEEP_DIRTY=1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=benches/wrk/lib.sh
source benches/wrk/lib.sh

measured+=(tests/it benches/limits/measure.sh)
not_kept='name another directory with OUT'
if [[ -z ${OUT-} ]]; then may_keep; fi
if [[ -z ${binary-} ]]; then
  cargo build --locked --release --bin gatewright
  binary=target/release/gatewright
fi
out=${OUT:-benches/limits/runs/$(date -u +%Y-%m-%d)}
export GATEWRIGHT_BINARY=$binary GATEWRIGHT_FULL=${FULL:-1} GATEWRIGHT_ROUNDS=${ROUNDS:-20}
mkdir -p "$out"
rm -f "$out/results.jsonl"
GATEWRIGHT_RESULTS=$(realpath "$out")/results.jsonl
export GATEWRIGHT_RESULTS
machine "$binary, GATEWRIGHT_FULL=$GATEWRIGHT_FULL, $GATEWRIGHT_ROUNDS rounds; $(redis-server --version | cut -d' ' -f1-3)" >"$out/machine.txt"
cargo test --locked --test it -- --nocapture --test-threads 1 \
  accuracy:: whatever_befalls a_failover_of_sentinels_costs a_failover_of_a_cluster_costs leases::whatever leases::leases_cost script:: \
  auth::a_hundred_thousand_consumers \
  2>&1 | grep -v '^ *Compiling' | tee "$out/output.txt"
cargo test --locked --test alloc -- --nocapture a_local_store 2>&1 | grep -v '^ *Compiling' | tee -a "$out/output.txt"
