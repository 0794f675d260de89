"""The server's configuration gives each device its own subjects, behind mutual TLS."""

from __future__ import annotations

import json

from taskedge.cooperation.transport.nats.server_config import server_config, task_subject, up_subject


def test_a_device_may_report_and_answer_under_its_own_name_and_subscribe_to_its_own_tasks(tmp_path):
    text = server_config(
        tmp_path,
        name="f",
        listen="127.0.0.1",
        port=1,
        coordinator="CN=coordinator,OU=0",
        devices={"edge0": "CN=edge0,OU=1", "edge1": "CN=edge1,OU=2"},
    )
    config = json.loads(text.partition("\n")[2])
    users = {user["user"]: user["permissions"] for user in config["accounts"]["FLEET"]["users"]}
    assert users["CN=edge0,OU=1"] == {
        "subscribe": ["taskedge.task.edge0", "taskedge.who"],
        "publish": ["taskedge.up.edge0.here", "taskedge.up.edge0.answer.*"],
    }
    assert len(users) == 3
    assert config["tls"]["verify_and_map"]
    assert config["tls"]["handshake_first"]
    assert config["host"] == "127.0.0.1"


def test_subjects_name_the_device():
    assert task_subject("edge0") == "taskedge.task.edge0"
    assert up_subject("edge0", "answer", "1") == "taskedge.up.edge0.answer.1"
