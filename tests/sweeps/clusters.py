"""Clusters on this machine for tests: Slurm's own daemons with two nodes, all on loopback; and runs to be carried out."""

import getpass
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from moe_cli.config.compose import load_config
from moe_cli.runs.folder import Run, open_or_create_run
from tests.cli.conftest import TINY

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
HAS_RAY = importlib.util.find_spec("ray") is not None
HAS_SLURM = all(map(shutil.which, DAEMONS)) and os.getuid() == 0
NO_RAY = "ray is not installed: pip install 'moe-cli[ray]'"
NO_SLURM = f"needs root, and Slurm's daemons: {', '.join(DAEMONS)}"
TEXT = "each expert learns from the tokens it was given and from no others " * 60
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
ReturnToService=2
SlurmdTimeout=120
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=500
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=500
PartitionName=low Nodes=one,two Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=high Nodes=one,two PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def make_runs(outputs: Path, *settings: str) -> list[Run]:
    """Makes a tiny run for each word of settings, on a text next to the outputs folder."""
    path = outputs.parent / "words.txt"
    path.write_text(TEXT)
    words = ["data=text", f"data.path={path}", *TINY]
    return [open_or_create_run(outputs, "sweep", load_config([*words, *each.split()]).config) for each in settings]


def wait_until(condition: Callable[[], object], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.2)


@contextmanager
def slurm_daemons() -> Iterator[Path]:
    """munged, slurmctld and two slurmd in a folder of their own, which is given; SLURM_CONF names their settings."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    for name in ("state", "spool.one", "spool.two"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(
        CONF.format(folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=_free_ports(3))
    )
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [
        f"--{name}={folder}/munge.{name.split('-')[0]}"
        for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")
    ]
    daemons = [_daemon(["munged", "--foreground", "--force", *munge])]
    try:
        wait_until((folder / "munge.socket").exists)
        daemons.append(_daemon(["slurmctld", "-D"]))
        daemons += [_daemon(["slurmd", "-D", "-N", name]) for name in ("one", "two")]
        wait_until(lambda: _output("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle", "idle"])
        yield folder
    finally:
        _output("scancel", "--user", getpass.getuser())
        wait_until(lambda: not _output("squeue", "-h"), 60)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        del os.environ["SLURM_CONF"]
        shutil.rmtree(folder)


def _daemon(words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
