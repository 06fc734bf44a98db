"""What a resumed run sees of an epoch is what the run that was not interrupted saw of it."""

import pytest
import torch

from tests.helpers.steps import begin


def _images(trainer, epoch):
    """Every image of an epoch as training sees it: augmented, in its order."""
    trainer.epoch = epoch
    trainer._model_train()
    return torch.cat([batch["img"].clone() for batch in trainer.train_loader])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_begins_alike_whatever_came_before(make, workers):
    """Ultralytics has loader workers on GPUs only; they hold random states and images of their own."""

    def started():
        trainer = make(teacher=None)
        trainer.args.workers = workers  # the trainer of a CPU has set 0
        return begin(trainer)

    whole, resumed = started(), started()
    assert whole.train_loader.num_workers == workers
    first, second = _images(whole, 0), _images(whole, 1)
    assert not torch.equal(first, second)
    assert torch.equal(_images(resumed, 1), second)
    for trainer in (whole, resumed):
        trainer.train_loader.close()
