from __future__ import annotations

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.export import PolicyExport


def test_exports_what_the_last_step_left(tmp_path):
    folder = tmp_path / "run" / "policy"
    make_trainer(3, callbacks=[PolicyExport(folder)], val_every=None).fit(PolicyStub(3))
    assert (folder / "exported").read_text() == "3"
