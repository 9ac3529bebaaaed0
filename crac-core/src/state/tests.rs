use proptest::prelude::*;

use super::*;

fn rounds() -> impl Strategy<Value = Round> {
    (0..4usize, prop_oneof![Just(Mode::Exit), Just(Mode::Become), Just(Mode::Continue), Just(Mode::Rehearse)])
        .prop_map(|(batches, mode)| Round { mode, batches })
}

fn policies() -> impl Strategy<Value = RestoreFailure> {
    prop_oneof![Just(RestoreFailure::Exit), Just(RestoreFailure::StayShut)]
}

/// Every event, whether it can happen or not.
fn events(round: Round) -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Requested { round }),
        any::<bool>().prop_map(|failed| Event::BatchDone { failed }),
        Just(Event::DownDeadline),
        Just(Event::UpDeadline),
        Just(Event::Held),
        Just(Event::NotHeld),
        any::<bool>().prop_map(|clear| Event::Audited { clear }),
        Just(Event::CaptureDone),
        Just(Event::CaptureFailed { reason: AbortReason::Engine }),
        Just(Event::CameBack),
        Just(Event::Swept),
        Just(Event::Released),
    ]
}

/// What has been done so far in a run of the table.
#[derive(Default)]
struct Trace {
    open: bool,
    held: bool,
    told: Vec<usize>,
    untold: Vec<usize>,
    answers: usize,
    rounds: usize,
}

impl Trace {
    fn check(&mut self, effects: &[Effect], event: Event) {
        if matches!(event, Event::Held) {
            self.held = true;
        }
        if matches!(event, Event::Released) {
            self.held = false;
        }
        for effect in effects {
            match *effect {
                Effect::ShutDoor => {
                    assert!(self.open, "the door was shut twice");
                    self.open = false;
                    self.told.clear();
                    self.untold.clear();
                    self.rounds += 1;
                }
                Effect::Before(at) => {
                    assert!(!self.held && !self.open);
                    self.told.push(at);
                }
                Effect::Hold => assert!(!self.held),
                Effect::Audit | Effect::Capture { .. } | Effect::Sweep => assert!(self.held, "{effect:?} without a hold"),
                Effect::Release => {}
                Effect::After { at, .. } => {
                    assert!(!self.held, "a hook would run while the runtimes stand still");
                    self.untold.push(at);
                }
                Effect::OpenDoor => {
                    assert!(!self.held && !self.open);
                    self.open = true;
                }
                Effect::RestoreFailed => assert!(!self.open),
                Effect::Answer { .. } => self.answers += 1,
            }
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: nothing runs held that needs a runtime, nothing opens a door twice, everyone who
    /// was told to let go is told to come back in the reverse order (or was skipped because the way up was too long), and
    /// each round is answered once.
    #[test]
    fn every_sequence_keeps_the_contract(
        (policy, events) in (rounds(), policies()).prop_flat_map(|(round, policy)|
            (Just(policy), proptest::collection::vec(events(round), 0..200))),
    ) {
        let mut state = State::Open;
        let mut trace = Trace { open: true, ..Trace::default() };
        let mut cut_short = false;
        for event in events {
            let Ok((next, effects)) = step(state, event, policy) else { continue };
            cut_short = match event {
                Event::Requested { .. } => false,
                Event::UpDeadline => true,
                _ => cut_short,
            };
            trace.check(&effects, event);
            state = next;
            if matches!(state, State::Open | State::Shut | State::Gone) {
                prop_assert_eq!(trace.answers, trace.rounds);
                let mut expected = trace.told.clone();
                expected.reverse();
                if cut_short {
                    prop_assert!(expected.starts_with(&trace.untold));
                } else {
                    prop_assert_eq!(&trace.untold, &expected);
                }
                prop_assert_eq!(matches!(state, State::Open), trace.open);
            }
        }
    }

    /// From every state that can be reached there is a way back to rest by ordinary events.
    #[test]
    fn every_round_ends(round in rounds(), policy in policies(), fail in any::<bool>()) {
        let mut state = step(State::Open, Event::Requested { round }, policy).expect("a request is legal when open").0;
        for _ in 0..64 {
            let event = match state {
                State::Open | State::Shut | State::Gone => return Ok(()),
                State::Down { .. } => Event::BatchDone { failed: fail },
                State::Up { .. } => Event::BatchDone { failed: false },
                State::Holding { .. } => Event::Held,
                State::Auditing { .. } => Event::Audited { clear: true },
                State::Capturing { .. } => Event::CaptureDone,
                State::Sweeping { .. } => Event::Swept,
                State::Releasing { .. } => Event::Released,
            };
            state = step(state, event, policy).expect("the ordinary event is legal").0;
        }
        prop_assert!(false, "the round did not end: {:?}", state);
    }
}

const ROUND: Round = Round { mode: Mode::Exit, batches: 1 };

#[test]
fn a_failed_resource_still_finds_every_obstacle_and_is_never_captured() {
    let failed = State::Down { round: ROUND, at: 0, fault: None };
    let (state, effects) = step(failed, Event::BatchDone { failed: true }, RestoreFailure::Exit).unwrap();
    assert_eq!(effects, [Effect::Hold]);
    let (state, _) = step(state, Event::Held, RestoreFailure::Exit).unwrap();
    let (state, effects) = step(state, Event::Audited { clear: true }, RestoreFailure::Exit).unwrap();
    assert_eq!(effects, [Effect::Capture { rehearse: true }]);
    let (state, _) = step(state, Event::CaptureDone, RestoreFailure::Exit).unwrap();
    assert_eq!(state, State::Releasing { round: ROUND, ending: Ending::Aborted(AbortReason::Resource) });
}

#[test]
fn the_three_endings_are_three() {
    let capturing = |mode| State::Capturing { round: Round { mode, batches: 0 }, fault: None };
    let ending = |mode, event| match step(capturing(mode), event, RestoreFailure::Exit).unwrap().0 {
        State::Releasing { ending, .. } => ending,
        State::Sweeping { .. } => Ending::Restored,
        other => panic!("{other:?}"),
    };
    assert_eq!(ending(Mode::Continue, Event::CaptureDone), Ending::Continued);
    assert_eq!(ending(Mode::Rehearse, Event::CaptureDone), Ending::Aborted(AbortReason::Rehearsed));
    assert_eq!(ending(Mode::Exit, Event::CaptureFailed { reason: AbortReason::Engine }), Ending::Aborted(AbortReason::Engine));
    assert_eq!(ending(Mode::Exit, Event::CameBack), Ending::Restored);
}

#[test]
fn a_rehearsal_cannot_come_back() {
    let rehearsing = State::Capturing { round: Round { mode: Mode::Rehearse, batches: 0 }, fault: None };
    assert_eq!(step(rehearsing, Event::CameBack, RestoreFailure::Exit), Err(Illegal));
}

#[test]
fn only_a_restored_life_pays_for_a_failed_way_up() {
    let up = |ending| State::Up { round: ROUND, ending, at: 0, failed: false };
    let after = |ending, policy| step(up(ending), Event::BatchDone { failed: true }, policy).unwrap().0;
    assert_eq!(after(Ending::Restored, RestoreFailure::Exit), State::Gone);
    assert_eq!(after(Ending::Restored, RestoreFailure::StayShut), State::Shut);
    assert_eq!(after(Ending::Aborted(AbortReason::Engine), RestoreFailure::Exit), State::Open);
    assert_eq!(after(Ending::Continued, RestoreFailure::Exit), State::Open);
}
