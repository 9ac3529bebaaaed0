//! The chart of states, drawn by asking [`step`] about every state and event: it cannot disagree with the code.

use std::collections::BTreeSet;

use crate::{
    engine::Mode,
    restore::AbortReason,
    state::{Ending, Event, RestoreFailure, Round, State, step},
};

/// The states of the coordinator as a Mermaid diagram, for the documentation.
pub fn chart() -> String {
    let mut arrows = BTreeSet::new();
    for round in rounds() {
        for state in states(round) {
            for event in events(round) {
                for on_failure in [RestoreFailure::Exit, RestoreFailure::StayShut] {
                    if let Ok((next, _)) = step(state, event, on_failure) {
                        arrows.insert((rank(state), name(state), name(next), label(event)));
                    }
                }
            }
        }
    }
    let mut text = String::from("stateDiagram-v2\n    [*] --> open\n");
    for (_, from, to, label) in arrows {
        text.push_str(&format!("    {from} --> {to}: {label}\n"));
    }
    text.push_str("    gone --> [*]\n");
    text
}

fn rounds() -> impl Iterator<Item = Round> {
    [Mode::Exit, Mode::Continue, Mode::Rehearse].into_iter().flat_map(|mode| (0..3).map(move |batches| Round { mode, batches }))
}

fn states(round: Round) -> Vec<State> {
    let faults = [None, Some(AbortReason::Resource)];
    let endings = [Ending::Aborted(AbortReason::Resource), Ending::Continued, Ending::Restored];
    let mut states = vec![State::Open, State::Sweeping { round }, State::Shut, State::Gone];
    for fault in faults {
        states.extend((0..round.batches).map(|at| State::Down { round, at, fault }));
        states.extend([State::Holding { round, fault }, State::Auditing { round, fault }, State::Capturing { round, fault }]);
    }
    for ending in endings {
        states.push(State::Releasing { round, ending });
        states.extend((0..round.batches).map(|at| State::Up { round, ending, at, failed: false }));
    }
    states
}

fn events(round: Round) -> Vec<Event> {
    vec![
        Event::Requested { round },
        Event::BatchDone { failed: false },
        Event::BatchDone { failed: true },
        Event::DownDeadline,
        Event::UpDeadline,
        Event::Held,
        Event::NotHeld,
        Event::Audited { clear: true },
        Event::Audited { clear: false },
        Event::CaptureDone,
        Event::CaptureFailed { reason: AbortReason::Engine },
        Event::CameBack,
        Event::Swept,
        Event::Released,
    ]
}

/// The name of a state, also in `Status::state`.
pub(crate) fn name(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Down { .. } => "down",
        State::Holding { .. } => "holding",
        State::Auditing { .. } => "auditing",
        State::Capturing { .. } => "capturing",
        State::Sweeping { .. } => "sweeping",
        State::Releasing { .. } => "releasing",
        State::Up { .. } => "up",
        State::Shut => "shut",
        State::Gone => "gone",
    }
}

fn rank(state: State) -> usize {
    ["open", "down", "holding", "auditing", "capturing", "sweeping", "releasing", "up", "shut", "gone"]
        .iter()
        .position(|other| *other == name(state))
        .unwrap_or(usize::MAX)
}

fn label(event: Event) -> &'static str {
    match event {
        Event::Requested { .. } => "requested",
        Event::BatchDone { .. } => "batch done",
        Event::DownDeadline => "way down too long",
        Event::UpDeadline => "way up too long",
        Event::Held => "all held",
        Event::NotHeld => "a worker is stuck",
        Event::Audited { .. } => "audited",
        Event::CaptureDone => "captured, same process",
        Event::CaptureFailed { .. } => "refused or failed",
        Event::CameBack => "restored",
        Event::Swept => "swept",
        Event::Released => "released",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_both_returns_and_no_way_out_of_gone() {
        let chart = chart();
        assert!(chart.contains("capturing --> releasing: captured, same process"));
        assert!(chart.contains("capturing --> sweeping: restored"));
        assert!(chart.contains("up --> gone: batch done"));
        assert!(!chart.contains("gone --> open"));
    }
}
