#!/usr/bin/env bash
# Install a daily `eemtcleanupd clean` in cron or in the user's systemd, without the daemon.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # in case it was started with sh
set -euo pipefail

readonly MARKER='# eemt-cleanup: managed by setup_cleanup_cron.sh'
readonly UNIT=eemt-cleanup
readonly ME=${0##*/}
script_dir=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
readonly script_dir
HOME=${HOME:-~}

usage() {
  cat <<TEXT
Usage: $ME install|status|remove|install-systemd|remove-systemd [OPTIONS]

  install          add one line to your crontab, or change the existing one
  remove           remove this line; all other lines are kept
  install-systemd  install a timer in your systemd user instance (systemctl --user)
  remove-systemd   remove the timer
  status           show installed entries; exit with 1 if nothing is

Options of install and install-systemd:
  --schedule WHEN   five fields as in crontab(5), or a name such as @daily
                    (default: EEMT_CLEANUP_SCHEDULE, or "0 2 * * *": daily at 2:00)
  --directory DIR   folder of the job store, where the web interface runs (default: the current folder)
  --config FILE     configuration file (default: EEMT_CLEANUP_CONFIG, else the first that exists of
                    ./cleanup_config.yaml and /etc/eemtcleanupd/cleanup_config.yaml)
  --python FILE     Python interpreter that has eemtcleanupd (default: search for one)

EEMT_... variables that are set now and affect the cleanup are included in the installed command.
The command is tested with a dry run first. If the dry run fails, nothing is installed.
TEXT
}

die() {
  printf '%s: error: %s\n' "$ME" "$1" >&2
  exit "${2:-2}"
}

# --- the command ----------------------------------------------------------------------------------------

# Run a command with a minimal environment like that of cron.
as_cron() { env -i HOME="$HOME" LOGNAME="$(id -un)" PATH=/usr/bin:/bin SHELL=/bin/sh "$@"; }

# -P, here and below: no code of the current folder, which is often that of the web interface.
has_package() {
  as_cron "$1" -P -c 'import sys; sys.path.append(sys.argv[1]); import eemtcleanupd.cli.main' "$script_dir/.." \
    >/dev/null 2>&1
}

find_python() {
  local command candidate
  command=$(command -v eemtcleanupd || true)
  if [[ -n $command ]]; then command=$(dirname -- "$(readlink -f -- "$command")")/python; fi
  for candidate in "$script_dir/../.venv/bin/python" "$script_dir/python" "${VIRTUAL_ENV:-/nonexistent}/bin/python" "$command" \
    "$(command -v python3 || true)"; do
    if [[ -x $candidate ]] && has_package "$candidate"; then
      # Keep the last link: the python of a venv is a link and must be called by its own name.
      printf '%s/%s' "$(cd -- "$(dirname -- "$candidate")" && pwd -P)" "${candidate##*/}"
      return
    fi
  done
}

# Print NAME=VALUE of the variables that affect the cleanup, each ended by a NUL.
variables() {
  "$python" -P - "$script_dir/.." <<'PYTHON'
import os
import sys

sys.path.append(sys.argv[1])
from eemtcleanupd.config.environment import BASE_DIR, VARIABLES, variable

names = [BASE_DIR, *(entry.name for entry in VARIABLES if not entry.key.startswith("schedule."))]
for name in names:
    value = variable(os.environ, name)
    if value is not None:
        print(f"{name}={value}", end="\0")
PYTHON
}

# Print why a user other than root could replace a file; print nothing if none could.
danger() {
  "$python" -P - "$script_dir/.." "$1" "Another user could make cron append to any file of root. Run $ME as the owner." <<'PYTHON'
import sys
from pathlib import Path

sys.path.append(sys.argv[1])
from eemtcleanupd.config.trust import require_trusted
from eemtcleanupd.errors import ConfigError

try:
    require_trusted(Path(sys.argv[2]), sys.argv[3])
except ConfigError as error:
    print(error)
PYTHON
}

shell_quoted() {
  local quote="'\\''"
  if [[ $1 =~ ^[A-Za-z0-9_./:=@+-]+$ ]]; then printf '%s' "$1"; else printf "'%s'" "${1//\'/"$quote"}"; fi
}

# Set `directory`, `environment`, `program` and `command`, and test the command.  $1 is the log to which root's cron
# appends, if it does.
prepare() {
  local given=$directory reason=''
  directory=$(cd -- "$given" 2>/dev/null && pwd -P) || die "--directory $given: The folder does not exist."
  if [[ -n $config ]]; then
    [[ -r $config ]] || die "--config $config: The file cannot be read."
    config=$(readlink -f -- "$config")
  fi
  [[ -r $script_dir/cleanup_jobs.py ]] || die "cleanup_jobs.py is missing in $script_dir. Keep both scripts in the same folder."
  if [[ -z $python ]]; then
    python=$(find_python)
    [[ -n $python ]] || die "No Python interpreter with eemtcleanupd was found. Install it, or give --python FILE."
  elif ! has_package "$python"; then
    die "--python $python: This interpreter cannot import eemtcleanupd."
  else
    python=$(cd -- "$(dirname -- "$(command -v -- "$python")")" && pwd -P)/${python##*/}
  fi
  if ((EUID == 0)) && [[ -n ${1:-} ]]; then reason=$(danger "$directory/$1"); fi
  if [[ -n $reason ]]; then die "$reason"; fi
  variables >"$scratch/variables"
  mapfile -d '' environment <"$scratch/variables"
  program=("$python" "$script_dir/cleanup_jobs.py")
  if [[ -n $config ]]; then program+=(--config "$config"); fi
  local part
  for part in "$directory" "${program[@]}" "${environment[@]}"; do
    # No notation for these characters works in every cron.
    if [[ $part == *[$'\n\r\\']* ]]; then die "A path or value must not contain a backslash or a newline: $part"; fi
  done
  # The shell opens logs/cleanup.log before the command starts.
  command="cd $(shell_quoted "$directory") && mkdir -p logs &&"
  for part in "${environment[@]}"; do command+=" ${part%%=*}=$(shell_quoted "${part#*=}")"; done
  for part in "${program[@]}"; do command+=" $(shell_quoted "$part")"; done

  if [[ ! -O $directory ]]; then
    printf 'Warning: %s belongs to %s, but the cleanup would run as %s. Install it as the owner instead.\n' \
      "$directory" "$(stat -c %U -- "$directory")" "$(id -un)"
  fi
  echo "Testing the command with a dry run ..."
  local output
  if ! output=$(as_cron /bin/sh -c "${command/ && mkdir -p logs/} --dry-run" 2>&1); then
    printf '%s\n' "$output" | tail -n 5 >&2
    die "The dry run in $directory failed, so nothing was installed. Is this the job store? See --directory." 3
  fi
  printf '%s\n' "$output" | tail -n 1
  mkdir -p -- "$directory/logs"
}

# --- cron -----------------------------------------------------------------------------------------------

# Read the crontab into a file.  Only a missing crontab counts as empty; after any other error nothing is written.
read_crontab() {
  local error
  command -v crontab >/dev/null || die "The program crontab was not found. Install cron, or use install-systemd."
  if ! error=$(LC_ALL=C crontab -l 2>&1 >"$scratch/crontab"); then
    [[ $error == *"no crontab for"* || $error == *"can't open"*"No such file"* ]] \
      || die "crontab -l failed: $error" 3
    : >"$scratch/crontab"
  fi
}

managed() { LC_ALL=C grep -a -e "$MARKER\$" "$1" || true; }
others() { LC_ALL=C grep -a -v -e "$MARKER\$" "$1" || true; }

write_crontab() {
  if cmp -s -- "$scratch/crontab" "$scratch/new"; then return; fi
  if [[ -s $scratch/new ]]; then
    crontab - <"$scratch/new" || die "crontab rejected the change. Your crontab was not changed." 3
  else
    crontab -r
  fi
}

install_cron() {
  read_crontab
  [[ $schedule =~ ^(@[a-z]+|([0-9A-Za-z*,/-]+[[:blank:]]+){4}[0-9A-Za-z*,/-]+)$ ]] \
    || die "--schedule '$schedule': Use five fields as in crontab(5), such as '0 2 * * *'."
  # The shell opens the log, and would follow a link that another user puts in its place.
  local place
  for place in "$directory" "$directory/logs" "$directory/logs/cleanup.log"; do
    if [[ -e $place && ! -O $place ]]; then
      die "$place belongs to $(stat -c %U -- "$place"), who could make cron append to any file of $(id -un). Run $ME as the owner."
    fi
  done
  prepare logs/cleanup.log
  local line="$schedule ${command//%/\\%} >> logs/cleanup.log 2>&1 $MARKER" before
  before=$(managed "$scratch/crontab")
  { others "$scratch/crontab" && printf '%s\n' "$line"; } >"$scratch/new"
  if [[ $before == "$line" ]]; then
    echo "Your crontab already contains this line:"
  else
    write_crontab
    if [[ -n $before ]]; then printf 'Removed from the crontab of %s:\n%s\n' "$(id -un)" "$before"; fi
    echo "Added to the crontab of $(id -un):"
  fi
  echo "$line"
  warn_of_other_lines
  echo "Runs are logged to $directory/logs/cleanup.log."
}

# Show lines of other origin that clean as well, such as those of the EEMT project's script.
warn_of_other_lines() {
  local more line
  more=$(others "$scratch/crontab" | LC_ALL=C grep -a -e '^[^#]*\(cleanup_jobs\.py\|eemtcleanupd\)' || true)
  if [[ -z $more ]]; then return; fi
  printf 'These lines also run a cleanup. Remove them with crontab -e if they are obsolete:\n%s\n' "$more"
  # The shell opens the log before the script starts, so the script cannot create the folder.
  while read -r line; do
    if [[ $line =~ cd[[:blank:]]+([^[:blank:]\&\;]+)[[:blank:]]*\&\&.*\>[[:blank:]]*logs/ && -d ${BASH_REMATCH[1]} \
      && ! -d ${BASH_REMATCH[1]}/logs ]]; then
      echo "A line fails because ${BASH_REMATCH[1]}/logs is missing. Run: mkdir ${BASH_REMATCH[1]}/logs"
    fi
  done <<<"$more"
}

remove_cron() {
  read_crontab
  local before
  before=$(managed "$scratch/crontab")
  if [[ -z $before ]]; then
    echo "The crontab of $(id -un) has no line from this script."
  else
    others "$scratch/crontab" >"$scratch/new"
    write_crontab
    printf 'Removed from the crontab of %s:\n%s\n' "$(id -un)" "$before"
  fi
  warn_of_other_lines
}

# --- the user's systemd ---------------------------------------------------------------------------------

readonly units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user

need_systemd() {
  local answer
  command -v systemctl >/dev/null || die "systemd was not found on this machine. Use install, for cron."
  answer=$(systemctl --user show-environment 2>&1 >/dev/null) && return
  die "Your systemd user instance does not respond (${answer%%$'\n'*}).
Log in as $(id -un); su and sudo do not start the instance. Or run as root: loginctl enable-linger $(id -un),
then XDG_RUNTIME_DIR=/run/user/$(id -u) $ME ... Or use install, for cron." 3
}

# Print the folder of the unit files: in the checkout of this script, or where they are installed.
shipped_units() {
  local folder
  for folder in "$script_dir/../packaging/systemd" "$script_dir/../share/eemtcleanupd" /usr/local/lib/systemd/user /usr/lib/systemd/user; do
    if [[ -r $folder/$UNIT.service && -r $folder/$UNIT.timer ]]; then
      printf '%s' "$folder"
      return
    fi
  done
  die "$UNIT.service and $UNIT.timer were not found, neither in packaging/systemd nor installed." 3
}

# Convert one field of crontab(5) for systemd.time(7); $2 is the lowest value of the field.
calendar_field() {
  local field=$1
  if [[ $field == '*' ]]; then printf '*'; return; fi
  if [[ $field == '*/'* ]]; then field=$2/${field#*/}; fi
  printf '%s' "${field//-/..}"
}

# Convert days of the week to names; in cron, both 0 and 7 are Sunday.
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

# Print the OnCalendar= lines of the schedule.  If days of the month and days of the week are both given,
# cron runs when either matches, but one systemd line only when both match; so print two lines.
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

# Quote a word for a unit file (systemd.service(5), Command Lines).
unit_quoted() {
  local text=${1//%/%%}
  printf '"%s"' "${text//\"/\\\"}"
}

install_systemd() {
  need_systemd
  local source times part execute='' settings=''
  source=$(shipped_units)
  if ! times=$(calendar) || ! systemd_knows "$times"; then
    die "--schedule '$schedule': A timer cannot express this. Use five fields, such as '0 2 * * *'."
  fi
  prepare
  for part in "${program[@]}"; do execute+=" $(unit_quoted "$part")"; done
  for part in "${environment[@]}"; do settings+="Environment=$(unit_quoted "$part")"$'\n'; done

  # The colon turns off the expansion of dollar signs.
  fill "$source/$UNIT.service" "${settings}WorkingDirectory=${directory//%/%%}"$'\n'"ExecStart=:${execute# }" \
    '^(WorkingDirectory|ExecStart)=' >"$scratch/$UNIT.service"
  fill "$source/$UNIT.timer" "$times" '^OnCalendar=' >"$scratch/$UNIT.timer"
  mkdir -p -- "$units"
  local file
  for file in "$UNIT.service" "$UNIT.timer"; do
    if cmp -s -- "$scratch/$file" "$units/$file"; then echo "$units/$file is up to date"; continue; fi
    cp -- "$scratch/$file" "$units/$file"
    echo "Wrote $units/$file"
  done
  systemctl --user daemon-reload
  systemctl --user enable --quiet "$UNIT.timer"
  systemctl --user restart "$UNIT.timer"
  systemctl --user list-timers --no-pager "$UNIT.timer" | sed -n '1,2p'
  if [[ $(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null) != yes ]]; then
    echo "The timer runs only while you are logged in. To run it always, as root: loginctl enable-linger $(id -un)"
  fi
}

# Print a unit file without its leading comments; the given lines replace those that match the pattern.
fill() {
  printf '%s\n' "$MARKER"
  REPLACEMENT=$2 PATTERN=$3 awk '
    !started && !/^\[/ { next }
    { started = 1 }
    $0 ~ ENVIRON["PATTERN"] { if (!done) print ENVIRON["REPLACEMENT"]; done = 1; next }
    { print }' "$1"
}

remove_systemd() {
  if [[ ! -e $units/$UNIT.timer && ! -e $units/$UNIT.service ]]; then
    echo "There is no timer from this script in $units."
    return
  fi
  need_systemd
  systemctl --user disable --quiet --now "$UNIT.timer"
  rm -f -- "$units/$UNIT.timer" "$units/$UNIT.service"
  systemctl --user daemon-reload
  echo "Removed $UNIT.timer and $UNIT.service from $units"
}

# --- both -----------------------------------------------------------------------------------------------

show_status() {
  local code=1 line=''
  if command -v crontab >/dev/null; then
    read_crontab
    line=$(managed "$scratch/crontab")
  fi
  if [[ -n $line ]]; then
    printf 'cron: installed for %s\n%s\n' "$(id -un)" "$line"
    if command -v pgrep >/dev/null && ! pgrep -x 'cron|crond' >/dev/null; then
      echo "cron: no cron daemon is running; start it with systemctl enable --now cron"
    fi
    code=0
  else
    echo "cron: not installed"
  fi
  if command -v crontab >/dev/null; then warn_of_other_lines; fi
  if [[ -e $units/$UNIT.timer ]]; then
    if [[ $(head -n 1 -- "$units/$UNIT.timer") == "$MARKER" ]]; then
      echo "systemd: installed in $units"
      code=0
    else
      echo "systemd: $units/$UNIT.timer is not from this script. Replace it with install-systemd, or remove it with remove-systemd."
      LC_ALL=C grep -a -e '^ExecStart=' -- "$units/$UNIT.service" || true
    fi
    systemctl --user list-timers --all --no-pager "$UNIT.timer" 2>&1 | sed -n '1,2p' || true
  else
    echo "systemd: not installed"
  fi
  return "$code"
}

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then return 0; fi  # sourced for its functions only

action=${1:-}
case $action in
  install | status | remove | install-systemd | remove-systemd) shift ;;
  -h | --help | help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
  *) die "Unknown action '$action'. Use install, status, remove, install-systemd or remove-systemd." ;;
esac

schedule=${EEMT_CLEANUP_SCHEDULE:-0 2 * * *}
directory=$PWD
config=${EEMT_CLEANUP_CONFIG:-}
python=
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --schedule | --directory | --config | --python)
      [[ $action == install* ]] || die "$1 is only an option of install and install-systemd."
      [[ -n ${2:-} ]] || die "$1 needs a value."
      declare "${1#--}=$2"
      shift 2
      ;;
    *) die "Unknown option '$1'. See --help." ;;
  esac
done
# A compose file with - EEMT_CLEANUP_SCHEDULE="0 2 * * *" passes the quotes as part of the value.
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
