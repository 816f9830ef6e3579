"""What comes from the declarations of the settings, besides the schema and the checks."""

from __future__ import annotations

from typing import Annotated

import pytest

from scripts import configuration_page
from workerkit import WorkerTask
from workerkit.declared import Count, Since, describe, settings_of, since
from workerkit.settings import WorkerSettings
from workerkit.task_settings import SETTING_NAMES, ResolvedSettings, TaskSettings
from workerkit.worker.loading import Resolved


def test_the_page_of_all_settings_is_current():
    """Else: python scripts/configuration_page.py."""
    assert configuration_page.PAGE.read_text("utf-8") == configuration_page.page()


@pytest.mark.parametrize("setting", settings_of(TaskSettings), ids=SETTING_NAMES)
def test_a_setting_has_the_same_default_everywhere(setting):
    """It is declared once: as attribute of the class, as key of the YAML, and in what an executor answers."""
    assert getattr(WorkerTask, setting.name) == setting.default
    assert getattr(WorkerSettings(task="a:B"), setting.name) == setting.default
    if setting in settings_of(ResolvedSettings):
        assert getattr(Resolved(max_attempts=1, delays=(1.0,), origins={}), setting.name) == setting.default


def test_a_younger_setting_says_since_when():
    """The others are as old as the first version."""
    assert since(Annotated[Count, Since("0.3")] | None) == "0.3"
    assert describe(Annotated[Count, Since("0.3")] | None) == "a whole number of at least 1"
    assert since(Count | None) == "0.1"
