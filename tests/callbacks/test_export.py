from __future__ import annotations

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.export import PolicyExport


def test_exports_what_the_last_step_left(tmp_path):
    folder = tmp_path / "run" / "policy"
    make_trainer(3, callbacks=[PolicyExport(folder)], val_every=None).fit(PolicyStub(3))
    assert (folder / "exported").read_text() == "3"


def test_a_model_that_will_be_replaced_is_named_when_the_training_begins(tmp_path, caplog):
    for there in (False, True):
        make_trainer(1, callbacks=[PolicyExport(tmp_path)], val_every=None).fit(PolicyStub(1))
        assert (f"{tmp_path} holds a model: it is replaced" in caplog.text) == there
        (tmp_path / "zerosearch.json").touch()
