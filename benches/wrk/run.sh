#!/usr/bin/env bash
# What the gateway costs: CPU per request, throughput, latency and memory of Gatewright, of a do-nothing Pingora proxy, of
# nginx and of HAProxy, over the same origins, in one run, round by round in turn so that a change of the machine's mood
# meets all of them. Prints a table and keeps raw data and a machine note in benches/wrk/runs/DATE-NAME/.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: benches/wrk/run.sh [options]
  --rounds N        rounds, each measures every proxy once (default 5)
  --seconds N       length of one measurement (default 8)
  --connections N   keep-alive connections of wrk (default 64)
  --threads N       worker threads or processes of each proxy (default: one per core)
  --origins N       origins behind each proxy (default 2)
  --routes N        instead: Gatewright with N routes against Gatewright with ten, requests spread over all of them; and how
                    long each takes to start and to reload
  --limits          instead: Gatewright without a limit against one that is local, leased from Redis, and exact in Redis
  --auth            instead: Gatewright without authentication against Gatewright with keys and tokens
  --allocators      instead: Gatewright with mimalloc against Gatewright with jemalloc and with the system's allocator
  --pgo             also Gatewright as pgo.sh builds it
  --proxies LIST    default gatewright,gatewright-stealing,baseline,baseline-apart,nginx,haproxy: Gatewright and the bare proxy as
                    they are by default, and each with the other's kind of workers
  --name NAME       the end of the directory's name (default: proxies, or routes-N)
  --no-build        use the release binaries as they are
  --no-save         print the table only
A run that is kept must be of a commit: with changes in the tree it is refused, unless KEEP_DIRTY=1.
With binary=PATH in the environment that build of the gateway is measured.
EOF
}

rounds=5 seconds=8 connections=64 threads=$(nproc) origin_count=2 routes='' limits='' auth='' allocators='' pgo='' name='' build=1 save=1
proxies=gatewright,gatewright-stealing,baseline,baseline-apart,nginx,haproxy
while (($#)); do
  case $1 in
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --connections) connections=$2; shift ;;
    --threads) threads=$2; shift ;;
    --origins) origin_count=$2; shift ;;
    --routes) routes=$2; shift ;;
    --limits) limits=1 ;;
    --auth) auth=1 ;;
    --allocators) allocators=1 ;;
    --pgo) pgo=1 ;;
    --proxies) proxies=$2; shift ;;
    --name) name=$2; shift ;;
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
# shellcheck source=benches/wrk/auth.sh
source "$here/auth.sh"

if [[ $save ]]; then may_keep; fi
for tool in wrk nginx haproxy curl pgrep; do
  command -v "$tool" >/dev/null || { echo "run.sh: $tool is missing: scripts/setup.sh bench" >&2; exit 1; }
done
if [[ $build && ! $allocators ]]; then cargo build --release --bin gatewright --example baseline; fi
if [[ $build && $pgo ]]; then "$here/pgo.sh"; fi
if [[ $pgo ]]; then proxies=gatewright-pgo,$proxies; fi
binaries=${CARGO_TARGET_DIR:-target}/release
[[ $binaries == /* ]] || binaries=$PWD/$binaries

work=$(mktemp -d)
# nginx drops to another account for its workers, which must be able to enter.
chmod 755 "$work"
trap 'stop_all; rm -rf "$work"' EXIT

origins=()
for ((i = 1; i <= origin_count; i++)); do origin "origin$i"; done

if [[ $routes ]]; then
  proxies="routes-10,routes-$routes"
  reference="routes-10"
elif [[ $limits ]]; then
  command -v redis-server >/dev/null || { echo "run.sh: redis-server is missing: scripts/setup.sh bench" >&2; exit 1; }
  proxies="limit-none,limit-local,limit-lease,limit-redis"
  reference="limit-none"
  redis_server
elif [[ $auth ]]; then
  proxies="auth-none,auth-key,auth-hs256,auth-rs256,auth-rs256-uncached"
  reference="auth-none"
  : "${name:=auth}"
  auth_setup
elif [[ $allocators ]]; then
  proxies="mimalloc,jemalloc,system"
  reference="mimalloc"
  : "${name:=allocators}"
  # Each is linked in, so that each is inlined where it can be. The last one is what the other measurements use.
  cargo build --release --bin gatewright --no-default-features
  cp "$binaries/gatewright" "$work/gatewright-system"
  cargo build --release --bin gatewright --no-default-features --features jemalloc
  cp "$binaries/gatewright" "$work/gatewright-jemalloc"
  cargo build --release --bin gatewright
  cp "$binaries/gatewright" "$work/gatewright-mimalloc"
else
  reference=baseline
fi
: "${name:=${routes:+routes-$routes}}" "${name:=${limits:+limits}}" "${name:=proxies}"
IFS=, read -ra order <<<"$proxies"

declare -A pids ports counts
starts=$work/starts.tsv
printf 'proxy\tready_ms\treload_ms\n' >"$starts"
# Five times, each with a reload; the last one stays. start_often NAME ROUTES
start_often() {
  local times
  for ((times = 1; times <= 5; times++)); do
    if ((times > 1)); then stop_last; fi
    gatewright "$1" "$2"
    time_start_and_reload "$1" >>"$starts"
  done
}
for proxy in "${order[@]}"; do
  counts[$proxy]=10
  case $proxy in
    gatewright) gatewright "$proxy" 10 ;;
    gatewright-stealing) stealing=true gatewright "$proxy" 10 ;;
    gatewright-pgo) binary=${CARGO_TARGET_DIR:-target}/pgo/gatewright gatewright "$proxy" 10 ;;
    auth-*) gatewright "$proxy" 10 "$(auth_filters "$proxy")" "$(auth_sections)" ;;
    mimalloc | jemalloc | system) binary=$work/gatewright-$proxy gatewright "$proxy" 10 ;;
    routes-*) counts[$proxy]=${proxy#routes-}; start_often "$proxy" "${counts[$proxy]}" ;;
    limit-none | limit-local) gatewright "$proxy" 10 "$(limit_filter "${proxy#limit-}")" ;;
    limit-*) gatewright "$proxy" 10 "$(limit_filter "${proxy#limit-}")" "[redis]
url = \"redis://127.0.0.1:$redis_port\"" ;;
    baseline) baseline "$proxy" ;;
    baseline-apart) baseline "$proxy" -apart ;;
    nginx) nginx_proxy "$proxy" ;;
    haproxy) haproxy_proxy "$proxy" ;;
    *) echo "run.sh: unknown proxy $proxy" >&2; exit 2 ;;
  esac
  pids[$proxy]=$pid ports[$proxy]=$port
  headers=()
  [[ $auth ]] && auth_headers "$proxy"
  wait_for "http://127.0.0.1:$port/service-00001/items" "$proxy" "${headers[@]}"
done

# load PROXY SECONDS OUTPUT
load() {
  local script=() headers=()
  [[ $auth ]] && auth_headers "$1"
  # Paths of one kind cost wrk nothing; only the comparison of route counts needs many.
  [[ $routes ]] && script=(-s "$here/paths.lua")
  ROUTES=${counts[$1]} wrk -t1 -c"$connections" -d"$2"s --latency "${script[@]}" "${headers[@]}" \
    "http://127.0.0.1:${ports[$1]}/service-00001/items" >"$3"
}

data=$work/data.tsv
printf 'round\tproxy\trequests\treq_per_s\tcpu_user_us\tcpu_system_us\tp50_us\tp99_us\terrors\thwm_kib\tpss_kib\n' >"$data"
tick_us=$((1000000 / $(getconf CLK_TCK)))
for proxy in "${order[@]}"; do load "$proxy" 2 /dev/null; done
for ((round = 1; round <= rounds; round++)); do
  for proxy in "${order[@]}"; do
    read -r user0 system0 <<<"$(ticks "${pids[$proxy]}")"
    load "$proxy" "$seconds" "$work/wrk.$round.$proxy"
    read -r user1 system1 <<<"$(ticks "${pids[$proxy]}")"
    read -r requests rps p50 p99 errors <<<"$(read_wrk "$work/wrk.$round.$proxy")"
    if ((requests == 0)); then
      echo "run.sh: $proxy answered nothing in round $round" >&2
      cat "$work/wrk.$round.$proxy" >&2
      exit 1
    fi
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$round" "$proxy" "$requests" "$rps" \
      $(((user1 - user0) * tick_us)) $(((system1 - system0) * tick_us)) "$p50" "$p99" "$errors" \
      "$(memory "${pids[$proxy]}" status VmHWM)" "$(memory "${pids[$proxy]}" smaps_rollup Pss)" | tee -a "$data" >&2
  done
done

report() {
  echo "| proxy | CPU µs/request | ratio (quartiles) | user + system | req/s | p50 | p99 | peak memory | errors |"
  echo "|---|---|---|---|---|---|---|---|---|"
  awk -F'\t' -v reference="$reference" -f "$here/table.awk" "$data"
  if [[ $routes ]]; then report_starts; fi
  if [[ $limits ]]; then report_pipelines; fi
}

# Of a column of a gateway in starts.tsv: "MEDIAN ms | WORST ms". spread NAME COLUMN
spread() {
  awk -F'\t' -v name="$1" -v column="$2" '$1 == name { print $column }' "$starts" | sort -n |
    awk '{ all[NR] = $1 } END { printf "%.0f ms | %.0f ms", all[int((NR + 1) / 2)], all[NR] }'
}

report_starts() {
  local proxy
  echo
  echo "| gateway | ready after its start | worst of five | a reload took | worst of five |"
  echo "|---|---|---|---|---|"
  for proxy in "${order[@]}"; do echo "| $proxy | $(spread "$proxy" 2) | $(spread "$proxy" 3) |"; done
}

# Over the whole run: how many decisions shared a round trip, and how many made none.
report_pipelines() {
  local proxy
  for proxy in limit-lease limit-redis; do
    curl -s --unix-socket "$work/$proxy.sock" http://localhost/metrics | awk -v proxy="$proxy" '
      /^gatewright_redis_decisions_total / { decisions = $2 }
      /^gatewright_redis_pipelines_total / { pipelines = $2 }
      /^gatewright_redis_leased_total / { leased = $2 }
      END {
        printf "\n%s: %d decisions by Redis in %d round trips (pipelining factor %.2f), %d by leases\n", proxy, decisions, pipelines,
          pipelines ? decisions / pipelines : 0, leased
      }'
  done
}

report
if [[ $save ]]; then
  keep_run "$name" "$rounds rounds of $seconds s, $connections connections, $threads threads for each proxy, $origin_count origins"
  cp "$data" "$run/data.tsv"
  if [[ $routes ]]; then cp "$starts" "$run/starts.tsv"; fi
  report >"$run/table.md"
  cat "$work"/wrk.[0-9]* >"$run/wrk.txt"
fi
