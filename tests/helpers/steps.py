"""A run of the student's trainer taken apart: its start, some steps, the end of an epoch."""

SIZE = 96
OWN = {"ex_low": 0.3, "im_full": 2, "im_high": 0, "wavelet": "db2", "balance_interval": 2, "normalize": "teacher"}


def begin(trainer):
    """What a run does before its first step."""
    trainer._setup_train()
    trainer.epoch = trainer.start_epoch
    trainer.train_time_start = 0
    trainer._model_train()
    return trainer


def step(trainer, batches=2):
    """A few steps of the training loop, without its bookkeeping."""
    for _, batch in zip(range(batches), trainer.train_loader, strict=False):
        trainer.loss, trainer.loss_items = trainer.model(trainer.preprocess_batch(batch))
        trainer.loss = trainer.loss.sum()
        trainer.loss.backward()
        trainer.optimizer_step()
    trainer.loss_names = tuple(trainer.loss_items)
    trainer.tloss = trainer.loss_items
    return trainer


def finish_epoch(trainer):
    trainer.metrics, trainer.fitness = trainer.validate()
    trainer.lr = {}
    trainer.save_metrics({**trainer.label_loss_items(trainer.tloss), **trainer.metrics})
    trainer.save_model()
    return trainer
