"""What rank 0 hears between steps: a reason to stop, and that a machine will be taken away."""

import logging
import math
import time

import pytest
import ray

from raytrain.distributed import messages
from raytrain.distributed.messages import GroupSaves, Inbox, Outbox, log_in_driver, mailbox


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(messages, "NODES_EVERY_S", 0.02)


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_machine_that_will_go_asks_for_one_checkpoint_and_the_run_goes_on(
    cluster, often, monkeypatch, logged
):
    nodes = {}
    monkeypatch.setattr(messages, "draining_nodes", lambda: dict(nodes))
    with mailbox() as box:
        inbox = Inbox(box)
        time.sleep(0.2)
        assert not inbox.keep() and not logged
        nodes["a"] = 0
        wait_until(lambda: inbox.noticed)
        assert inbox.keep() and not inbox.keep() and inbox.stop() is None
        nodes["b"] = 0
        wait_until(lambda: inbox.noticed)
        assert inbox.keep() and len(logged) == 2 and "will be taken away" in logged[0]
        ray.get(box.put.remote("SIGTERM"))
        wait_until(lambda: inbox.stop() == "SIGTERM")


def test_a_head_that_does_not_answer_is_no_news(cluster, often, monkeypatch):
    asked = []

    def silent():
        asked.append(1)
        raise RuntimeError("no connection")

    monkeypatch.setattr(messages, "draining_nodes", silent)
    with mailbox() as box:
        inbox = Inbox(box)
        wait_until(lambda: len(asked) > 3)
        assert not inbox.keep()
        ray.get(box.put.remote("SIGTERM"))
        wait_until(inbox.stop)


def test_the_driver_waits_for_steps_and_for_nothing_else(cluster, often, logged):
    with mailbox() as box:
        outbox = Outbox(box)
        # Nothing is under way; it asks twice, since the first step may just have ended.
        assert outbox.deliver("SIGHUP") and not outbox.deliver("SIGHUP") and not logged
        inbox = Inbox(box)
        wait_until(lambda: inbox.stop() == "SIGHUP")
        wait_until(lambda: outbox.deliver("SIGHUP") and logged)
        assert outbox.deliver("SIGHUP") and outbox.deliver("SIGHUP") and len(logged) == 1
        assert logged[0].startswith("SIGHUP: a checkpoint follows after the next step")
        # The group has died; the next one begins from its checkpoint.
        Inbox(box)
        assert [outbox.deliver("SIGHUP") for _ in range(2)] == [True, False]


def test_messages_are_logged_in_their_order_and_the_last_one_before_the_mailbox_goes(
    cluster, logged
):
    with mailbox() as box:
        for number in range(100):
            log_in_driver(box, logging.INFO, f"line {number}")
    assert logged == [f"line {number}" for number in range(100)]


def test_ranks_know_when_another_one_writes_a_checkpoint(cluster):
    with mailbox() as box:
        saves = GroupSaves(box)
        assert saves.ago() == math.inf
        saves.note(True)
        assert saves.ago() == 0.0
        time.sleep(0.1)
        assert saves.ago() == 0.0
        saves.note(False)
        time.sleep(0.1)
        assert 0.1 <= saves.ago() < 10
        saves.note(True)
        Inbox(box)  # of the next group: rank 0 has died while it wrote
        assert 0.0 < saves.ago() < 10
    end = time.monotonic() + 10
    while saves.ago() != math.inf and time.monotonic() < end:
        time.sleep(0.1)
    assert saves.ago() == math.inf  # the driver is gone


def test_the_cluster_of_this_ray_tells_which_machines_go(cluster):
    """The name that Ray gives it could change with a release."""
    assert messages.draining_nodes() == {}
