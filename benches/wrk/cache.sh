#!/usr/bin/env bash
# What a cache hit costs: CPU per request of Gatewright, of nginx with proxy_cache and of Varnish, for bodies of 1 KiB and 64 KiB, in
# one run, round by round in turn. Everything is filled by one request first, and a server whose origin is asked again ends the
# run. Prints a table for each size and keeps raw data and a machine note in benches/wrk/runs/DATE-cache/.
set -euo pipefail

usage() {
  cat <<'EOT'
usage: benches/wrk/cache.sh [options]
  --rounds N        rounds, each measures every server once (default 5)
  --seconds N       length of one measurement (default 8)
  --connections N   keep-alive connections of wrk (default 64)
  --threads N       worker threads or processes of each server (default: one per core)
  --servers LIST    default gatewright,gatewright-stealing,nginx,varnish: Gatewright as it is and with workers that steal; those
                    that are not installed are left out
  --sizes LIST      bytes of the bodies (default 1024,65536)
  --no-build        use the release binary as it is
  --no-save         print the tables only
With binary=PATH in the environment that build of the gateway is measured.
EOT
}

rounds=5 seconds=8 connections=64 threads=$(nproc) servers=gatewright,gatewright-stealing,nginx,varnish sizes=1024,65536 build=1 save=1
while (($#)); do
  case $1 in
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --connections) connections=$2; shift ;;
    --threads) threads=$2; shift ;;
    --servers) servers=$2; shift ;;
    --sizes) sizes=$2; shift ;;
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
for tool in wrk nginx curl pgrep; do
  command -v "$tool" >/dev/null || { echo "cache.sh: $tool is missing: scripts/setup.sh bench" >&2; exit 1; }
done
if [[ $build ]]; then cargo build --release --bin gatewright; fi
binaries=${CARGO_TARGET_DIR:-target}/release
[[ $binaries == /* ]] || binaries=$PWD/$binaries

work=$(mktemp -d)
chmod 755 "$work"
trap 'stop_all; rm -rf "$work"' EXIT
IFS=, read -ra size_list <<<"$sizes"
IFS=, read -ra wanted <<<"$servers"

nginx_head() {
  cat <<EOT
worker_processes $1;
daemon off;
pid $work/$2.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log ${3:-off};
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  sendfile on;
  client_body_temp_path $work/$2.body;
  proxy_temp_path $work/$2.proxy;
  fastcgi_temp_path $work/$2.fastcgi;
  uwsgi_temp_path $work/$2.uwsgi;
  scgi_temp_path $work/$2.scgi;
EOT
}

# The origin: static files that may be kept for an hour, and a log of who asked.
mkdir -p "$work/files"
for size in "${size_list[@]}"; do head -c "$size" /dev/zero | tr '\0' x >"$work/files/$size"; done
free_port
origin=127.0.0.1:$port
{
  nginx_head 1 origin "$work/origin.access"
  echo "  server { listen $origin; root $work/files; default_type text/plain; location / { add_header cache-control max-age=3600; } } }"
} >"$work/origin.conf"
start origin nginx -p "$work" -c "$work/origin.conf"
wait_for "http://$origin/${size_list[0]}" origin

# gatewright NAME [LINE]: with this line more under [server].
gatewright() {
  cat >"$work/$1.toml" <<EOT
[server]
threads = $threads
${2-}
[admin]
listen = "unix:$work/$1.sock"
[log]
level = "warn"
access = { output = "off" }
[cache]
memory = "64MiB"
[listeners.http]
address = "127.0.0.1:$port"
[upstreams.app]
endpoints = ["$origin"]
[routes.all]
match = { path = "/{*rest}" }
upstream = "app"
cache = {}
EOT
  start "$1" "${binary:-$binaries/gatewright}" run -c "$work/$1.toml"
}

nginx_cache() {
  {
    nginx_head "$threads" nginx
    cat <<EOT
  proxy_cache_path $work/nginx.cache levels=1:2 keys_zone=c:10m max_size=64m inactive=1h use_temp_path=off;
  open_file_cache max=1000 inactive=1h;
  upstream app { server $origin; keepalive 64; }
  server {
    listen 127.0.0.1:$port backlog=4096;
    location / {
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_cache c;
    }
  }
}
EOT
  } >"$work/nginx.conf"
  start nginx nginx -p "$work" -c "$work/nginx.conf"
}

varnish() {
  cat >"$work/varnish.vcl" <<EOT
vcl 4.0;
backend default { .host = "${origin%:*}"; .port = "${origin##*:}"; }
EOT
  start varnish varnishd -F -n "$work/varnish" -a "127.0.0.1:$port" -f "$work/varnish.vcl" -s malloc,64m \
    -p "thread_pools=$threads" -p timeout_idle=3600
}

declare -A pids ports
order=()
for server in "${wanted[@]}"; do
  if [[ $server == varnish ]] && ! command -v varnishd >/dev/null; then
    echo "cache.sh: varnishd is not installed and is left out" >&2
    continue
  fi
  free_port
  case $server in
    gatewright) gatewright "$server" ;;
    gatewright-stealing) gatewright "$server" 'work_stealing = true' ;;
    nginx) nginx_cache ;;
    varnish) varnish ;;
    *) echo "cache.sh: unknown server $server" >&2; exit 2 ;;
  esac
  order+=("$server")
  pids[$server]=$pid ports[$server]=$port
  for size in "${size_list[@]}"; do
    wait_for "http://127.0.0.1:$port/$size" "$server"
    length=$(curl -s "http://127.0.0.1:$port/$size" | wc -c)
    ((length == size)) || { echo "cache.sh: $server answers $length bytes instead of $size" >&2; exit 1; }
  done
done

load() {
  wrk -t1 -c"$connections" -d"$2"s --latency "http://127.0.0.1:${ports[$1]}/$4" >"$3"
}

tick_us=$((1000000 / $(getconf CLK_TCK)))
for size in "${size_list[@]}"; do
  data=$work/data-$size.tsv
  printf 'round\tproxy\trequests\treq_per_s\tcpu_user_us\tcpu_system_us\tp50_us\tp99_us\terrors\thwm_kib\tpss_kib\n' >"$data"
  for server in "${order[@]}"; do load "$server" 2 /dev/null "$size"; done
  asked=$(wc -l <"$work/origin.access")
  for ((round = 1; round <= rounds; round++)); do
    for server in "${order[@]}"; do
      read -r user0 system0 <<<"$(ticks "${pids[$server]}")"
      load "$server" "$seconds" "$work/wrk.$size.$round.$server" "$size"
      read -r user1 system1 <<<"$(ticks "${pids[$server]}")"
      read -r requests rps p50 p99 errors <<<"$(read_wrk "$work/wrk.$size.$round.$server")"
      ((requests > 0)) || { echo "cache.sh: $server answered nothing" >&2; exit 1; }
      printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$round" "$server" "$requests" "$rps" \
        $(((user1 - user0) * tick_us)) $(((system1 - system0) * tick_us)) "$p50" "$p99" "$errors" \
        "$(memory "${pids[$server]}" status VmHWM)" "$(memory "${pids[$server]}" smaps_rollup Pss)" | tee -a "$data" >&2
    done
  done
  if (($(wc -l <"$work/origin.access") != asked)); then
    echo "cache.sh: the origin was asked while hits were measured" >&2
    exit 1
  fi
done

report() {
  for size in "${size_list[@]}"; do
    echo "Hits of $size bytes:"
    echo
    echo "| server | CPU µs/request | ratio (quartiles) | user + system | req/s | p50 | p99 | peak memory | errors |"
    echo "|---|---|---|---|---|---|---|---|---|"
    awk -F'\t' -v reference=nginx -f "$here/table.awk" "$work/data-$size.tsv"
    echo
  done
}

report
if [[ $save ]]; then
  keep_run cache "$rounds rounds of $seconds s, $connections connections, $threads threads for each server"
  cp "$work"/data-*.tsv "$run/"
  report >"$run/table.md"
  cat "$work"/wrk.* >"$run/wrk.txt"
fi
