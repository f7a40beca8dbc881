"""Decisions about checkpoints: keep the number and digest of the last one, and say them to the next attempt.

What the host keeps is ciphertext that only launchers of this stage in this run can make; an old one is as genuine as
the last. So the last one's number and digest are kept here, where the host cannot put them back without rolling the
log back. Numbers only grow, across attempts, and only the newest attempt that got keys may write: once its successor
has keys, an attempt that lives on adds nothing, and what the successor was told stays the last.
"""

from __future__ import annotations

from cloister.errors import RefusedError
from cloister.keys._agreement import attested, peek
from cloister.keys._attempts import require_open
from cloister.keys._binding import PART_BYTES
from cloister.keys._context import Context, Outcome, Prepared
from cloister.keys._entries import CheckpointEntry
from cloister.keys._messages import Checkpoint, CheckpointReceipt, CheckpointRecord, LogReceipt, ReleasedCheckpoint
from cloister.keys._plan import Agreement
from cloister.keys._state import checkpoint_id
from cloister.wire import Envelope, Secret, digest

__all__ = ["released_checkpoint", "save_checkpoint"]

MAX_CHECKPOINTS = 4096  # of one attempt; a launcher makes fewer, whatever its script asks for


def save_checkpoint(ctx: Context, prepared: Prepared[Envelope]) -> Outcome:
    """Keeps which checkpoint is the last."""
    envelope = prepared.body
    claimed = peek(Checkpoint, envelope)
    agreement = ctx.agreement(claimed.manifest)
    place = (agreement.id, claimed.run, claimed.stage)
    with ctx.trace.rule("the attempt was released here"):
        agreement.consumer(claimed.stage)
        source = ctx.state.released.get((*place, claimed.attempt))
        if source is None:
            raise RefusedError(3431, f"attempt {claimed.attempt} of {claimed.stage!r} got no keys here")
    with ctx.trace.rule("signed by the attested key"):
        saved = attested(Checkpoint, envelope, source)
    with ctx.trace.rule("the stage may save its state"):
        if not agreement.saves(saved.stage):
            raise RefusedError(3439, f"the manifest has no checkpoint terms for {saved.stage!r}")
    with ctx.trace.rule("the stage is not registered"):
        require_open(ctx.state, *place)
    with ctx.trace.rule("no newer attempt got keys"):
        newest = ctx.state.newest[place]
        if saved.attempt != newest:
            raise RefusedError(3440, expected=f"attempt {newest}", got=f"attempt {saved.attempt}")
    statement = digest(envelope.payload)

    def reply(receipt: LogReceipt) -> CheckpointReceipt:
        return CheckpointReceipt(
            key_manager=ctx.me,
            manifest=agreement.id,
            run=saved.run,
            stage=saved.stage,
            attempt=saved.attempt,
            sequence=saved.sequence,
            checkpoint=saved.checkpoint,
            receipt=receipt,
        )

    last = ctx.state.checkpoints.get(place)
    if last is not None and last[1].statement == statement:  # its answer was lost
        return Outcome(reply, old=last)
    with ctx.trace.rule("its number is larger than the last"):
        if last is not None and saved.sequence <= last[1].sequence:
            raise RefusedError(3441, expected=f"more than {last[1].sequence}", got=saved.sequence)
    with ctx.trace.rule("checkpoints are left"):
        if ctx.state.checkpoint_counts[*place, saved.attempt] >= MAX_CHECKPOINTS:
            raise RefusedError(3425, expected=f"at most {MAX_CHECKPOINTS} checkpoints of an attempt")
    entry = CheckpointEntry(
        at=ctx.at,
        manifest=agreement.id,
        run=saved.run,
        stage=saved.stage,
        attempt=saved.attempt,
        sequence=saved.sequence,
        checkpoint=saved.checkpoint,
        statement=statement,
    )
    return Outcome(reply, entry=entry)


def released_checkpoint(
    ctx: Context, agreement: Agreement, run: str, stage: str
) -> tuple[ReleasedCheckpoint | None, dict[str, Secret]]:
    """What an attempt gets for its checkpoints, if its stage may have any, and the secret to store with the decision.

    One contribution serves all attempts of a stage in a run, or the next could not open what the last one saved. It is
    erased when the stage ends.
    """
    if not agreement.saves(stage):
        return None, {}
    secret_id = checkpoint_id(agreement.id, run, stage)
    known = ctx.secrets.get(secret_id)
    contribution = known or Secret(ctx.entropy(PART_BYTES))
    last = ctx.state.checkpoints.get((agreement.id, run, stage))
    record = None
    if last is not None:
        entry = last[1]
        record = CheckpointRecord(attempt=entry.attempt, sequence=entry.sequence, checkpoint=entry.checkpoint)
    part = ReleasedCheckpoint(contribution=contribution.reveal(), last=record)
    return part, {} if known is not None else {secret_id: contribution}
