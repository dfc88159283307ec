"""The farewell, in processes of its own: what is open is closed on SIGTERM, whatever the main thread is at."""

import signal
import subprocess
import sys

START = """
import os, signal, threading
from modelexpress.peer.farewell import close_at_exit, closed, undisturbed

class Thing:
    def __init__(self):
        self.lock = threading.Lock()
        close_at_exit(self)
    def close(self):
        with self.lock:
            print("closed", flush=True)
            closed(self)

def terminate():
    signal.raise_signal(signal.SIGTERM)
"""


def run(script: str) -> tuple[int, list[str]]:
    """Return the exit status of a script and the lines that it prints."""
    ended = subprocess.run([sys.executable, "-c", START + script], capture_output=True, text=True, timeout=30)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout.split()


def test_what_is_open_is_closed_at_the_end_and_what_is_closed_is_not() -> None:
    assert run("Thing(); Thing().close()") == (0, ["closed", "closed"])


def test_sigterm_closes_and_ends_the_process_as_it_would_have() -> None:
    assert run("Thing(); Thing(); terminate(); print('never')") == (-signal.SIGTERM, ["closed", "closed"])


def test_sigterm_while_closing_waits_for_locks_that_closing_holds() -> None:
    script = """
thing = Thing()
with undisturbed(), undisturbed():
    with thing.lock:
        terminate()
        print("unlocked", flush=True)
print("never")
"""
    assert run(script) == (-signal.SIGTERM, ["unlocked", "closed"])


def test_another_threads_closing_does_not_put_sigterm_off() -> None:
    script = """
Thing()
inside, over = threading.Event(), threading.Event()
def close():
    with undisturbed():
        inside.set()
        over.wait()
threading.Thread(target=close, daemon=True).start()
inside.wait()
terminate()
print("never")
"""
    assert run(script) == (-signal.SIGTERM, ["closed"])


def test_a_handler_of_the_process_is_called_once_everything_is_closed() -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
Thing(); Thing()
terminate()
print("on")
"""
    assert run(script) == (0, ["closed", "closed", "handled", "on"])


def test_an_ignored_sigterm_stays_ignored() -> None:
    assert run("signal.signal(signal.SIGTERM, signal.SIG_IGN); Thing(); terminate(); print('on')") == (
        0,
        ["on", "closed"],
    )


def test_a_thing_made_on_another_thread_is_closed_at_the_end() -> None:
    assert run("thread = threading.Thread(target=Thing); thread.start(); thread.join()") == (0, ["closed"])


def test_a_forked_child_closes_nothing_of_its_parents() -> None:
    script = """
thing = Thing()
if os.fork() == 0:
    raise SystemExit
os.wait()
print("parent", flush=True)
"""
    assert run(script) == (0, ["parent", "closed"])
