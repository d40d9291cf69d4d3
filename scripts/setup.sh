#!/usr/bin/env bash
# Installs what is missing on Debian for one purpose and says nothing when nothing is. Only Rust is expected to be there.
# setup.sh build|test|bench
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Where tools that come without their package live; the Makefile has it in PATH.
tools=target/tools

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

refreshed=
apt() {
  if [[ -z $refreshed ]]; then
    as_root apt-get update -q
    refreshed=1
  fi
  echo "setup.sh: installing $*" >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

# need COMMAND PACKAGE...
need() {
  local command=$1
  shift
  # System daemons live in sbin, which is not in everybody's PATH.
  PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || apt "$@"
}

build() {
  if ! command -v cargo >/dev/null; then
    echo "setup.sh: cargo is missing: install Rust from https://rustup.rs" >&2
    exit 1
  fi
  # Pingora's compression library is C, built with cmake.
  need cc gcc libc6-dev
  need c++ g++
  need make make
  need cmake cmake
}

# promtool checks the metrics page. Its package also brings a server that Debian would start at once, so only the one
# program is taken out of it.
unpack_promtool() {
  PATH=$PATH:$tools command -v promtool >/dev/null && return
  local there
  there=$(mktemp -d)
  # apt drops its rights for downloads, and that account must be able to write here.
  chmod 777 "$there"
  if ! apt-cache show prometheus >/dev/null 2>&1; then as_root apt-get update -q; fi
  echo "setup.sh: unpacking promtool" >&2
  (cd "$there" && apt-get download -q prometheus && dpkg-deb -x prometheus_*.deb .)
  mkdir -p "$tools"
  install -m 755 "$there/usr/bin/promtool" "$tools/promtool"
  rm -rf "$there"
}

# An authorisation server that is not ours, for the tests of tokens and key sets. Its packages live below target.
oauth() {
  need node nodejs
  [[ -d target/node/node_modules/oauth2-mock-server ]] && return
  need npm npm
  echo "setup.sh: installing oauth2-mock-server" >&2
  mkdir -p target/node
  (cd target/node && npm install --silent --no-audit --no-fund --prefix . oauth2-mock-server@8.2.3)
}

case ${1-} in
  build) build ;;
  test)
    build
    unpack_promtool
    need systemd-analyze systemd
    need shellcheck shellcheck
    # Tests start their own on a free port; the one that Debian starts on 6379 is not used.
    need redis-server redis-server
    # The same holds for this one; the package without a service is enough.
    need dnsmasq dnsmasq-base
    need curl curl
    oauth
    ;;
  bench)
    build
    need wrk wrk
    need nginx nginx-light
    need haproxy haproxy
    need varnishd varnish
    need curl curl
    need pgrep procps
    need openssl openssl
    # Lays out the code of release builds.
    command -v llvm-bolt >/dev/null || need llvm-bolt-16 bolt-16 libbolt-16-dev
    # Reads the counters of builds that are made by measurement; part of the toolchain, which may have come without rustup.
    if command -v rustup >/dev/null; then rustup -q component add llvm-tools; fi
    ;;
  *)
    echo "usage: setup.sh build|test|bench" >&2
    exit 2
    ;;
esac
