"""What stands for the package wandb, and keeps what it is given."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from vmp.utils import boards


class FakeRun:
    def __init__(self, facts):
        self.facts, self.logged, self.defined, self.ended = facts, [], [], None

    def define_metric(self, name, **options):
        self.defined.append((name, options))

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.ended = exit_code


def install_fake_wandb(monkeypatch):
    """Return the module: `runs` are those begun, `refuse` is asked before each."""
    module = ModuleType("wandb")
    module.runs, module.refuse = [], lambda facts: None

    def init(**facts):
        module.refuse(facts)
        module.runs.append(FakeRun(facts))
        return module.runs[-1]

    module.init, module.Settings, module.Image = init, dict, lambda picture: ("image", picture)
    module.teardown, module.login = lambda: None, lambda **options: True
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(boards, "find_spec", lambda name: ModuleSpec(name, None, origin="here"))
    for name in ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return module
