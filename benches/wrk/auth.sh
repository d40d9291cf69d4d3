# shellcheck shell=bash
# What run.sh --auth measures: the same request through gateways that ask for nothing, for a key, and for a token. Sourced, not
# run: $work is the script's, and $headers is for it.
# shellcheck disable=SC2034,SC2154

# Of whoever calls, in $bearer and $key; the secrets are made for each run.
auth_setup() {
  local now claims
  now=$(date +%s)
  key=gw_$(openssl rand -hex 16)
  openssl rand -hex 32 | tr -d '\n' >"$work/auth.secret"
  openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$work/auth.key" 2>/dev/null
  openssl pkey -in "$work/auth.key" -pubout -out "$work/auth.pub.pem"
  claims='{"sub":"bench","exp":'$((now + 86400))',"scope":"read write","org":"acme","roles":["orders:read","orders:write"]}'
  local hs rs
  hs=$(base64url <<<'{"alg":"HS256","typ":"JWT"}').$(base64url <<<"$claims")
  rs=$(base64url <<<'{"alg":"RS256","typ":"JWT"}').$(base64url <<<"$claims")
  hs_token=$hs.$(printf '%s' "$hs" | openssl dgst -sha256 -hmac "$(cat "$work/auth.secret")" -binary | base64url)
  rs_token=$rs.$(printf '%s' "$rs" | openssl dgst -sha256 -sign "$work/auth.key" | base64url)
}

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

# The sections of the configuration that all of them have, so that they differ in their filters alone.
auth_sections() {
  local hash
  hash=$(printf '%s' "$key" | sha256sum | cut -d ' ' -f 1)
  cat <<CONFIG

[consumers.bench]
credentials = [{ api_key = { sha256 = "$hash" } }]

[jwt.hs256]
algorithms = ["HS256"]
secret = { file = "$work/auth.secret" }
claims = { roles = "roles" }

[jwt.rs256]
algorithms = ["RS256"]
public_key = "$work/auth.pub.pem"
claims = { roles = "roles" }

[jwt.uncached]
algorithms = ["RS256"]
public_key = "$work/auth.pub.pem"
claims = { roles = "roles" }
cache = 0
CONFIG
}

# auth_filters NAME: the filters of its routes.
auth_filters() {
  case $1 in
    auth-none) ;;
    auth-key) echo '{ api_key = {} }' ;;
    auth-hs256) echo '{ jwt = { issuer = "hs256" } }, { require = { roles = ["orders:read"] } }' ;;
    auth-rs256) echo '{ jwt = { issuer = "rs256" } }, { require = { roles = ["orders:read"] } }' ;;
    auth-rs256-uncached) echo '{ jwt = { issuer = "uncached" } }, { require = { roles = ["orders:read"] } }' ;;
    *) echo "run.sh: unknown proxy $1" >&2; exit 2 ;;
  esac
}

# auth_headers NAME: what its requests bring, into the array $headers. Each brings a key and a token, so that all are as long.
auth_headers() {
  local token=$hs_token
  [[ $1 == auth-hs256 ]] || token=$rs_token
  headers=(-H "x-api-key: $key" -H "authorization: Bearer $token")
}
