#!/bin/bash
# @directives@

# The script of one submission; script.py explains what it does and fills in the words between two @.
state=@state@
token=@token@
task=@task@
jobs=(@jobs@)
job=${jobs[$task]}
exit_interrupted=@exit_interrupted@ most_requeues=@most_requeues@
pointer=$state/pointers/$job
stopped_note=$pointer.stopped
events=$state/events/$token-$task
event() { printf '%(%s)T %s\n' -1 "$*" >> "$events"; }  # a builtin: SLURM's signals would end a date, too
: > "$stopped_note"
export "@pointer_variable@=$pointer" "@stopped_variable@=$stopped_note"
# torchrun dies of USR1 and gives its processes 30 seconds, unless these say otherwise
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=@save_before@

child='' signal='' again=''
# shellcheck disable=SC2317,SC2329  # the traps call it
forward() {
  signal=$1 again=1
  event signal "$1"
  if [ -n "$child" ]; then pass_on; fi
}
pass_on() {
  if [ "$signal" = USR1 ]; then warn & else kill -s "$signal" -- "-$child" 2>/dev/null; fi
}
warn() {  # each process of the command once, as soon as it handles USR1
  local process stat key value warned=" "
  # a bash with an EXIT trap catches whatever could end it, this signal included, and ends all the same
  local wanted=$((1 << ($(kill -l USR1) - 1))) whatever=$((1 << ($(kill -l VTALRM) - 1)))
  while kill -0 -- "-$child" 2>/dev/null; do
    for process in /proc/[0-9]*; do
      { IFS= read -rd '' stat < "$process/stat"; } 2>/dev/null
      # shellcheck disable=SC2086  # split into words: its state, parent and process group
      set -- ${stat##*) }
      if [ "$3" != "$child" ] || [[ $warned == *" $process "* ]]; then continue; fi
      while read -r key value; do
        if [ "$key" = SigCgt: ] && (((0x$value & (wanted | whatever)) == wanted)); then
          warned+="$process "
          kill -s USR1 "${process#/proc/}"
        fi
      done < "$process/status" 2>/dev/null
    done
    sleep 1
  done
} 2>/dev/null
trap 'forward USR1' USR1
trap 'forward TERM' TERM
trap 'forward INT' INT
event start "@number@" "$(uname -n)" "$$" "${SLURM_RESTART_COUNT:-0}" "${SLURM_JOB_END_TIME:-0}"

set -m  # gives the command a process group of its own
(
  stopped='' ended=''
  trap 'stopped=1' TERM INT
  # shellcheck disable=SC2317,SC2329  # the traps call it
  finish() {  # a signal may come within the EXIT trap and end it: then the signal's trap has the same code to note
    ended=${ended:-$1}
    trap '' TERM INT
    event code "$ended"
  }
  trap 'finish "$?"' EXIT
# @preamble@
  if [ -n "$stopped" ]; then exit "$exit_interrupted"; fi
  case $task in
# @cases@
  esac
  # a list of commands ends with the one that was stopped: the next must not run, and its 0 would be the job's
  trap 'code=$?; finish "$((code ? code : exit_interrupted))"; exit "$ended"' TERM INT
  set -eo pipefail  # and one that failed, also within a pipe, must not end well because the last did
  # shellcheck disable=SC2154  # a case sets it
  eval "$command"
) &
child=$!
if [ -n "$signal" ]; then pass_on; fi  # it came before there was anything to pass it on to
while :; do  # wait returns early when a trap ran, and gives the same answer when asked twice
  again=''
  wait "$child" 2> /dev/null  # of a killed shell it would print the source
  code=$?
  if [ -z "$again" ]; then break; fi
done
# The command's own note counts before the answer of wait: bash 5.2 forgets how a command ended that ended while a trap
# ran, and a signal may end a bash that has noted how its command did.
waited=$((code < 0 ? 137 : code))
while read -r _ word number; do
  case $word in start) code=$waited ;; code) code=$number ;; esac
done < "$events"
# but a shell that another signal ended noted what came before the signal
if [ "$code" = 0 ] && [ "$waited" -gt 128 ] && [ "$waited" != 143 ] && [ "$waited" != 130 ]; then code=$waited; fi
# a launcher of several processes ends with 1, whatever they ended with: the note says that they saved
if [ -n "$signal" ] && [ "$code" = 1 ] && [ -s "$stopped_note" ]; then code=$exit_interrupted; fi
event exit "$code" "${signal:--}"

if [ "$signal" = USR1 ] && [ "$code" = "$exit_interrupted" ] && [ -n "${SLURM_JOB_ID:-}" ] \
  && [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_requeues" ]; then
  event requeue
  if scontrol requeue "@own@"; then sleep 30; else event stay; fi
fi
exit "$code"
