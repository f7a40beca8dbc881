"""The key manager against a tiny model, in any order of moves: uses, write-once registration, one consistent log."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.attacks.test_checkpoint_record import saving
from tests.keyworld import IDENTITIES, World

from cloister.errors import CloisterError
from cloister.keys import KeptHeads, RegistrationRequest, collect_output, revoke_image, suspend_manifest

USES, OUTPUT_USES, COLLECTS = 4, 3, 2


class KeyManagerMachine(RuleBasedStateMachine):
    """``model_*`` is what a person would write on a sheet of paper."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World.make(Path(self.folder.name), names=("keys",), change=saving)
        self.world.install("data-b", "scripts")
        self.world.install_one("data-a", uses=USES)
        self.heads = KeptHeads(Path(self.folder.name) / "heads")
        self.runs: list[Any] = []
        self.open: dict[tuple[int, str], list[Any]] = {}
        self.model_uses = self.model_joined_uses = self.model_collects = 0
        self.model_registered: dict[tuple[int, str], Any] = {}
        self.model_newest: dict[int, int] = {}
        self.model_saved: dict[int, tuple[int, int]] = {}
        self.model_revoked = self.model_suspended = False

    def teardown(self) -> None:
        self.world.close()
        self.folder.cleanup()

    def expected(self, *codes: tuple[bool, int]) -> int:
        return 3404 if self.model_suspended else next((code for holds, code in codes if holds), 0)

    def done(self, act: Any) -> tuple[int, Any]:
        try:
            return 0, act()
        except CloisterError as error:
            return error.code, None

    @rule()
    def start_run(self) -> None:
        code, run = self.done(self.world.run)
        assert code == self.expected()
        if run is not None:
            self.runs.append(run)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def prepare(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.runs) - 1))
        code, obtained = self.done(lambda: self.world.attempt(self.runs[number], "prepare").obtain())
        registered = (number, "prepare") in self.model_registered
        used_up = self.model_uses >= USES
        assert code == self.expected((registered, 3415), (self.model_revoked, 3410), (used_up, 3411))
        if obtained is not None:
            self.model_uses += 1
            self.open.setdefault((number, "prepare"), []).append(obtained)
            self.model_newest[number] = max(obtained.claims.attempt, self.model_newest.get(number, 0))
            last = obtained.granted.checkpoints.last
            assert (last and (last.attempt, last.sequence)) == self.model_saved.get(number)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def train(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.runs) - 1))
        code, obtained = self.done(lambda: self.world.attempt(self.runs[number], "train").obtain())
        registered = (number, "train") in self.model_registered
        ready = (number, "prepare") in self.model_registered
        used_up = self.model_joined_uses >= OUTPUT_USES
        refusals = (registered, 3415), (self.model_revoked, 3410), (used_up, 3411), (not ready, 3417)
        assert code == self.expected(*refusals)
        if obtained is not None:
            self.model_joined_uses += 1
            made = self.model_registered[number, "prepare"]
            assert obtained.granted.inputs["joined"][1].matches(made.session.output_key("joined"))
            self.open.setdefault((number, "train"), []).append(obtained)

    @precondition(lambda self: self.model_newest)
    @rule(data=st.data(), sequence=st.integers(1, 5))
    def save_checkpoint(self, data: st.DataObject, sequence: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.model_newest)))
        obtained = data.draw(st.sampled_from(self.open[number, "prepare"]))
        saved = obtained.session.checkpoint(sequence=sequence, checkpoint="a" * 64)
        code, _ = self.done(lambda: self.world.registrar.save_checkpoint(saved))
        attempt, last = obtained.claims.attempt, self.model_saved.get(number, (0, 0))
        again = (attempt, sequence) == last  # the same bytes: its answer may have been lost
        assert code == self.expected(
            ((number, "prepare") in self.model_registered, 3415),
            (attempt != self.model_newest[number], 3440),
            (sequence <= last[1] and not again, 3441),
        )
        if code == 0:
            self.model_saved[number] = (attempt, sequence)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.open)))
        obtained = data.draw(st.sampled_from(self.open[place]))
        outputs = {name: f"{obtained.claims.attempt:064x}" for name in self.world.manifest.stages[place[1]].outputs}
        registration = obtained.session.registration(outputs=outputs, receipt_digest="0" * 64)
        request = RegistrationRequest(registration=registration)
        code, _ = self.done(lambda: self.world.registrar.register(request))
        known = self.model_registered.get(place)
        # shares are sealed afresh each time, so even the same attempt's second registration has other bytes
        assert code == self.expected((known is not None, 3429))
        if code == 0:
            self.model_registered[place] = obtained

    @precondition(lambda self: any(stage == "train" for _, stage in self.model_registered))
    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(n for n, stage in self.model_registered if stage == "train")))
        made = self.model_registered[number, "train"]
        run, identity = made.claims.run, IDENTITIES["hospital-a"]
        code, found = self.done(
            lambda: collect_output(
                self.world.manifest, "metrics", run=run, identity=identity, clients=self.world.clients
            )
        )
        assert code == self.expected((self.model_collects >= COLLECTS, 3411), (self.model_revoked, 3410))
        if found is not None:
            self.model_collects += 1
            assert found.key.matches(made.session.output_key("metrics"))

    @rule()
    def restart(self) -> None:
        self.world.restart("keys")

    @rule(minutes=st.integers(0, 30))
    def turn_clock(self, minutes: int) -> None:
        self.world.clock.turn(minutes=minutes)

    @precondition(lambda self: len(self.runs) > 1)
    @rule()
    def revoke(self) -> None:
        client, identity = self.world.registrar, IDENTITIES["hospital-a"]
        revoke_image(client, manifest=self.world.manifest, image="data-a", identity=identity, at=self.world.clock())
        self.model_revoked = True

    @precondition(lambda self: len(self.runs) > 2)
    @rule()
    def suspend(self) -> None:
        stop = {"identity": IDENTITIES["lab"], "reason": "enough", "at": self.world.clock()}
        suspend_manifest(self.world.registrar, manifest=self.world.manifest, **stop)
        self.model_suspended = True

    @invariant()
    def the_log_only_grows(self) -> None:
        self.heads.check(self.world.registrar)

    @invariant()
    def no_more_uses_than_agreed(self) -> None:
        state = self.world.services["keys"].desk.core._state
        assert state.image_uses[self.world.manifest.id, "data-a"] == self.model_uses <= USES
        assert len(state.registered) == len(self.model_registered)


KeyManagerMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestKeyManager = KeyManagerMachine.TestCase
