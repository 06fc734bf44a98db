"""`implicit=turns`: which implicit term works in which step of a run."""

import pytest

from tests.helpers.steps import begin


@pytest.mark.parametrize("interval", [2, 3, 50])
def test_two_implicit_terms_work_as_often(make, interval):
    """A step that measures has both; it takes neither's turn."""
    worked = in_turns(begin(make(**TURNS, balance_interval=interval)), epochs=2)
    assert len(worked) == 16 and set(worked) == {"im_full", "im_high", "im_full+im_high"}
    assert worked.count("im_full") == worked.count("im_high")


def test_a_batch_without_objects_takes_its_turn(make):
    """Also where it should have measured; and a resumed run has the turns of one that went on."""
    trainer, empty = begin(make(**TURNS, balance_interval=4)), {4, 7}
    worked = in_turns(trainer, empty, epochs=2)
    alone = [name for name in worked[1:8] if "+" not in name]
    assert worked[5] == "im_full+im_high" and len(alone) == 6  # step 4's measurement
    assert all(one != other for one, other in zip(alone, alone[1:], strict=False))
    assert in_turns(begin(make(**TURNS, balance_interval=4)), first=1, epochs=2) == worked[8:]


TURNS = {"amplifier": "alongside", "im_high": 0.3, "implicit": "turns", "balance": "gradient", "batch": 1, "nbs": 1}


def in_turns(trainer, empty=(), first=0, epochs=1):
    """The implicit terms of every step of eight an epoch; ``empty``: the batches of epoch 0 that have no objects."""
    worked, terms = [], trainer.model._groups
    trainer.model._groups = lambda *args: worked.append(args[-1]) or terms(*args)
    for trainer.epoch in range(first, epochs):
        trainer._model_train()
        for number, batch in enumerate(trainer.train_loader):
            if trainer.epoch == 0 and number in empty:
                batch |= {key: batch[key][:0] for key in ("cls", "bboxes", "batch_idx")}
            trainer.model(trainer.preprocess_batch(batch))
    return ["+".join(name for name in names if name.startswith("im_")) for names in worked]
