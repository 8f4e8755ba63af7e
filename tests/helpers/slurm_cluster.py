"""A Slurm cluster of two nodes, n1 and n2, each with a host name and a network of its own, on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from basics import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "unshare", "nsenter", "ip", "ss")
NAMESPACES = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--uts", "--net"]
READY = "both nodes are idle"

# What the first process of a process namespace runs: when it ends, the kernel ends all others there, and undoes what
# was mounted and linked. It ends when its input does, and so when the tests are killed.
FIRST = rf"""
set -e
hostname n1
mount -t tmpfs tmpfs /run
cd /run
mkdir state spool
printf '127.0.0.1 localhost\n10.78.0.1 n1\n10.78.0.2 n2\n' >hosts
mount --bind hosts /etc/hosts

ip netns add n2
ip link add eth0 type veth peer name eth0 netns n2
ip addr add 10.78.0.1/24 dev eth0
ip -n n2 addr add 10.78.0.2/24 dev eth0
for device in lo eth0; do
  ip link set $device up
  ip -n n2 link set $device up
done

head -c 128 /dev/urandom >key
chmod 600 key
munged --key-file=key --socket=/run/socket --pid-file=/run/munged.pid --seed-file=/run/seed --log-file=/run/munged.log
cat >slurm.conf <<END
ClusterName=two
SlurmctldHost=n1
SlurmUser=root
AuthInfo=socket=/run/socket
StateSaveLocation=/run/state
SlurmdSpoolDir=/run/spool/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.%n.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MinJobAge=4 # seconds; "sbatch --wait" looks every 2 seconds then
NodeName=n[1-2] CPUs=2 RealMemory=100000
PartitionName=all Nodes=n[1-2] Default=YES
END
echo CgroupPlugin=cgroup/v1 >cgroup.conf # which is not used, and unlike v2 not asked for

export SLURM_CONF=/run/slurm.conf
slurmctld -D &
until ss --listening --tcp --numeric --no-header 'sport = 6817' | grep --quiet .; do
  kill -0 $!
  sleep 0.02
done
slurmd -D &
nsenter --net=/run/netns/n2 unshare --uts sh -c 'hostname n2; exec slurmd -D' &
until [ "$(sinfo --noheader --format='%D %T')" = '2 idle' ]; do sleep 0.02; done
echo {READY}
cat # a child: this process must go on, to reap the processes that have lost their parents
exit
"""


class Cluster:
    """Runs commands on n1."""

    def __init__(self, first: int) -> None:
        self._first = first

    def run(self, folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._first}", "--pid", "--mount", "--uts", "--net", f"--wd={folder}", "--"]
        environment = os.environ | {"SLURM_CONF": "/run/slurm.conf"} | variables
        return subprocess.run([*enter, *command], env=environment, capture_output=True, text=True, timeout=180)

    def commands(self, word: str) -> list[str]:
        """Those that run on any node and contain this word."""
        found = []
        for path in Path(f"/proc/{self._first}/root/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                found.append(path.read_text().replace("\0", " "))
        return [command for command in found if word in command]


def missing() -> str:
    """Why there can be no cluster on this machine; "" if there can."""
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"Slurm is not installed (slurm-wlm, munge): no {', '.join(absent)}"
    tried = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True)
    return f"namespaces can't be made here: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def running(log: Path) -> Iterator[Cluster]:
    """The cluster, as soon as both nodes are idle; `log` is what its daemons say. Raises RuntimeError with that."""
    with log.open("wb") as said, contextlib.ExitStack() as cleanup:
        words = [*NAMESPACES, "sh", "-c", FIRST]
        namespaces = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=said, stderr=said)
        cleanup.callback(namespaces.communicate)  # which ends its input
        wait_until(lambda: READY in log.read_text() or namespaces.poll() is not None, 30)
        if READY not in log.read_text():
            raise RuntimeError(log.read_text())
        (first,) = psutil.Process(namespaces.pid).children()
        yield Cluster(first.pid)
