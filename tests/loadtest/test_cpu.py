import os
import subprocess
import sys
import time

import pytest

from loadtest.cpu import cpu_ns, process_cpu_ns, process_tree


def test_cpu_time_is_that_of_the_process_itself():
    code = "import time\nuntil = time.thread_time() + 0.3\nwhile time.thread_time() < until: pass\nprint(time.process_time(), flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        own = float(child.stdout.readline())
        seen = process_cpu_ns(child.pid) / 1e9
        child.communicate(b"\n")
    assert own >= 0.3
    assert seen == pytest.approx(own, abs=0.05)


def test_every_thread_counts():
    code = (
        "import threading, time\n"
        "def burn():\n"
        "    until = time.thread_time() + 0.1\n"
        "    while time.thread_time() < until: pass\n"
        "    done.release()\n"
        "    time.sleep(30)\n"
        "done = threading.Semaphore(0)\n"
        "for _ in range(3): threading.Thread(target=burn, daemon=True).start()\n"
        "for _ in range(3): done.acquire()\n"
        "print('done', flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        seen = process_cpu_ns(child.pid) / 1e9
        child.communicate(b"\n")
    assert seen >= 0.3


def test_a_sleeping_process_costs_nothing():
    with subprocess.Popen(["sleep", "30"]) as child:
        time.sleep(0.05)
        before = cpu_ns([child.pid])
        time.sleep(0.1)
        after = cpu_ns([child.pid])
        child.kill()
    assert after[child.pid] - before[child.pid] < 5_000_000


def test_a_process_that_is_gone_counts_as_zero():
    with subprocess.Popen(["true"]) as child:
        child.wait()
        assert process_cpu_ns(child.pid) == 0


def test_the_tree_holds_children_of_children():
    with subprocess.Popen(["sh", "-c", "sleep 30 & echo $!; wait"], stdout=subprocess.PIPE) as child:
        grandchild = int(child.stdout.readline())
        assert process_tree(child.pid) == [child.pid, grandchild]
        assert child.pid in process_tree(os.getpid())
        os.kill(grandchild, 9)
