# What the suites in the box have in common: sourced by packages and guide, which set `kind` before (a word for the
# container's name). Not run by itself.
#
# BOX_PACKAGES=DIR is where the packages and the programs beside them are kept; without it, and as long as they are not
# there, they are made, and go with the suite. KEEP=1 leaves the booted container after a failure, SHOW=1 prints what
# each check said. One line a check: `ok: …` or `FAILED: …`; the last line counts them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
top=$PWD
binaries=$(realpath -e -- "${1:-target/debug}")
suite=${BOX_SUITE:-bookworm}
# Of Debian 13 on, systemd knows what systemd/later says.
later=''
[ "$suite" = bookworm ] || later=--later
name=${kind:?}-$$
work=$top/target/box/$name
log=$work/log
built=$(realpath -m -- "${BOX_PACKAGES:-$work/built}")
mkdir -p "$work" "$built"
passed=0 failed=0

box() { tests/box/box "$@"; }
run() { box run "$name" "$@"; }
sh_() { run bash -euo pipefail -c "$1"; }
fail() { echo "$*" >&2; return 1; }
say() { printf '%s %s\n' "$(date +%T)" "$*"; }

# Runs one check in a shell of its own, so that `set -e` holds inside of it, and goes on.
check() { # NAME FUNCTION…
  local what=$1 pid
  shift
  ("$@") >"$log" 2>&1 &
  pid=$!
  if wait $pid; then
    passed=$((passed + 1))
    say "ok: $what"
    # What became of the calls, where there was load.
    if [ -n "${SHOW:-}" ]; then sed 's/^/    /' "$log"; else grep -hE '^SKIPPED: |^\{"answered' "$log" | sed 's/^/    /' || true; fi
  else
    failed=$((failed + 1))
    say "FAILED: $what"
    tail -n 60 "$log" | sed 's/^/    /'
  fi
}
checks() { # FUNCTION…, whose names are sentences
  local one
  for one in "$@"; do check "${one//_/ }" "$one"; done
}
result() {
  say "$passed passed, $failed failed"
  [ "$failed" = 0 ]
}

# Waits for the thing itself, within a deadline.
until_() { # SECONDS COMMAND…
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "in vain: $*"
    sleep 0.2
  done
}

cleanup() {
  [ "$failed" = 0 ] || [ -z "${KEEP:-}" ] || { echo "kept: tests/box/box run $name …; $work"; return; }
  box down "$name" || true
  rm -rf "$work"
}
trap cleanup EXIT

workshop() { BOX_SUITE=${WORKSHOP_SUITE:-trixie} BOX_BIND="$top $binaries $work $built ${BOX_CACHE:-}" box in workshop "$@"; }

# The programs without their debug information once, or each build would strip it anew.
stripped() { # TO PROGRAM…
  mkdir -p "$1"
  cp "${@:2}" "$1"
  # shellcheck disable=SC2016 # for the inner shell
  workshop bash -c 'strip --strip-unneeded "$1"/*' strip "$1"
}
strip_programs() {
  stripped "$built/bin" "$binaries"/{forgejo-mcp-broker,forgejo-mcp-supervisor,forgejo-mcp-brokerctl,completions,visitor,stub-forgejo,stand-in-child}
}

# Unoptimised programs are large, and nobody waits for the download.
build() { # VERSION TO PROGRAMS [OPTIONS]
  # shellcheck disable=SC2016 # for the inner shell
  workshop env SOURCE_DATE_EPOCH=1790000000 DPKG_DEB_COMPRESSOR_LEVEL=1 bash -euc '
    cd "$1"; packaging/build --version "$2" --out "$3" --binaries "${@:4}"' build "$top" "$@" $later
}

# Of two versions; tests/box/packages leaves its own to the suites after it.
packages_are_there() {
  [ ! -d "$built/higher" ] || return 0
  strip_programs
  build 0.1.0 "$built/one" "$built/bin" --only deb
  build 0.1.1 "$built/higher" "$built/bin" --only deb
}

systemd_boots() {
  box up "$name" "$suite"
  local root
  root=$(box dir "$name")
  mkdir -p "$root/root/bin"
  cp "$built"/bin/* "$root/root/bin/"
  cp -r "$built/one" "$built/higher" "$root/root/"
}

journal() { # of the last boot, as lines of JSON
  run journalctl --boot --output=json --no-pager "$@"
}
call() { sh_ 'head -1 /root/tokens | timeout 60 /root/bin/visitor call --tool whoami'; }
# Once whatever runs now answers.
works() { until_ 60 call; call | grep u0; }
pid_of() { run systemctl show --property=MainPID --value "$1.service"; }

# A child, and four lines of configuration beside the stub of Forgejo.
install_child() { sh_ 'install -o root -g root -m 0711 /root/bin/stand-in-child /usr/bin/forgejo-mcp'; }

configure() { # [PUBLIC-URL]
  local url=${1:-http://127.0.0.1:8080}
  sh_ 'systemd-run --quiet --unit=stub /root/bin/stub-forgejo --listen 127.0.0.1:3000'
  until_ 20 run curl -sf http://127.0.0.1:3000/
  sh_ 'app=$(curl -sf -H "content-type: application/json" http://127.0.0.1:3000/stub/apps \
      -d "{\"name\":\"broker\",\"redirect_uris\":[\"'"$url"'/oauth/callback\"]}")
    install -d -m 0700 /etc/credstore
    (umask 077; jq -r .client_secret <<<"$app" >/etc/credstore/forgejo-mcp-broker.client-secret)
    cd /etc/forgejo-mcp-broker
    sed -i -e "s|^#public_url = .*|public_url = \"'"$url"'\"|" \
      -e "s|^#url = .*|url = \"http://127.0.0.1:3000\"|" \
      -e "s|^#client_id = .*|client_id = \"$(jq -r .client_id <<<"$app")\"|" \
      -e "s|^#client_secret_file|client_secret_file|" broker.toml
    sed -i -e "s|^#url = .*|url = \"http://127.0.0.1:3000\"|" supervisor.toml'
}
