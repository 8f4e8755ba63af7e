"""Other people's commands, started, put to sleep, measured, and ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.connection import Connection

import programs
import pytest
from basics import ROOT, SCRIPTS, composed, wait_until
from fault_helpers import marked

from dpexp.analysis.table import aggregate
from dpexp.config.compose import compose
from dpexp.errors import ConfigError
from dpexp.launchers import command_output as output
from dpexp.launchers import command_processes, commands
from dpexp.launchers.command_processes import CommandProcesses, CommandSpec
from dpexp.launchers.process_tree import ProcessTree
from dpexp.launchers.running_command import Rank, RunningCommand
from dpexp.measurement.script_trainer import ScriptTrainer
from dpexp.measurement.user_files import fingerprint
from dpexp.phases import PHASES
from dpexp.processes.turn import Turn
from dpexp.results import storage

TRAIN = f"{SCRIPTS}/train.py"
QUICK = (
    "measurement.repeats=1 measurement.best_sequential=false measurement.precision=null "
    "measurement.warmup_steps=3 measurement.max_seconds=0.5 measurement.baseline=none"
).split()
ONE = f"script.command=python {TRAIN} --batch {{local_batch_size}}"
EXAMPLE = f"script.command=torchrun --standalone --nproc-per-node={{workers}} {ROOT}/examples/ddp_train.py"
ARGUED = "script.command='x {workers} {loaders}'"
TORCHRUN = f"script.command=torchrun --standalone --nproc-per-node={{workers}} {TRAIN} --batch {{local_batch_size}}"
FORK = f"{ONE} --port {{port}} --fork {{workers}}"


@pytest.fixture
def forked(monkeypatch) -> None:
    """Scripts start without an import of torch, which takes longer than all else; those of torchrun do import it."""
    programs.server()
    monkeypatch.setattr("subprocess.Popen", programs.Program)


@pytest.fixture
def left(monkeypatch) -> Callable[[], list[str]]:
    """The processes of this test's commands that are still alive."""
    marker = uuid.uuid4().hex
    monkeypatch.setenv("MARKER", marker)
    return lambda: [str(process) for process in marked(marker)]


# Processes on other hosts report by TCP.


@pytest.mark.parametrize(("sent", "accepted"), [(b"key", True), (b"another", False), (None, False)])
def test_only_a_process_that_has_the_key_is_heard_from_another_host(sent, accepted):
    def report(port: int) -> None:
        with contextlib.closing(Connection(socket.create_connection(("127.0.0.1", port)).detach())) as end:
            if sent is not None:
                with contextlib.suppress(connection.AuthenticationError, EOFError, OSError):
                    connection.answer_challenge(end, sent)
                    connection.deliver_challenge(end, sent)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = threading.Thread(target=report, args=(listener.getsockname()[1],))
        process.start()
        end = commands._accept(listener, b"key")
        process.join()
    assert (end is not None) is accepted
    if end is not None:
        end.close()


# What a command may be.


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["script.command='python x.py'"], "the command is the same for one and 2 workers"),
        (["script.command='x {workers} {nodes}'"], "contains an unknown placeholder {nodes}: choose from {workers}"),
        (["script.command='x {workers} {nodes}'"], "or give it a value with script.arguments.nodes=..."),
        ([ARGUED, "script.arguments.loaders=1", "script.arguments.lr=2"], "script.arguments.lr=2: no command uses it"),
        ([ARGUED, "script.arguments.loaders=[1]"], "script.arguments.loaders=[1]: must be text"),
        ([ARGUED, "script.arguments.loaders=1", "script.arguments.seed=2"], "choose another name: letters, digits"),
        ([ARGUED, "script.arguments.loaders=1", "script.arguments.a-b=2"], "choose another name: letters, digits"),
        (["script.command='x {loaders}'", "script.arguments.loaders=1"], "is the same for one and 2 workers"),
        (["script.command='x {loaders:d} {workers}'", "script.arguments.loaders=1"], "Unknown format code 'd'"),
        (["script.command='x {workers'"], "write a literal brace as {{ or }}"),
        (['script.command="x \'{workers}"'], "script.command=x '{workers}: No closing quotation"),
        (
            ["script.command='x {workers}'", "script.baseline_arguments.lr=2"],
            "script.baseline_arguments.lr=2: no command",
        ),
        (["script.command=''"], "script.command is empty"),
        (["script.command='x {workers}'", "model=cnn"], "model can't be set for a script"),
        (["script.command='x {workers}'", "worker=2"], "worker: no such key; did you mean workers"),
        (
            ["script.command='x {workers}'", "experiment=weak_scaling"],
            "data.scope=per_worker can't be set for a script",
        ),
        (["script.command='x {workers}'", "checkpoint=true"], "checkpoint can't be set for a script"),
        (["script.baseline_command=x"], "script.command: no value; type the script's command after --"),
    ],
)
def test_a_command_that_cannot_be_measured_is_refused(overrides, said):
    with pytest.raises(ConfigError) as raised:
        composed(*overrides)
    assert said in str(raised.value)


def test_placeholders_are_filled_for_the_candidate_and_for_the_baseline():
    config = composed("script.command='t -n {workers} -b {local_batch_size} \"a b\"'", "workers=4")
    assert config.command_words == ["t", "-n", "4", "-b", "64", "a b"]
    assert config.baseline().command_words == ["t", "-n", "1", "-b", "64", "a b"]


@pytest.mark.parametrize(
    ("value", "word"), [("2", "2"), ("true", "true"), ("'1e-3'", "1e-3"), ("a 'b", "a 'b"), ("{workers}", "{workers}")]
)
def test_a_value_of_ones_own_placeholder_is_one_word_of_the_command(value, word):
    assert composed(ARGUED, f"script.arguments.loaders={value}").command_words == ["x", "2", word]


def test_the_baseline_of_a_sweep_has_the_first_value_of_each_argument():
    words = [ARGUED, "workers=1,2", "script.arguments.loaders=3,4"]
    jobs = [job.config for job in compose(words, multirun=True).jobs]
    assert [job.command_words for job in jobs] == [["x", "1", "3"], ["x", "1", "4"], ["x", "2", "3"], ["x", "2", "4"]]
    assert {tuple(job.baseline().command_words) for job in jobs} == {("x", "1", "3")}
    jobs = [job.config for job in compose([*words, "script.baseline_arguments.loaders=9"], multirun=True).jobs]
    assert {tuple(job.baseline().command_words) for job in jobs} == {("x", "1", "9")}
    jobs = [job.config for job in compose([*words, "script.baseline_command=y"], multirun=True).jobs]
    assert {tuple(job.baseline().command_words) for job in jobs} == {("y",)}


def test_arguments_are_part_of_what_is_measured():
    jobs = [composed(ARGUED, f"script.arguments.loaders={value}") for value in (1, 2)]
    assert jobs[0].sha256 != jobs[1].sha256


def test_a_program_may_lie_in_a_folder_whose_name_has_an_equals_sign():
    assert composed("script.command='./runs/lr=0.1/train {workers}'").command_words[0] == "./runs/lr=0.1/train"


def test_each_command_has_a_port_of_its_own():
    config = composed("script.command='x --nodes {workers} --port {port}'")
    assert config.words(29500)[0][-1] == "29500"


def test_workers_are_spread_over_hosts():
    config = composed("workers=4", "script.command='x {workers} {host}/{hosts} {workers_per_host} {head}:{port}'")
    assert [" ".join(words) for words in config.words(7, hosts=2, head="first")] == [
        "x 4 0/2 2 first:7",
        "x 4 1/2 2 first:7",
    ]
    assert config.baseline().words(7, hosts=2, head="first") == [["x", "1", "0/1", "1", "first:7"]]


def test_the_baseline_may_have_its_own_command():
    config = composed("script.command='x 2'", "script.baseline_command='y {workers}'")
    assert config.baseline().command_words == ["y", "1"]


def test_a_command_needs_no_quotes_on_the_command_line(dpexp):
    outcome = dpexp("script.command=python x.py --sizes 1,2 {a=b}", "workers=1")
    assert "contains an unknown placeholder {a=b}" in outcome.err


def test_the_files_that_a_command_names_are_part_of_the_job():
    config = composed(f"script.command='python {TRAIN} {{workers}}'")
    assert fingerprint(config).keys() == {TRAIN}


# What commands write.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nValueError: boom\n====\n", "ValueError: boom"),
        ("[rank1]: ValueError: boom\n[rank0]: RuntimeError: Connection closed by peer\n", "ValueError: boom"),
        ("KeyError: 'x'\ntorch.distributed.errors.ChildFailedError: \n", "KeyError: 'x'"),
        ("torch.cuda.OutOfMemoryError: no memory\n", "torch.cuda.OutOfMemoryError: no memory"),
        ("no data here\n\n", "no data here"),
        (
            "python: can't open file 'trian.py': [Errno 2] No such file\nTraceback (most recent call last):\n"
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n  exitcode  : 2\n",
            "python: can't open file 'trian.py': [Errno 2] No such file",
        ),
        (
            "usage: train.py\ntrain.py: error: unrecognized arguments: --btach\nTraceback (most recent call last):\n"
            "x.ChildFailedError:\n",
            "train.py: error: unrecognized arguments: --btach",
        ),
        (
            "Traceback (most recent call last):\nOSError: file server\n[rank1]: Traceback (most recent call last):\n"
            "[rank1]: RuntimeError: Gloo connectFullMesh failed\nTraceback (most recent call last):\nKeyError: 1\n",
            "OSError: file server",
        ),
        (
            "Traceback (most recent call last):\nKeyError: 1\n\nDuring handling of the above exception, another "
            "exception occurred:\n\nTraceback (most recent call last):\nValueError: no such key\n",
            "ValueError: no such key",
        ),
        ("", ""),
    ],
)
def test_the_line_that_says_why_is_found(tmp_path, text, line):
    (tmp_path / "err").write_text(text)
    assert output.cause(output.last_lines(tmp_path / "err")) == line


# Processes.


@contextlib.contextmanager
def started(program: str, mark: str = "") -> Iterator[subprocess.Popen]:
    """A Python process, perhaps with a mark; it has written a line when this begins."""
    environment = os.environ | ({"DPEXP_SCRIPT_MARK": mark} if mark else {})
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.readline()
        yield process
        process.kill()


SLEEPING = "import time; print('ready', flush=True); time.sleep(600)"
# A child that has left the session of its parent, ignores SIGTERM, and sleeps.
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    print("ready", flush=True)
time.sleep(600)
"""


def test_a_resumed_job_keeps_the_output_of_earlier_commands(tmp_path):
    config, earlier = composed("script.command='nothere {workers}'"), tmp_path / "output" / "3-candidate.err"
    earlier.parent.mkdir()
    earlier.write_text("earlier")
    trainer = ScriptTrainer(config, tmp_path, None)
    with pytest.raises(ConfigError, match="nothere"), trainer.running({"candidate": config}):
        pass
    assert earlier.read_text() == "earlier"
    assert (earlier.parent / "4-candidate.err").exists()


def test_all_descendants_of_a_command_are_ended():
    with started(STUBBORN, mark="mark-1."):
        found = ProcessTree("mark-1.")
        found.refresh()
        assert len(found.processes) == 2
        found.send(signal.SIGSTOP)
        found.end(grace_seconds=0.1)
        found.refresh()
        assert not found.processes


def test_another_command_is_left_alone():
    with started(SLEEPING, mark="mark-22.") as process:
        ProcessTree("mark-2.").end()
        assert process.poll() is None


def test_if_dpexp_is_killed_a_guard_ends_its_commands():
    guarded = (
        f"from dpexp.launchers.commands import end_on_parent_death\nwith end_on_parent_death('mark-3.'): {SLEEPING}"
    )
    with started(SLEEPING, mark="mark-3.0") as process, started(guarded) as dpexp:
        os.kill(process.pid, signal.SIGSTOP)
        dpexp.kill()
        assert process.wait(timeout=30) < 0


def test_the_sitecustomize_of_the_user_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    path = os.pathsep.join([str(command_processes.SCRIPT_HOOK), str(tmp_path)])
    run = subprocess.run(
        [sys.executable, "-c", "print('then the program')"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split("\n")[:2] == ["mine", "then the program"]


# Whole jobs.


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_script_is_measured_with_its_baseline_and_its_phases(dpexp, tmp_path, left):
    quick = [text for text in QUICK if "baseline" not in text]
    outcome = dpexp(
        *quick,
        f"{EXAMPLE} --shared-memory",
        f"script.baseline_command=python {ROOT}/examples/ddp_train.py",
    )
    assert outcome.status == 0, outcome.err
    result = storage.read(tmp_path / "out" / "result.json")
    block = result.blocks[0]
    assert set(block.arms) == {"baseline", "candidate"}
    assert {name: arm.samples_per_step for name, arm in block.arms.items()} == {
        "baseline": 64,
        "candidate": 128,
    }
    for arm in block.arms.values():
        assert {"data", "compute", "update", "communicate"} <= arm.phases.keys() <= set(PHASES)
        for values in arm.phases.values():
            assert {len(step) for step in values} == {len(arm.processes)}
        assert len({len(values) for values in arm.phases.values()}) == 1
        assert len(arm.turns) == len(arm.first_steps) >= 2
        assert arm.between_epochs_seconds == 0
    assert [len(arm.processes) for arm in block.arms.values()] == [1, 2]
    assert set(block.arms["baseline"].phases) == set(PHASES)
    assert not any(process.by_ddp for process in block.arms["candidate"].processes)  # but in memory
    assert not result.trainings
    (row,) = aggregate([tmp_path / "out"]).measured
    assert row.samples_per_second == pytest.approx(10_000 / row.seconds.value)
    assert "accuracy" not in outcome.out
    assert {path.suffix for path in (tmp_path / "out" / "output").iterdir()} == {".out", ".err"}
    assert not left()


LAUNCHED = {
    "spawn": f"python {TRAIN} --port {{port}} --spawn {{workers}}",
    "lightning": f"python {ROOT}/examples/lightning_train.py --shared-memory --devices {{workers}}",
    "accelerate": "accelerate launch --multi_gpu --num_processes {workers} --num_machines 1 --mixed_precision bf16 "
    f"--dynamo_backend no {ROOT}/examples/accelerate_train.py --shared-memory",  # on CPUs, all the same
    "fsdp2": f"torchrun --standalone --nproc-per-node={{workers}} {ROOT}/examples/fsdp2_train.py",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHED)
@pytest.mark.usefixtures("forked")
def test_every_launcher_is_measured_unchanged(dpexp, tmp_path, left, launcher, monkeypatch):
    if launcher in ("lightning", "accelerate"):  # which start ranks as commands
        monkeypatch.setenv(programs.NESTED, "1")
    if launcher in ("lightning", "accelerate") and importlib.util.find_spec(launcher) is None:
        pytest.skip(f"{launcher} is not installed")
    outcome = dpexp(*QUICK, f"script.command={LAUNCHED[launcher]}")
    assert outcome.status == 0, outcome.err
    (block,) = storage.read(tmp_path / "out" / "result.json").blocks
    candidate = block.arms["candidate"]
    assert len(candidate.processes) == 2
    assert {"data", "compute", "update"} < candidate.phases.keys()
    assert {"wait", "communicate"} < candidate.phases.keys() or launcher != "spawn"
    assert all(process.by_ddp for process in candidate.processes) is (launcher == "spawn")  # and not in memory
    assert not left()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_values_of_an_argument_are_measured_against_one_baseline_and_compared(dpexp, tmp_path, left):
    quick = [text for text in QUICK if "baseline" not in text]
    command = f"script.command=python {TRAIN} --steps {{steps}}"
    outcome = dpexp("-m", *quick, command, "workers=1", "script.arguments.steps=800000,900000")
    assert outcome.status == 0, outcome.err
    rows = aggregate([tmp_path / "out"]).measured
    assert [(row.series, row.baseline_arguments) for row in rows] == [
        ("steps=800000", "steps=800000"),
        ("steps=900000", "steps=800000"),
    ]
    assert "steps=900000 with 1 worker" in outcome.out
    assert "over one process with steps=800000 and as many threads as a worker" in outcome.out
    assert not left()


FAULTS = {
    "early": (ONE, "--fault early", 1, "it exited with status 1 before a torch optimizer took a step: no data"),
    "no step": (ONE, "--fault 'no step'", 1, "before a torch optimizer took a step: nothing to train"),
    "raise": (FORK, "--fault raise", 2, "it exited with status 1 after "),
    "restarts": (
        TORCHRUN.replace("--standalone", "--standalone --max-restarts=9"),
        "--fault raise",
        1,
        "--max-restarts",
    ),
    "stop": (ONE, "--fault stop", 1, "it exited with status 1 after at least 4 steps: the loss is NaN"),
    "late end": (FORK, "--fault exit", 2, "it exited with status 1 after "),
    "uneven": (FORK, "--steps 40 --fault uneven", 2, "rank 1 finished after 35 steps, before the others"),
    "join": (FORK, "--fault join", 2, "rank 1 ran no further steps for 4 s, but the others did"),
    "short": (ONE, "--steps 12", 1, "the script ended before it could be measured"),
    "hang": (ONE, "--fault hang", 1, "no step for 4 s after "),
    "fewer": (ONE + " --steps 9{workers}", "", 2, "started 1 process, not 2"),
    "absent": ("script.command=nothere {workers}", "", 2, "script.command: nothere: No such file or directory"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("forked")
def test_a_fault_is_explained_in_one_line_and_leaves_no_process(dpexp, left, monkeypatch, fault):
    command, options, workers, said = FAULTS[fault]
    patience = ["launch.timeout_seconds=4"] if fault in ("hang", "join") else []
    if fault == "restarts":
        monkeypatch.setattr(command_processes, "EXIT_SECONDS", 0.5)
    until_the_fault = "measurement.max_seconds=600"
    outcome = dpexp(*QUICK, f"{command} {options}", f"workers={workers}", until_the_fault, *patience)
    assert outcome.status in (1, 2)
    assert said in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    if fault in ("raise", "restarts"):
        assert "ValueError: boom in step 20" in outcome.err
    assert not left()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_script_may_be_measured_with_gradients_exchanged_in_shared_memory(dpexp, tmp_path, left):
    outcome = dpexp(*QUICK, f"{FORK} --fault 'no hook'", "workers=2", "script.exchange=shared_memory")
    assert outcome.status == 0, outcome.err
    (row,) = aggregate([tmp_path / "out"]).measured
    assert row.exchange == "shared_memory"
    assert not left()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_shared_memory_may_take_turns_with_the_script_as_it_is(dpexp, tmp_path):
    outcome = dpexp(*QUICK, FORK, "workers=2", "measurement.shared_memory=always")
    assert outcome.status == 0, outcome.err
    (row,) = aggregate([tmp_path / "out"]).measured
    assert row.shared_memory_speedup.is_known
    assert "With gradients exchanged in shared memory instead of over gloo, training is" in outcome.out


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_script_without_a_model_that_could_share_memory_is_reported(dpexp):
    outcome = dpexp(*QUICK, f"{FORK} --fault 'no ddp'", "workers=2", "script.exchange=shared_memory")
    assert outcome.status == 1
    assert "created no DistributedDataParallel model whose gradients could be exchanged in shared memory" in outcome.err


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_the_threads_that_a_script_sets_itself_are_a_result(dpexp, tmp_path, left):
    outcome = dpexp(*QUICK, f"{ONE} --fault threads", "workers=1")
    assert outcome.status == 0, outcome.err
    (block,) = storage.read(tmp_path / "out" / "result.json").blocks
    assert block.arms["candidate"].threads == 2
    assert not left()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_script_that_sets_its_threads_has_no_best_sequential_arm(dpexp, tmp_path):
    own = [text for text in QUICK if "baseline" not in text and "best_sequential" not in text]
    command = f"{FORK} --fault threads"
    outcome = dpexp(*own, command, f"script.baseline_command=python {TRAIN} --fault threads", "workers=2")
    assert outcome.status == 0, outcome.err
    (block,) = storage.read(tmp_path / "out" / "result.json").blocks
    assert {name: arm.threads for name, arm in block.arms.items()} == {"baseline": 2, "candidate": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_script_that_ends_keeps_its_rounds(dpexp, tmp_path, left):
    """There is time for ten times as many steps as it makes."""
    outcome = dpexp(*QUICK, f"{ONE} --steps 3000", "workers=1", "measurement.max_seconds=600")
    assert outcome.status == 0, outcome.err
    (block,) = storage.read(tmp_path / "out" / "result.json").blocks
    assert 3 < sum(map(len, block.arms["candidate"].turns)) < 3000
    assert not left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_in_the_middle_of_turns_leaves_no_process(tmp_path, left, monkeypatch, number):
    monkeypatch.setenv(programs.NESTED, "1")
    command = [sys.executable, "-m", "dpexp", *QUICK, ONE, "workers=1", f"hydra.run.dir={tmp_path}/out"]
    turns = ["measurement.max_seconds=600", "measurement.baseline=paired"]  # one of the two is always stopped
    process = programs.Program([*command, *turns], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: any("stopped" in one for one in left()))
    process.send_signal(number)
    process.wait()
    assert wait_until(lambda: not left())


def test_a_step_of_several_processes_ends_at_the_mean_of_their_times(tmp_path):
    spec = CommandSpec("2 workers", [["true"]], ranks=2, threads=1, global_batch_size=1, exchange=None)
    command = RunningCommand(spec, CommandProcesses(spec, 0, tmp_path, uuid.uuid4().hex), timeout_seconds=30)
    ends = [connection.Pipe(), connection.Pipe()]
    for rank, (ours, theirs) in enumerate(ends):
        theirs.send(([0.0, 1.0, 2.0 + 2 * rank, 6.0], None))
        command.ranks.append(Rank(ours, rank, threads=1, ahead_seconds=0.0))
    assert command.run_turn(Turn(untimed_steps=1, timed_steps=2)) == [2.0, 3.0]
