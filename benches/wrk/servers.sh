# shellcheck shell=bash
# The configs of everything that run.sh starts. Sourced, not run: $work, $threads, $pid and $port are run.sh's.
# shellcheck disable=SC2034,SC2154

# An nginx of its own that answers every request with about 1 KiB over keep-alive connections. origin NAME
origin() {
  local name=$1 body
  free_port
  body=$(printf 'x%.0s' $(seq 1 1000))
  cat >"$work/$name.conf" <<EOF
worker_processes 1;
daemon off;
pid $work/$name.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  client_body_temp_path $work/$name.body;
  proxy_temp_path $work/$name.proxy;
  fastcgi_temp_path $work/$name.fastcgi;
  uwsgi_temp_path $work/$name.uwsgi;
  scgi_temp_path $work/$name.scgi;
  server {
    listen 127.0.0.1:$port backlog=4096;
    default_type text/plain;
    location / { return 200 "$body"; }
  }
}
EOF
  start "$name" nginx -p "$work" -c "$work/$name.conf"
  origins+=("127.0.0.1:$port")
  wait_for "http://127.0.0.1:$port/" "$name"
}

# A Redis that keeps nothing on disk; its port is left in $redis_port.
redis_server() {
  free_port
  redis_port=$port
  start redis redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no
}

# The filter of one way to count, with a limit that is never reached. limit_filter local|lease|redis
limit_filter() {
  local limited="by = 'address', limits = [{ rate = '100000000/1s' }]"
  case $1 in
    local) echo "{ rate_limit = { $limited } }" ;;
    lease) echo "{ rate_limit = { $limited, store = 'redis', lease = 20000 } }" ;;
    redis) echo "{ rate_limit = { $limited, store = 'redis' } }" ;;
  esac
}

# Gatewright with routing, round-robin, metrics and an access log to a file; $binary is another build of it, $stealing whether its
# workers steal from each other.
# gatewright NAME ROUTES [FILTERS [SECTIONS]]
gatewright() {
  local name=$1 routes=$2 filters=${3-} sections=${4-} endpoints
  free_port
  endpoints=$(printf '"%s", ' "${origins[@]}")
  {
    cat <<EOF
[server]
threads = $threads
work_stealing = ${stealing:-false}

[admin]
listen = "unix:$work/$name.sock"

[log]
level = "warn"
access = { format = "json", output = "file:$work/$name.access" }

[listeners.http]
address = "127.0.0.1:$port"

[upstreams.app]
endpoints = [${endpoints%, }]
EOF
    printf '%s\n' "$sections"
    awk -v routes="$routes" -v filters="${filters:+filters = [$filters]}" 'BEGIN {
      for (i = 1; i <= routes; i++)
        printf "\n[routes.r%05d]\nmatch = { path = \"/service-%05d/{*rest}\" }\nupstream = \"app\"\n%s\n", i, i, filters
    }'
  } >"$work/$name.toml"
  start "$name" "${binary:-$binaries/gatewright}" run -c "$work/$name.toml"
}

# The do-nothing Pingora proxy, with workers as Pingora has them by default, or with a runtime for each. baseline NAME [-apart]
baseline() {
  free_port
  start "$1" "$binaries/examples/baseline" "127.0.0.1:$port" "$threads${2-}" "${origins[@]}"
}

# nginx as a proxy that does nothing else: round-robin, keep-alive both ways, no log.
nginx_proxy() {
  local name=$1
  free_port
  cat >"$work/$name.conf" <<EOF
worker_processes $threads;
daemon off;
pid $work/$name.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  client_body_temp_path $work/$name.body;
  proxy_temp_path $work/$name.proxy;
  fastcgi_temp_path $work/$name.fastcgi;
  uwsgi_temp_path $work/$name.uwsgi;
  scgi_temp_path $work/$name.scgi;
  upstream app {
$(printf '    server %s;\n' "${origins[@]}")
    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
  }
  server {
    listen 127.0.0.1:$port backlog=4096;
    location / {
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }
  }
}
EOF
  start "$name" nginx -p "$work" -c "$work/$name.conf"
}

# HAProxy as a proxy that does nothing else: round-robin, keep-alive both ways, no log.
haproxy_proxy() {
  local name=$1
  free_port
  cat >"$work/$name.conf" <<EOF
global
  nbthread $threads
  maxconn 8192
defaults
  mode http
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
frontend front
  bind 127.0.0.1:$port backlog 4096
  default_backend app
backend app
  balance roundrobin
$(for i in "${!origins[@]}"; do echo "  server s$i ${origins[i]} pool-max-conn -1"; done)
EOF
  start "$name" haproxy -db -f "$work/$name.conf"
}

# Stops what was started last.
stop_last() {
  kill "$pid"
  wait "$pid" 2>/dev/null || true
  unset 'started[-1]'
}

# How long the gateway NAME, which has just been started, took to be ready, and takes to reload: "NAME READY_MS RELOAD_MS", with
# tabs. From the start of the process to the first 200 of /readyz, asked for every few milliseconds.
time_start_and_reload() {
  local name=$1 url="http://localhost" ready reload end=$((SECONDS + 20))
  until curl -s -o /dev/null --fail -m 5 --unix-socket "$work/$name.sock" "$url/readyz" 2>/dev/null; do
    if ((SECONDS >= end)) || ! kill -0 "$pid" 2>/dev/null; then
      echo "run.sh: $name is not ready" >&2
      tail -n 20 "$work/$name.log" >&2
      exit 1
    fi
    sleep 0.002
  done
  ready=${EPOCHREALTIME/[.,]/}
  # A text of its own, as a change has.
  echo "# again" >>"$work/$name.toml"
  if ! curl -s -o /dev/null --fail -X POST --unix-socket "$work/$name.sock" "$url/reload"; then
    echo "run.sh: $name did not reload" >&2
    exit 1
  fi
  reload=$(curl -s --unix-socket "$work/$name.sock" "$url/status" | sed -n 's/.*"took_ms": *\([0-9.]*\).*/\1/p')
  printf '%s\t%d\t%.1f\n' "$name" $(((ready - begun) / 1000)) "$reload"
}
