#!/usr/bin/env bash
# Where the CPU time of a request goes: perf samples of Gatewright and of the do-nothing Pingora proxy under the load of run.sh,
# summed up by whose code it is, in microseconds for each request. Symbols and table are kept in benches/wrk/runs/DATE-profile/.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: benches/wrk/profile.sh [options]
  --seconds N       of sampling for each (default 10)
  --connections N   keep-alive connections of wrk (default 64)
  --no-build        use the release binaries as they are
  --no-save         print the table only
EOF
}

seconds=10 connections=64 threads=$(nproc) build=1 save=1
while (($#)); do
  case $1 in
    --seconds) seconds=$2; shift ;;
    --connections) connections=$2; shift ;;
    --no-build) build='' ;;
    --no-save) save='' ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# shellcheck source=benches/wrk/lib.sh
source "$here/lib.sh"
# shellcheck source=benches/wrk/servers.sh
source "$here/servers.sh"

if [[ $save ]]; then may_keep; fi
for tool in wrk nginx curl perf; do
  command -v "$tool" >/dev/null || { echo "profile.sh: $tool is missing: scripts/setup.sh bench" >&2; exit 1; }
done
if [[ $build ]]; then cargo build --release --locked --bin gatewright --example baseline; fi
binaries=${CARGO_TARGET_DIR:-target}/release
[[ $binaries == /* ]] || binaries=$PWD/$binaries

work=$(mktemp -d)
chmod 755 "$work"
trap 'stop_all; rm -rf "$work"' EXIT
origins=()
origin origin1
origin origin2

# Samples the process $pid while requests go through $port. profile NAME
profile() {
  local name=$1 load user0 system0 user1 system1 requests
  wait_for "http://127.0.0.1:$port/service-00001/items" "$name"
  wrk -t1 -c"$connections" -d2s "http://127.0.0.1:$port/service-00001/items" >/dev/null
  read -r user0 system0 <<<"$(ticks "$pid")"
  wrk -t1 -c"$connections" -d"$((seconds + 2))"s "http://127.0.0.1:$port/service-00001/items" >"$work/$name.wrk" &
  load=$!
  perf record -q -F 1999 -p "$pid" -o "$work/$name.data" -- sleep "$seconds" >/dev/null
  wait "$load"
  read -r user1 system1 <<<"$(ticks "$pid")"
  read -r requests _ <<<"$(read_wrk "$work/$name.wrk")"
  perf report -i "$work/$name.data" --sort dso,symbol --no-inline --stdio 2>/dev/null | sed '/^#/d; /^ *$/d; s/^ *//' >"$work/$name.symbols"
  awk -v name="$name" -v whole="$(((user1 - user0 + system1 - system0) * 1000000 / $(getconf CLK_TCK)))" -v requests="$requests" '
    # Not by the name of the program, which is that of its crate.
    { share = $1 + 0; dso = $2; symbol = $0; sub(/^[^[]*/, "", symbol) }
    dso ~ /kernel|vdso/ { part["kernel"] += share; next }
    symbol ~ /mem(move|cpy|set|cmp)/ { part["copying of memory"] += share; next }
    symbol ~ /mi_|malloc/ { part["allocator"] += share; next }
    symbol ~ /gatewright/ { part["Gatewright"] += share; next }
    symbol ~ /pingora/ { part["Pingora"] += share; next }
    symbol ~ /tokio|core::future|mio::/ { part["runtime (tokio)"] += share; next }
    symbol ~ /http::|bytes::|httparse/ { part["http, bytes, httparse"] += share; next }
    { part["other"] += share }
    END { for (p in part) printf "%s\t%s\t%.1f\n", name, p, part[p] / 100 * whole / requests }
  ' "$work/$name.symbols" >>"$work/parts.tsv"
}

baseline baseline
profile baseline
baseline baseline-apart -apart
profile baseline-apart
gatewright gatewright 10
profile gatewright

report() {
  echo "| µs for each request | bare Pingora proxy | the same without work stealing | Gatewright |"
  echo "|---|---|---|---|"
  awk -F'\t' '
    { cell[$1, $2] = $3; sum[$1] += $3; parts[$2] }
    END {
      for (p in parts) printf "| %s | %.1f | %.1f | %.1f |\n", p, cell["baseline", p], cell["baseline-apart", p], cell["gatewright", p] | "sort"
      close("sort")
      printf "| **all** | %.1f | %.1f | %.1f |\n", sum["baseline"], sum["baseline-apart"], sum["gatewright"]
    }' "$work/parts.tsv"
}

report
if [[ $save ]]; then
  keep_run profile "$seconds s of samples at 1999 Hz, $connections connections, $threads threads for each proxy, 2 origins"
  report >"$run/table.md"
  for name in baseline baseline-apart gatewright; do head -n 100 "$work/$name.symbols" >"$run/$name.txt"; done
fi
