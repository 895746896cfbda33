"""A worker that was killed leaves its group by the hand of the next one, not after its session."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from streams.kafka import consumer_settings
from streams.membership import NAME, forget, leave_for, remember
from streams.testing import KafkaServer, create_topics, wait_until
from streams.testing.server import free_port

TOPIC = "test.membership"
JOINS = """
import sys
from confluent_kafka import Consumer
from streams.kafka import consumer_settings
consumer = Consumer(consumer_settings(sys.argv[1], sys.argv[2], auto_offset_reset="earliest"))
consumer.subscribe([sys.argv[3]])
while not consumer.assignment():
    consumer.poll(0.1)
print(consumer.memberid(), flush=True)
while True:
    consumer.poll(0.1)
"""
SESSION_S = 45.0


@pytest.mark.parametrize("is_told", [True, False])
def test_the_next_worker_has_the_partitions_of_a_killed_one_long_before_its_session_ends(
    kafka: KafkaServer, tmp_path: Path, *, is_told: bool
) -> None:
    group = f"membership-{is_told}-{time.time_ns()}"
    create_topics(kafka.bootstrap, [TOPIC])
    command = [sys.executable, "-c", JOINS, kafka.bootstrap, group, TOPIC]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        member = process.stdout.readline().strip()
        process.kill()
    killed = time.monotonic()
    if is_told:
        remember(tmp_path, group, member)
        assert leave_for(tmp_path, f"127.0.0.1:{free_port()},{kafka.bootstrap}")  # the first of them is away
        assert not (tmp_path / NAME).exists()
    assert not leave_for(tmp_path, kafka.bootstrap)
    heir = Consumer(consumer_settings(kafka.bootstrap, group, auto_offset_reset="earliest"))
    heir.subscribe([TOPIC])

    def has_all() -> bool:
        heir.poll(0.1)
        return len(heir.assignment()) == 4

    wait_until(has_all, 2 * SESSION_S, "all partitions")
    heir.close()
    assert (time.monotonic() - killed < SESSION_S / 2) == is_told


def test_a_member_that_left_by_itself_is_nobody_any_more(kafka: KafkaServer, tmp_path: Path) -> None:
    remember(tmp_path, "membership-nobody", "no-such-member")
    assert not leave_for(tmp_path, kafka.bootstrap)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"group": 1}', "\0"])
def test_a_damaged_name_is_no_name(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    assert not leave_for(tmp_path, f"127.0.0.1:{free_port()}")


def test_while_no_broker_answers_the_name_is_kept(tmp_path: Path) -> None:
    remember(tmp_path, "group", "member")
    assert not leave_for(tmp_path, f"127.0.0.1:{free_port()}")
    assert json.loads((tmp_path / NAME).read_text()) == {"group": "group", "member": "member"}
    forget(tmp_path)
    forget(tmp_path)
    assert not (tmp_path / NAME).exists()
