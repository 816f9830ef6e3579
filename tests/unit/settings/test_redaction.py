from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.settings.secrets import redact, redact_text, redact_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:canary@host:5672/%2F", "amqp://user:***@host:5672/%2F"),
        ("amqp://:canary@host", "amqp://:***@host"),
        ("amqp://user@host:5672/", "amqp://user@host:5672/"),
        ("amqp://host:5672/", "amqp://host:5672/"),
        ("amqps://user:ca@na/r#y@host", "amqps://user:***@host"),
        ("user:canary@host/v", "user:***@host/v"),
        ("postgresql+psycopg://u:canary@[::1]:5432/db", "postgresql+psycopg://u:***@[::1]:5432/db"),
        ("amqp://u:canary\nmore@host", "amqp://u:***@host"),
        ("amqp://host/?auth_token=canary&heartbeat=5", "amqp://host/?auth_token=***&heartbeat=5"),
        ("amqp://u:p://canary@host", "amqp://u:***@host"),
        ("amqp://[", "amqp://["),
        ("not a url", "not a url"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    """The password goes, the rest stays, whatever the URL looks like."""
    assert redact_url(url) == shown


@given(st.text(min_size=1), st.text())
def test_no_password_survives_redaction(password, anything):
    """Whatever a password holds, nothing of it remains; and no text makes redaction fail."""
    assert redact_url(f"amqp://user:{password}@host") == "amqp://user:***@host"
    redact_url(anything)
    redact_text(anything)


def test_urls_inside_text_lose_their_passwords_one_by_one():
    """Text around and between URLs stays readable."""
    text = "tried amqp://a:canary@one, amqps://b:canary@two and 'amqp://three:5672'"
    assert redact_text(text) == "tried amqp://a:***@one, amqps://b:***@two and 'amqp://three:5672'"


def test_values_under_secret_keys_are_hidden_unless_they_are_empty():
    """The key decides: passwords, secrets, tokens and keys, but not routing keys."""
    shown = redact(
        {
            "url": ["amqp://u:canary@h"],
            "DB_PASSWORD": "canary",
            "passwd": "canary",
            "client-secret": {"nested": "canary"},
            "api_token": "",
            "token": None,
            "ssl_key": "canary",
            "SIGNING-KEY": 5,
            "routing_key": "orders.#",
            "x-dead-letter-routing-key": "orders",
            "nested": ({"aws_secret_access_key": "canary"}, 5, None),
        }
    )
    assert shown == {
        "url": ["amqp://u:***@h"],
        "DB_PASSWORD": "***",
        "passwd": "***",
        "client-secret": "***",
        "api_token": "",
        "token": None,
        "ssl_key": "***",
        "SIGNING-KEY": "***",
        "routing_key": "orders.#",
        "x-dead-letter-routing-key": "orders",
        "nested": [{"aws_secret_access_key": "***"}, 5, None],
    }


def test_what_is_redacted_is_not_changed_itself():
    """Redaction copies."""
    original = {"password": "canary", "urls": ["amqp://u:canary@h"]}
    redact(original)
    assert original == {"password": "canary", "urls": ["amqp://u:canary@h"]}
