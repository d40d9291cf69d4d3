#!/usr/bin/env bash
# Handshakes for each second of CPU, full and resumed, of Gatewright and of nginx with the same certificate in one run, round
# by round in turn. The load is `openssl s_time`; only what the servers spend is counted. Prints a table and keeps raw data
# and a machine note in benches/wrk/runs/DATE-tls/.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: benches/wrk/tls.sh [options]
  --rounds N    rounds, each measures every server and kind once (default 5)
  --seconds N   length of one measurement (default 5)
  --threads N   worker threads or processes of each server (default: one per core)
  --key KIND    rsa (2048) or ec (P-256) (default ec)
  --no-build    use the release binary as it is
  --no-save     print the table only
With binary=PATH in the environment that build of the gateway is measured.
EOF
}

rounds=5 seconds=5 threads=$(nproc) key=ec build=1 save=1
while (($#)); do
  case $1 in
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --threads) threads=$2; shift ;;
    --key) key=$2; shift ;;
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
if [[ $save ]]; then may_keep; fi
for tool in openssl nginx curl pgrep; do
  command -v "$tool" >/dev/null || { echo "tls.sh: $tool is missing: scripts/setup.sh bench" >&2; exit 1; }
done
if [[ $build ]]; then cargo build --release --bin gatewright; fi
binaries=${CARGO_TARGET_DIR:-target}/release
[[ $binaries == /* ]] || binaries=$PWD/$binaries

work=$(mktemp -d)
chmod 755 "$work"
trap 'stop_all; rm -rf "$work"' EXIT

case $key in
  rsa) kind=(rsa:2048) ;;
  ec) kind=(ec -pkeyopt ec_paramgen_curve:prime256v1) ;;
  *) usage >&2; exit 2 ;;
esac
openssl req -x509 -newkey "${kind[@]}" -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
  -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null

# wait_tls NAME
wait_tls() {
  local tries
  for ((tries = 0; tries < 200; tries++)); do
    if [[ $(curl -sk -o /dev/null -m 1 -w '%{http_code}' "https://127.0.0.1:$port/") == 200 ]]; then return; fi
    sleep 0.1
  done
  echo "tls.sh: $1 does not answer" >&2
  tail -n 20 "$work/$1.log" >&2
  exit 1
}

declare -A pids ports sums
free_port
cat >"$work/gatewright.toml" <<EOF
[server]
threads = $threads
[admin]
listen = "unix:$work/admin.sock"
[log]
level = "warn"
access = { output = "off" }
[listeners.https]
address = "127.0.0.1:$port"
tls = { certificates = [{ cert = "cert.pem", key = "key.pem" }] }
[routes.all]
match = { path = "/{*rest}" }
filters = [{ respond = { body = "ok" } }]
EOF
start gatewright "${binary:-$binaries/gatewright}" run -c "$work/gatewright.toml"
pids[gatewright]=$pid ports[gatewright]=$port
wait_tls gatewright

free_port
cat >"$work/nginx.conf" <<EOF
worker_processes $threads;
daemon off;
pid $work/nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path $work/body;
  proxy_temp_path $work/proxy;
  fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi;
  scgi_temp_path $work/scgi;
  ssl_certificate $work/cert.pem;
  ssl_certificate_key $work/key.pem;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_tickets on;
  ssl_session_cache off;
  server {
    listen 127.0.0.1:$port ssl backlog=4096;
    location / { return 200 "ok"; }
  }
}
EOF
start nginx nginx -p "$work" -c "$work/nginx.conf"
pids[nginx]=$pid ports[nginx]=$port
wait_tls nginx

# measure SERVER -new|-reuse: handshakes for each second of CPU
measure() {
  local server=$1 mode=$2 before after user system count client version clients=()
  # s_time does not read the tickets of TLS 1.3, which come after the handshake.
  version=-tls1_3
  if [[ $mode == -reuse ]]; then version=-tls1_2; fi
  read -r user system < <(ticks "${pids[$server]}")
  before=$((user + system))
  for client in 1 2; do
    openssl s_time -connect "127.0.0.1:${ports[$server]}" "$mode" "$version" -time "$seconds" >"$work/s_time.$client" 2>&1 &
    clients+=("$!")
  done
  wait "${clients[@]}" || true
  read -r user system < <(ticks "${pids[$server]}")
  after=$((user + system))
  count=$(awk '/connections in .* real seconds/ { n += $1 } END { print n + 0 }' "$work"/s_time.*)
  awk -v n="$count" -v t="$((after - before))" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.0f\n", t ? n * hz / t : 0 }'
}

data=$work/data.tsv
printf 'round\tserver\tmode\thandshakes_per_cpu_s\n' >"$data"
for ((round = 1; round <= rounds; round++)); do
  for mode in -new -reuse; do
    for server in gatewright nginx; do
      rate=$(measure "$server" "$mode")
      printf '%s\t%s\t%s\t%s\n' "$round" "$server" "${mode#-}" "$rate" | tee -a "$data" >&2
      sums[$server$mode]="${sums[$server$mode]:-} $rate"
    done
  done
done

# What is in the middle of a list.
median() { tr ' ' '\n' <<<"$1" | grep . | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

report() {
  printf '\n| %s key, %s threads | full, TLS 1.3 | resumed, TLS 1.2 |\n|---|---|---|\n' "$key" "$threads"
  for server in gatewright nginx; do
    printf '| %s | %s | %s |\n' "$server" "$(median "${sums[$server-new]}")" "$(median "${sums[$server-reuse]}")"
  done
}

report
if [[ $save ]]; then
  keep_run tls "$rounds rounds of $seconds s, $threads threads for each server"
  cp "$data" "$run/data.tsv"
  report >"$run/table.md"
fi
