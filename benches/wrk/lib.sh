# shellcheck shell=bash
# Helpers of the scripts here: processes, what they cost, free ports, and where runs are kept. Sourced, not run: $work and $here
# are the script's, its directory the latter; $port, $pid and $run are for it.
# shellcheck disable=SC2034,SC2154

started=()

# Starts a command in the background with its output in a file, and remembers it for the clean-up.
# start NAME COMMAND...; the process id is left in $pid, the time in $begun, in microseconds.
start() {
  local name=$1
  shift
  begun=${EPOCHREALTIME/[.,]/}
  "$@" >"$work/$name.log" 2>&1 </dev/null &
  pid=$!
  started+=("$pid")
}

# Ends what start() started, newest first, with 3 s for doing it politely.
stop_all() {
  local i tries
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    kill "${started[i]}" 2>/dev/null || true
  done
  for ((tries = 0; tries < 30; tries++)); do
    kill -0 "${started[@]}" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "${started[@]}" 2>/dev/null || true
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    wait "${started[i]}" 2>/dev/null || true
  done
  started=()
}

# A port of 127.0.0.1 that nobody listens on, below the kernel's ephemeral range; left in $port.
next_port=$((20000 + RANDOM % 8000))
free_port() {
  while :; do
    next_port=$((next_port + 1))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$next_port") 2>/dev/null; then
      port=$next_port
      return
    fi
  done
}

# Waits up to 20 s until a URL answers 200. wait_for URL NAME [CURL_OPTION...]
wait_for() {
  local url=$1 name=$2 tries
  shift 2
  for ((tries = 0; tries < 200; tries++)); do
    if [[ $(curl -s -o /dev/null -m 1 -w '%{http_code}' "$@" "$url") == 200 ]]; then return; fi
    sleep 0.1
  done
  echo "run.sh: $name does not answer on $url" >&2
  tail -n 20 "$work/$name.log" >&2
  exit 1
}

# A process and all its descendants.
tree() {
  local child
  echo "$1"
  for child in $(pgrep -P "$1"); do tree "$child"; done
}

# User and system time of a process, its threads and its descendants, in clock ticks: "USER SYSTEM".
ticks() {
  local process
  for process in $(tree "$1"); do
    # The name in parentheses may hold spaces; what follows it does not. Fields 14 and 15 of proc(5).
    sed 's/.*) //' "/proc/$process/stat"
  done | awk '{ u += $12; s += $13 } END { print u + 0, s + 0 }'
}

# Sum of a field of /proc/PID/FILE over a process and its descendants, in KiB.
memory() {
  local process file=$2 field=$3
  for process in $(tree "$1"); do
    grep "^$field:" "/proc/$process/$file"
  done | awk '{ sum += $2 } END { print sum + 0 }'
}

# Reads wrk's report: "REQUESTS RPS P50_US P99_US ERRORS".
read_wrk() {
  awk '
    function us(text) {
      if (text ~ /us$/) return text + 0
      if (text ~ /ms$/) return (text + 0) * 1000
      return (text + 0) * 1000000
    }
    $1 == "50%" { p50 = us($2) }
    $1 == "99%" { p99 = us($2) }
    / requests in / { requests = $1 }
    $1 == "Requests/sec:" { rps = $2 }
    /Non-2xx or 3xx responses:/ { errors += $NF }
    /Socket errors:/ { gsub(",", ""); errors += $4 + $6 + $8 + $10 }
    END { printf "%d %.0f %.0f %.0f %d\n", requests, rps, p50, p99, errors }
  ' "$1"
}

# What a run was made on and with. machine OPTIONS
machine() {
  echo "CPU: $(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
  echo "Memory: $(awk '/^MemTotal/ { printf "%.1f GiB", $2 / 1048576 }' /proc/meminfo)"
  echo "Kernel: $(uname -sr)"
  echo "System: $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release)"
  echo "nginx: $(nginx -v 2>&1 | sed 's,.*/,,')"
  if command -v haproxy >/dev/null; then echo "HAProxy: $(haproxy -v | awk 'NR == 1 { print $3 }')"; fi
  if command -v varnishd >/dev/null; then echo "Varnish: $(varnishd -V 2>&1 | sed -n '1s/.*(varnish-\([0-9.]*\).*/\1/p')"; fi
  if command -v wrk >/dev/null; then echo "wrk: $(wrk -v 2>&1 | awk 'NR == 1 { print $2 }')"; fi
  echo "rustc: $(rustc --version | awk '{ print $2 }')"
  echo "Commit: $(git rev-parse --short HEAD)$(changed && echo ' with changes')"
  # Set for a build that is not cargo's, such as that of pgo.sh.
  if [[ ${binary-} ]]; then echo "Gatewright: ${binary#"$PWD/"}"; fi
  echo "Options: $1"
}

# Whether what is measured, and by what, is not what a commit has. A script adds to $measured what is its own.
measured=(src Cargo.toml Cargo.lock 'benches/*.rs' 'benches/wrk/*.sh' 'benches/wrk/*.lua' 'benches/wrk/*.awk')
changed() {
  [[ $(git status --porcelain -- "${measured[@]}") ]]
}

# A run that is kept says which commit it measured, so that it can be made again: ends the script where the tree has changes,
# before the time is spent. KEEP_DIRTY=1 keeps it all the same, and the note says so.
not_kept='use --no-save'
may_keep() {
  if changed && [[ ! ${KEEP_DIRTY-} ]]; then
    echo "the tree has changes, so that nobody could repeat this run: commit them, $not_kept, or set KEEP_DIRTY=1" >&2
    exit 1
  fi
}

# Begins the directory of today's run with the machine note; it is left in $run. keep_run NAME OPTIONS
keep_run() {
  may_keep
  run=$here/runs/$(date -u +%Y-%m-%d)-$1
  rm -rf "$run"
  mkdir -p "$run"
  machine "$2" >"$run/machine.txt"
  echo "kept in ${run#"$PWD/"}" >&2
}
