#!/usr/bin/env bash
# A release build that knows what it will be used for. The gateway is built with counters in it, gets the traffic that gateways
# see, and is built again by what was counted. Then its code is laid out anew by BOLT, by what the same traffic uses: most of what
# a proxy waits for is code, some megabytes of which are touched a little by each request. The result is in
# target/pgo/gatewright; it does the same as any other build, in less time. What it is worth is measured by `run.sh --pgo`.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: benches/wrk/pgo.sh [options]
  --seconds N   of training for each kind of request (default 3)
EOF
}

seconds=3
while (($#)); do
  case $1 in
    --seconds) seconds=$2; shift ;;
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

for tool in wrk nginx curl openssl; do
  command -v "$tool" >/dev/null || { echo "pgo.sh: $tool is missing: scripts/setup.sh bench" >&2; exit 1; }
done
# Part of the compiler's own tools, and of its version: another one could not read what it has written.
profdata=$(find "$(rustc --print sysroot)" -name llvm-profdata -print -quit)
[[ $profdata ]] || { echo "pgo.sh: llvm-profdata is missing: rustup component add llvm-tools" >&2; exit 1; }

# By its own path, beside which it finds its runtime.
bolt=$(readlink -f "$(command -v llvm-bolt || command -v llvm-bolt-16)") || bolt=''
[[ $bolt ]] || { echo "pgo.sh: llvm-bolt is missing: scripts/setup.sh bench" >&2; exit 1; }

threads=$(nproc)
target=${CARGO_TARGET_DIR:-$PWD/target}
[[ $target == /* ]] || target=$PWD/$target
out=$target/pgo
profiles=$out/profiles
rm -rf "$profiles"
mkdir -p "$profiles"

# Counters stand where the code was written, before anything is inlined, so that this build need not be as slow to make as the last.
CARGO_TARGET_DIR=$out/counting RUSTFLAGS=-Cprofile-generate \
  LLVM_PROFILE_FILE=$profiles/build-%p.profraw CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=false \
  cargo build --locked --release --bin gatewright

work=$(mktemp -d)
# nginx drops to another account for its workers, which must be able to enter.
chmod 755 "$work"
trap 'stop_all; rm -rf "$work"' EXIT
origins=()
origin origin1
origin origin2
auth_setup
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
  -keyout "$work/tls.key" -out "$work/tls.pem" 2>/dev/null

free_port
tls_port=$port
# Beside the one route that the measurements have.
training_sections() {
  cat <<EOF
[listeners.https]
address = "127.0.0.1:$tls_port"
tls = { certificates = [{ cert = "$work/tls.pem", key = "$work/tls.key" }] }

[cache]
memory = "64MiB"
$(auth_sections)

[upstreams.watched]
endpoints = ["${origins[0]}", "${origins[1]}"]
health = { path = "/" }

[routes.other]
match = { path = "/other/{id}/items" }
upstream = "watched"
filters = [{ request_headers = { set = { x-tenant = "\${route}" }, remove = ["x-debug"] } }, { response_headers = { set = { x-frame-options = "DENY" } } }]

[routes.limited]
match = { path = "/limited/{*rest}" }
upstream = "app"
filters = [{ rate_limit = { by = "address", limits = [{ rate = "100000000/1s" }] } }]

[routes.key]
match = { path = "/key/{*rest}" }
upstream = "app"
filters = [{ api_key = {} }]

[routes.token]
match = { path = "/token/{*rest}" }
upstream = "app"
filters = [{ jwt = { issuer = "rs256" } }, { require = { roles = ["orders:read"] } }]

[routes.cached]
match = { path = "/cached/{*rest}" }
upstream = "app"
cache = { ttl = "60s", share = "public" }
EOF
}
# train PATH [WRK_OPTION...]
train() {
  local path=$1
  shift
  wrk -t1 -c32 -d"${seconds}s" "$@" "http://127.0.0.1:$port$path" >"$work/wrk.txt"
  if grep -q 'Non-2xx' "$work/wrk.txt" && [[ $path != /nowhere ]]; then
    echo "pgo.sh: $path is not answered as it should be" >&2
    cat "$work/wrk.txt" >&2
    exit 1
  fi
}

cat >"$work/post.lua" <<'EOF'
wrk.method = "POST"
wrk.body = string.rep("x", 2000)
wrk.headers["Content-Type"] = "application/json"
EOF
browser=(-H 'User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0'
  -H 'Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8' -H 'Accept-Language: en-GB,en;q=0.5'
  -H 'Accept-Encoding: gzip, deflate, br' -H 'Cookie: session=abc; theme=dark')

# train_all BINARY: runs it, sends it everything, and ends it in order, which is when it writes what it has counted.
train_all() {
  local gateway tries i
  binary=$1 gatewright training 1 '' "$(training_sections)"
  gateway=$pid
  wait_for "http://127.0.0.1:$port/service-00001/items" training
  # What there is most of comes twice, and with the headers of a browser.
  train /service-00001/items
  train "/service-00001/items?page=2" "${browser[@]}"
  train /other/17/items "${browser[@]}"
  train /service-00001/items -s "$work/post.lua"
  train /limited/items
  train /key/items -H "X-Api-Key: $key"
  train /token/items -H "Authorization: Bearer $rs_token"
  train /cached/items
  train /nowhere
  for ((i = 0; i < 100 * seconds; i++)); do
    curl -sk -o /dev/null "https://127.0.0.1:$tls_port/service-00001/items"
  done
  kill "$gateway"
  for ((tries = 0; tries < 600; tries++)); do
    kill -0 "$gateway" 2>/dev/null || return 0
    sleep 0.1
  done
  echo "pgo.sh: the training does not end" >&2
  exit 1
}

export LLVM_PROFILE_FILE=$profiles/%p-%m.profraw
train_all "$out/counting/release/gatewright"
unset LLVM_PROFILE_FILE
# What the compiler's plugins counted of themselves is of no use.
rm -f "$profiles"/build-*
"$profdata" merge -o "$out/merged.profdata" "$profiles"

# With what BOLT needs to move code.
CARGO_TARGET_DIR=$out/final RUSTFLAGS="-Cprofile-use=$out/merged.profdata -Clink-arg=-Wl,--emit-relocs" \
  cargo build --locked --release --bin gatewright
built=$out/final/release/gatewright

# Cryptography in assembly is left as its authors laid it out.
bolt() { "$bolt" "$built" -skip-funcs='aws_lc_.*' "$@" >"$work/bolt.txt" 2>&1 || { cat "$work/bolt.txt" >&2; exit 1; }; }
bolt -instrument -instrumentation-file="$work/layout.fdata" -o "$work/gatewright"
train_all "$work/gatewright"
stop_all
bolt -data="$work/layout.fdata" -reorder-blocks=ext-tsp -reorder-functions=hfsort+ -split-functions -split-all-cold -icf=1 \
  -o "$out/gatewright"
chmod 755 "$out/gatewright"
echo "pgo.sh: built ${out#"$PWD/"}/gatewright" >&2
