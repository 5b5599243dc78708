#!/usr/bin/env bash
# Lets cron, or the user's systemd, clean a job store once a day: `eemtcleanupd clean`, without the daemon.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # for who calls it by sh
set -euo pipefail

readonly MARKER='# eemt-cleanup: managed by setup_cleanup_cron.sh'
readonly UNIT=eemt-cleanup
readonly ME=${0##*/}
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
readonly here
HOME=${HOME:-~}

usage() {
  cat <<TEXT
Usage: $ME install|status|remove|install-systemd|remove-systemd [OPTIONS]

  install          put one line into your crontab, or change the one that is there
  remove           take it out again; all other lines stay as they are
  install-systemd  the same as a timer of your own systemd (systemctl --user)
  remove-systemd   take the timer away again
  status           show what is installed; exit code 1 when nothing is

Options of install and install-systemd:
  --schedule WHEN   five fields as in crontab(5), or @daily and the like
                    (else EEMT_CLEANUP_SCHEDULE, else "0 2 * * *": daily at 2:00)
  --directory DIR   the folder of the job store, where the web interface runs (else the current one)
  --config FILE     configuration file (else EEMT_CLEANUP_CONFIG, else as always: see docs/configuration.md)
  --python FILE     a Python that has eemtcleanupd (else it is looked for)

The EEMT_... variables that are set now and change what is cleaned become part of what is installed.
What is to be installed is tried by a dry run first, and not installed when that fails.
TEXT
}

die() {
  printf '%s: error: %s\n' "$ME" "$1" >&2
  exit "${2:-2}"
}

# --- what is to be run ----------------------------------------------------------------------------------

# A command with as little environment as cron gives.
as_cron() { env -i HOME="$HOME" LOGNAME="$(id -un)" PATH=/usr/bin:/bin SHELL=/bin/sh "$@"; }

has_package() { as_cron "$1" "$here/cleanup_jobs.py" --help >/dev/null 2>&1; }

find_python() {
  local command candidate
  command=$(command -v eemtcleanupd || true)
  if [[ -n $command ]]; then command=$(dirname -- "$(readlink -f -- "$command")")/python; fi
  for candidate in "$here/../.venv/bin/python" "${VIRTUAL_ENV:-/nonexistent}/bin/python" "$command" \
    "$(command -v python3 || true)"; do
    if [[ -x $candidate ]] && has_package "$candidate"; then
      # Not resolved to its end: a venv's python is a link, and must be called by its own name.
      printf '%s/%s' "$(cd -- "$(dirname -- "$candidate")" && pwd -P)" "${candidate##*/}"
      return
    fi
  done
}

# NAME=VALUE of the variables that change what is cleaned, each ended by a NUL.
variables() {
  "$python" - "$here/.." <<'PYTHON'
import os
import sys

sys.path.append(sys.argv[1])
from eemtcleanupd.config.environment import BASE_DIR, VARIABLES, variable

names = [BASE_DIR, *(each.name for each in VARIABLES if not each.key.startswith("schedule."))]
for name in names:
    value = variable(os.environ, name)
    if value is not None:
        print(f"{name}={value}", end="\0")
PYTHON
}

shell_quoted() {
  local quote="'\\''"
  if [[ $1 =~ ^[A-Za-z0-9_./:=@+-]+$ ]]; then printf '%s' "$1"; else printf "'%s'" "${1//\'/"$quote"}"; fi
}

# Sets `directory`, `environment`, `program` and `command`, and tries them.
prepare() {
  directory=$(cd -- "$directory" 2>/dev/null && pwd -P) || die "--directory $directory: there is no such folder"
  if [[ -n $config ]]; then
    [[ -r $config ]] || die "--config $config: it cannot be read"
    config=$(readlink -f -- "$config")
  fi
  [[ -r $here/cleanup_jobs.py ]] || die "cleanup_jobs.py is not beside this script in $here, where it belongs"
  if [[ -z $python ]]; then
    python=$(find_python)
    [[ -n $python ]] || die "no Python here has eemtcleanupd; install it, or name its Python with --python"
  elif ! has_package "$python"; then
    die "--python $python: it cannot import eemtcleanupd"
  else
    python=$(cd -- "$(dirname -- "$(command -v -- "$python")")" && pwd -P)/${python##*/}
  fi
  variables >"$scratch/variables"
  mapfile -d '' environment <"$scratch/variables"
  program=("$python" "$here/cleanup_jobs.py")
  if [[ -n $config ]]; then program+=(--config "$config"); fi
  local part
  for part in "$directory" "${program[@]}" "${environment[@]}"; do
    # crontab(5) has no way to write them that all crons understand.
    if [[ $part == *[$'\n\r\\']* ]]; then die "a path or value with a backslash or a line end: $part"; fi
  done
  command="cd $(shell_quoted "$directory") &&"
  for part in "${environment[@]}"; do command+=" ${part%%=*}=$(shell_quoted "${part#*=}")"; done
  for part in "${program[@]}"; do command+=" $(shell_quoted "$part")"; done

  echo "Trying it by a dry run ..."
  local shown
  if ! shown=$(as_cron /bin/sh -c "$command --dry-run" 2>&1); then
    printf '%s\n' "$shown" | tail -n 5 >&2
    die "this would not run in $directory, so it is not installed (is that the job store? see --directory)" 3
  fi
  printf '%s\n' "$shown" | tail -n 1
  if [[ ! -O $directory ]]; then
    printf 'Mind: %s belongs to %s, and it would run as %s; better install it as the owner.\n' \
      "$directory" "$(stat -c %U -- "$directory")" "$(id -un)"
  fi
  mkdir -p -- "$directory/logs"
}

# --- cron -----------------------------------------------------------------------------------------------

# The crontab on stdout.  Only "there is none" counts as an empty one: in doubt nothing is written over it.
read_crontab() {
  local error
  command -v crontab >/dev/null || die "there is no program crontab; install cron, or use install-systemd"
  if ! error=$(LC_ALL=C crontab -l 2>&1 >"$scratch/crontab"); then
    [[ $error == *"no crontab for"* || $error == *"can't open"*"No such file"* ]] \
      || die "crontab -l fails: $error" 3
    : >"$scratch/crontab"
  fi
}

managed() { LC_ALL=C grep -a -e "$MARKER\$" "$1" || true; }
others() { LC_ALL=C grep -a -v -e "$MARKER\$" "$1" || true; }

write_crontab() {
  if cmp -s -- "$scratch/crontab" "$scratch/new"; then return; fi
  if [[ -s $scratch/new ]]; then
    crontab - <"$scratch/new" || die "crontab refused it; your crontab is as it was" 3
  else
    crontab -r
  fi
}

install_cron() {
  read_crontab
  [[ $schedule =~ ^(@[a-z]+|([0-9A-Za-z*,/-]+[[:blank:]]+){4}[0-9A-Za-z*,/-]+)$ ]] \
    || die "--schedule '$schedule': wanted are five fields as in crontab(5), such as '0 2 * * *'"
  prepare
  local line="$schedule ${command//%/\\%} >> logs/cleanup.log 2>&1 $MARKER" before
  before=$(managed "$scratch/crontab")
  { others "$scratch/crontab" && printf '%s\n' "$line"; } >"$scratch/new"
  if [[ $before == "$line" ]]; then
    echo "It is in your crontab already:"
  else
    write_crontab
    if [[ -n $before ]]; then printf 'Taken out of the crontab of %s:\n%s\n' "$(id -un)" "$before"; fi
    echo "In the crontab of $(id -un) now:"
  fi
  echo "$line"
  warn_of_other_lines
  echo "What it does is in $directory/logs/cleanup.log."
}

# The line that the EEMT project's script, or a person, put there.
warn_of_other_lines() {
  local more
  more=$(others "$scratch/crontab" | grep -a -e '^[^#]*\(cleanup_jobs\.py\|eemtcleanupd\)' || true)
  if [[ -n $more ]]; then
    printf 'These lines clean as well, and may not be needed any more (crontab -e):\n%s\n' "$more"
  fi
}

remove_cron() {
  read_crontab
  local before
  before=$(managed "$scratch/crontab")
  if [[ -z $before ]]; then
    echo "There is no line of ours in the crontab of $(id -un)."
    return
  fi
  others "$scratch/crontab" >"$scratch/new"
  write_crontab
  printf 'Taken out of the crontab of %s:\n%s\n' "$(id -un)" "$before"
}

# --- the user's systemd ---------------------------------------------------------------------------------

readonly units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user

need_systemd() {
  local answer
  command -v systemctl >/dev/null || die "there is no systemd on this machine; use install, for cron"
  answer=$(systemctl --user show-environment 2>&1 >/dev/null) && return
  die "your systemd does not answer (${answer%%$'\n'*}).
Log in as $(id -un) (su and sudo do not start it), or as root: loginctl enable-linger $(id -un), and then
XDG_RUNTIME_DIR=/run/user/$(id -u) $ME ...; or use install, for cron" 3
}

# The unit files as they are shipped: beside this script, or where they were installed.
shipped_units() {
  local folder
  for folder in "$here/../packaging/systemd" /usr/local/lib/systemd/user /usr/lib/systemd/user; do
    if [[ -r $folder/$UNIT.service && -r $folder/$UNIT.timer ]]; then
      printf '%s' "$folder"
      return
    fi
  done
  die "$UNIT.service and .timer are neither in packaging/systemd beside this script nor installed" 3
}

# One field of crontab(5) as systemd.time(7) has it; $2 is where its counting begins.
calendar_field() {
  local field=$1
  if [[ $field == '*' ]]; then printf '*'; return; fi
  if [[ $field == '*/'* ]]; then field=$2/${field#*/}; fi
  printf '%s' "${field//-/..}"
}

# Days of the week: numbers become names, and Sunday, which cron puts first, is 0 and 7.
calendar_weekdays() {
  local names=(Sun Mon Tue Wed Thu Fri Sat Sun) days=() part first last day
  local -a parts
  IFS=, read -ra parts <<<"$1"
  for part in "${parts[@]}"; do
    if [[ $part =~ ^([0-7])(-([0-7]))?$ ]]; then
      first=${BASH_REMATCH[1]} last=${BASH_REMATCH[3]:-${BASH_REMATCH[1]}}
      for ((day = first; day <= last; day++)); do days+=("${names[day]}"); done
    elif [[ $part =~ ^[A-Za-z]{3}$ ]]; then
      days+=("$part")
    else
      return 1
    fi
  done
  (IFS=,; printf '%s' "${days[*]}")
}

# The lines OnCalendar= that say the schedule.  Where it names days of the month and days of the week,
# crontab(5) means either, systemd.time(7) both.
calendar() {
  local minute hour day month weekday extra time date week=''
  read -r minute hour day month weekday extra <<<"$schedule"
  if [[ $schedule == @* ]]; then
    printf 'OnCalendar=%s\n' "${schedule#@}" | sed 's/=midnight$/=daily/'
    return
  fi
  [[ -n $weekday && -z $extra ]] || return 1
  time=$(calendar_field "$hour" 0):$(calendar_field "$minute" 0)
  date="*-$(calendar_field "$month" 1)-"
  if [[ $weekday != '*' ]]; then
    week=$(calendar_weekdays "$weekday") || return 1
    if [[ $day != '*'* ]]; then
      printf 'OnCalendar=%s %s* %s\n' "$week" "$date" "$time"
      week=''
    fi
  fi
  printf 'OnCalendar=%s%s%s %s\n' "${week:+$week }" "$date" "$(calendar_field "$day" 1)" "$time"
}

systemd_knows() {
  local -a lines
  mapfile -t lines <<<"${1//OnCalendar=/}"
  systemd-analyze calendar "${lines[@]}" >/dev/null 2>&1
}

# A word of a unit file (systemd.service(5), Command Lines).
unit_quoted() {
  local text=${1//%/%%}
  printf '"%s"' "${text//\"/\\\"}"
}

install_systemd() {
  need_systemd
  local source times part execute='' settings=''
  source=$(shipped_units)
  if ! times=$(calendar) || ! systemd_knows "$times"; then
    die "--schedule '$schedule': a timer cannot say this; wanted are five fields, such as '0 2 * * *'"
  fi
  prepare
  for part in "${program[@]}"; do execute+=" $(unit_quoted "$part")"; done
  for part in "${environment[@]}"; do settings+="Environment=$(unit_quoted "$part")"$'\n'; done

  # The colon: dollar signs are just dollar signs.
  fill "$source/$UNIT.service" "${settings}WorkingDirectory=${directory//%/%%}"$'\n'"ExecStart=:${execute# }" \
    '^(WorkingDirectory|ExecStart)=' >"$scratch/$UNIT.service"
  fill "$source/$UNIT.timer" "$times" '^OnCalendar=' >"$scratch/$UNIT.timer"
  mkdir -p -- "$units"
  local file
  for file in "$UNIT.service" "$UNIT.timer"; do
    if cmp -s -- "$scratch/$file" "$units/$file"; then echo "$units/$file is as it should be"; continue; fi
    cp -- "$scratch/$file" "$units/$file"
    echo "Wrote $units/$file"
  done
  systemctl --user daemon-reload
  systemctl --user enable --quiet "$UNIT.timer"
  systemctl --user restart "$UNIT.timer"
  systemctl --user list-timers --no-pager "$UNIT.timer" | sed -n '1,2p'
  if [[ $(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null) != yes ]]; then
    echo "It runs only while you are logged in; for always, as root: loginctl enable-linger $(id -un)"
  fi
}

# A shipped unit file with its own lines in place of those that match, and none of its head's advice.
fill() {
  printf '%s\n' "$MARKER"
  REPLACEMENT=$2 PATTERN=$3 awk '
    !begun && !/^\[/ { next }
    { begun = 1 }
    $0 ~ ENVIRON["PATTERN"] { if (!done) print ENVIRON["REPLACEMENT"]; done = 1; next }
    { print }' "$1"
}

remove_systemd() {
  if [[ ! -e $units/$UNIT.timer && ! -e $units/$UNIT.service ]]; then
    echo "There is no timer of ours in $units."
    return
  fi
  need_systemd
  systemctl --user disable --quiet --now "$UNIT.timer"
  rm -f -- "$units/$UNIT.timer" "$units/$UNIT.service"
  systemctl --user daemon-reload
  echo "Took $UNIT.timer and $UNIT.service out of $units"
}

# --- both -----------------------------------------------------------------------------------------------

show_status() {
  local found=1 line=''
  if command -v crontab >/dev/null; then
    read_crontab
    line=$(managed "$scratch/crontab")
  fi
  if [[ -n $line ]]; then
    printf 'cron: installed for %s\n%s\n' "$(id -un)" "$line"
    if command -v pgrep >/dev/null && ! pgrep -x 'cron|crond' >/dev/null; then
      echo "cron: but no cron daemon runs here (systemctl enable --now cron)"
    fi
    found=0
  else
    echo "cron: not installed"
  fi
  if [[ -e $units/$UNIT.timer ]]; then
    echo "systemd: installed in $units"
    systemctl --user list-timers --all --no-pager "$UNIT.timer" 2>&1 | sed -n '1,2p'
    found=0
  else
    echo "systemd: not installed"
  fi
  return "$found"
}

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then return 0; fi  # read for its functions only

action=${1:-}
case $action in
  install | status | remove | install-systemd | remove-systemd) shift ;;
  -h | --help | help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
  *) die "there is no '$action'; wanted is install, status, remove, install-systemd or remove-systemd" ;;
esac

schedule=${EEMT_CLEANUP_SCHEDULE:-0 2 * * *}
directory=$PWD
config=${EEMT_CLEANUP_CONFIG:-}
python=
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --schedule | --directory | --config | --python)
      [[ $action == install* ]] || die "$1 is an option of install and install-systemd"
      [[ -n ${2:-} ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    *) die "there is no option '$1'; --help shows all" ;;
  esac
done
# A compose file that says - EEMT_CLEANUP_SCHEDULE="0 2 * * *" hands the quotes along.
schedule=${schedule#[\"\']} schedule=${schedule%[\"\']}

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
case $action in
  install) install_cron ;;
  remove) remove_cron ;;
  install-systemd) install_systemd ;;
  remove-systemd) remove_systemd ;;
  status) show_status ;;
esac
