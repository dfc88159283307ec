"""What closed readers leave to the background is done, and can be waited for."""

import subprocess
import sys
import threading

from modelexpress.transport.unmapping import MOST_AT_ONCE, afterwards, settled


def test_work_is_done_in_the_background() -> None:
    go_on, done = threading.Event(), threading.Event()

    def work() -> None:
        assert go_on.wait(20)
        done.set()

    afterwards(work)
    assert not settled(0.01)
    go_on.set()
    assert settled(20)
    assert done.is_set()


def test_too_much_of_it_is_done_by_its_owner() -> None:
    go_on, mine = threading.Event(), []
    for _ in range(MOST_AT_ONCE):
        afterwards(lambda: assert_(go_on.wait(20)))
    afterwards(lambda: mine.append(threading.current_thread()))
    assert mine == [threading.current_thread()]
    go_on.set()
    assert settled(20)


def assert_(value: bool) -> None:
    assert value


def test_the_interpreter_waits_for_it() -> None:
    code = (
        "import threading, sys\n"
        "from modelexpress.transport.unmapping import afterwards\n"
        "def work(): threading.Event().wait(0.2); sys.stdout.write('done')\n"
        "afterwards(work)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "done"


def test_a_forked_child_does_not_wait_for_its_parents() -> None:
    code = (
        "import os, threading, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from modelexpress.transport.unmapping import afterwards, settled\n"
        "go_on = threading.Event()\n"
        "afterwards(go_on.wait)\n"
        "child = os.fork()\n"
        "if not child: os._exit(0 if settled(20) else 1)\n"
        "status = os.waitpid(child, 0)[1]\n"
        "go_on.set()\n"
        "raise SystemExit(status)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
