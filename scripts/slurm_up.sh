#!/usr/bin/env bash
# Start a private one-node SLURM cluster on loopback, for tests (as root; no systemd, no cgroup).
#   SLURM_DEV_DIR  base folder        (default ${TMPDIR:-/tmp}/rosa-slurm)
#   SLURM_DEV_DBD  1: mariadbd+slurmdbd, so plain sacct answers (default); 0: jobcomp/filetxt, "sacct -c" only
#   SLURM_DEV_PORT first of 4 ports   (default 26817: ctld, +1 slurmd, +2 slurmdbd, +3 mariadbd)
#   SLURM_DEV_AGE  seconds for which slurmctld remembers a job that has ended (MinJobAge, default 3600)
# With --install it installs the Debian packages that are missing, and starts nothing.
# Afterwards: export SLURM_CONF=$SLURM_DEV_DIR/slurm.conf   (or: . $SLURM_DEV_DIR/env.sh)
set -euo pipefail
B=${SLURM_DEV_DIR:-${TMPDIR:-/tmp}/rosa-slurm}; DBD=${SLURM_DEV_DBD:-1}; P=${SLURM_DEV_PORT:-26817}; AGE=${SLURM_DEV_AGE:-3600}
WAIT=120 # seconds for a daemon to answer: it takes one or two, and longer where others load the machine
HERE=$(cd "$(dirname "$0")" && pwd)
T0=$(date +%s%N); say(){ printf '%6d ms  %s\n' $(( ($(date +%s%N)-T0)/1000000 )) "$*"; }
die(){ echo "slurm_up: $*" >&2; tail -n 5 "$B"/log/*.log >&2 2>/dev/null || true; SLURM_DEV_DIR=$B bash "$HERE/slurm_down.sh" || true; exit 1; }

# 1. packages, only when missing
plugin(){ compgen -G "/usr/lib/*/slurm-wlm/$1" >/dev/null; }
missing(){
  need=()
  command -v munged    >/dev/null || need+=(munge)
  command -v slurmctld >/dev/null || need+=(slurmctld)
  command -v slurmd    >/dev/null || need+=(slurmd)
  command -v sbatch    >/dev/null || need+=(slurm-client)
  plugin cred_munge.so || need+=(slurm-wlm-basic-plugins)
  [ "$DBD" = 1 ] || return 0
  command -v slurmdbd >/dev/null || need+=(slurmdbd)
  plugin accounting_storage_mysql.so || need+=(slurm-wlm-mysql-plugin)
  command -v mariadbd >/dev/null || need+=(mariadb-server-core)
  command -v my_print_defaults >/dev/null || need+=(mariadb-client-core)
}
missing
if [ ${#need[@]} -gt 0 ]; then
  wanted="${need[*]}"
  [ "$(id -u)" = 0 ] || { echo "slurm_up: not installed: $wanted; only root can install them" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
  # go on if the lists of some source are stale: what counts is whether the packages can be installed
  "${apt[@]}" update >/dev/null || echo "slurm_up: apt-get update failed" >&2
  "${apt[@]}" install -y --no-install-recommends "${need[@]}" >/dev/null || { echo "slurm_up: cannot install $wanted" >&2; exit 1; }
  missing
  [ ${#need[@]} = 0 ] || { echo "slurm_up: still missing after the installation: ${need[*]}" >&2; exit 1; }
  say "installed $wanted"
fi
[ "${1:-}" = --install ] && exit 0

# 2. clean start: stop the daemons of an earlier run, delete its state
SLURM_DEV_DIR=$B bash "$HERE/slurm_down.sh" >/dev/null
rm -rf "$B"; mkdir -p "$B"/{pid,log,state,spool,munge}; chmod 755 "$B" "$B/munge"

# 3. configuration
H=$(uname -n); H=${H%%.*}
# NoInAddrAny binds to the address to which the host name resolves: used only if that is a loopback address
case $(getent ahostsv4 "$(uname -n)" | awk 'NR==1{print $1}') in 127.*) LO=1;; *) LO=; echo "slurm_up: host name is not on loopback, slurm daemons listen on 0.0.0.0" >&2;; esac
umask 022
cat > "$B/slurm.conf" <<E
ClusterName=test
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$P
SlurmdPort=$((P+1))
${LO:+CommunicationParameters=NoInAddrAny,NoCtldInAddrAny}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$B/munge/munge.socket
CredType=cred/munge
StateSaveLocation=$B/state
SlurmdSpoolDir=$B/spool
SlurmctldPidFile=$B/pid/slurmctld.self
SlurmdPidFile=$B/pid/slurmd.self
SlurmctldLogFile=$B/log/slurmctld.log
SlurmdLogFile=$B/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=$AGE
E
if [ "$DBD" = 1 ]; then cat >> "$B/slurm.conf" <<E
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((P+2))
AccountingStoragePass=$B/munge/munge.socket
E
else cat >> "$B/slurm.conf" <<E
JobCompType=jobcomp/filetxt
JobCompLoc=$B/log/jobcomp.txt
E
fi
cat >> "$B/slurm.conf" <<E
NodeName=$H NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=$H Default=YES MaxTime=INFINITE State=UP
E
echo "export SLURM_CONF=$B/slurm.conf" > "$B/env.sh"
export SLURM_CONF=$B/slurm.conf

# 4. daemons, each in the foreground under setsid: $! is its PID
go(){ local n=$1; shift; setsid "$@" </dev/null >"$B/log/$n.out" 2>&1 & echo $! > "$B/pid/$n"; }
alive(){ local s; s=$(cut -d')' -f2 "/proc/$(cat "$B/pid/$1")/stat" 2>/dev/null | cut -c2) || true; [ -n "$s" ] && [ "$s" != Z ]; }
wait_for(){ local n=$1 end=$((SECONDS+WAIT)); shift; while [ $SECONDS -lt $end ]; do timeout 5 "$@" >/dev/null 2>&1 && return 0; alive "$n" || die "$n died: $(tail -n 3 "$B/log/$n.out")"; sleep 0.1; done; die "$n: no answer in $WAIT s"; }

head -c 64 /dev/urandom > "$B/munge/munge.key"; chmod 600 "$B/munge/munge.key"
go munged munged -F --key-file="$B/munge/munge.key" --socket="$B/munge/munge.socket" --pid-file="$B/munge/munged.pid" --log-file="$B/log/munged.log" --seed-file="$B/munge/munged.seed"
if [ "$DBD" = 1 ]; then
  mkdir -p "$B/db"
  mariadb-install-db --no-defaults --user=root --datadir="$B/db" --auth-root-authentication-method=normal --skip-test-db >"$B/log/install-db.out" 2>&1 || die "mariadb-install-db"
  say "database files made"
  # CREATE DATABASE here is required: left to slurmdbd it fails with libmariadb3 11.8.9 (client 3.4.10), which
  # answers error 5027 on a handle reused after a failed connect ("Unknown database")
  cat > "$B/init.sql" <<E
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
E
  go mariadbd mariadbd --no-defaults --user=root --datadir="$B/db" --socket="$B/db.sock" --pid-file="$B/pid/mariadbd.self" \
     --bind-address=127.0.0.1 --port=$((P+3)) --skip-name-resolve --init-file="$B/init.sql" \
     --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0
  wait_for mariadbd bash -c "exec 3<>/dev/tcp/127.0.0.1/$((P+3))"; say "mariadbd up"
  (umask 077; cat > "$B/slurmdbd.conf" <<E
AuthType=auth/munge
AuthInfo=socket=$B/munge/munge.socket
DbdHost=$H
DbdAddr=127.0.0.1
DbdPort=$((P+2))
SlurmUser=root
${LO:+CommunicationParameters=NoInAddrAny}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((P+3))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
PidFile=$B/pid/slurmdbd.self
LogFile=$B/log/slurmdbd.log
CommitDelay=0
E
  )
  wait_for munged munge -S "$B/munge/munge.socket" -n
  go slurmdbd slurmdbd -D
  wait_for slurmdbd sacctmgr -n -P show cluster; say "slurmdbd up"
fi
wait_for munged munge -S "$B/munge/munge.socket" -n; say "munged up"
go slurmctld slurmctld -D
wait_for slurmctld scontrol ping;  say "slurmctld up"
go slurmd slurmd -D
# shellcheck disable=SC2016 # the inner shell expands it, at each try
wait_for slurmd bash -c '[ "$(sinfo -h -o %t)" = idle ]'; say "slurmd up, node idle: export SLURM_CONF=$B/slurm.conf"
