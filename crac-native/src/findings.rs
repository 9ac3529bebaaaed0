//! Obstacles found while nothing may be allocated.
//!
//! [`ObstacleSink`] keeps them in the arena; after the thaw [`ObstacleSink::into_obstacles`] turns them into the
//! [`Obstacle`]s that everybody else knows.

use std::fmt::{self, Write};

use crac_core::{Obstacle, ObstacleKind};

use crate::arena::{Arena, ArenaVec};

/// Collects what stands in the way; see the [module](self).
#[derive(Debug)]
pub(crate) struct ObstacleSink<'a> {
    findings: ArenaVec<'a, Finding<'a>>,
    /// Findings for which there was no memory.
    lost: usize,
}

#[derive(Debug, Clone, Copy)]
struct Finding<'a> {
    kind: ObstacleKind,
    subject: &'a [u8],
    owner: &'a [u8],
}

impl<'a> ObstacleSink<'a> {
    /// An empty sink.
    pub(crate) fn new(arena: &'a Arena) -> Self {
        Self { findings: ArenaVec::new(arena), lost: 0 }
    }

    /// Notes an obstacle: `sink.push(ObstacleKind::Memfd, format_args!("fd {fd}, memfd {name}"))`.
    pub(crate) fn push(&mut self, kind: ObstacleKind, subject: fmt::Arguments<'_>) {
        self.push_owned(kind, subject, format_args!(""));
    }

    /// Notes an obstacle with its likely owner, a thread's name for example.
    pub(crate) fn push_owned(&mut self, kind: ObstacleKind, subject: fmt::Arguments<'_>, owner: fmt::Arguments<'_>) {
        let arena = self.findings.arena();
        let (mut subject_text, mut owner_text) = (ArenaVec::new(arena), ArenaVec::new(arena));
        let noted = subject_text.write_fmt(subject).and_then(|()| owner_text.write_fmt(owner)).is_ok()
            && self.findings.push(Finding { kind, subject: subject_text.into_slice(), owner: owner_text.into_slice() }).is_ok();
        if !noted {
            self.lost += 1;
        }
    }

    /// Whether nothing stands in the way.
    pub(crate) fn is_empty(&self) -> bool {
        self.findings.is_empty() && self.lost == 0
    }

    /// How many obstacles were noted.
    pub(crate) fn len(&self) -> usize {
        self.findings.len() + self.lost
    }

    /// Writes the obstacles into `room`, for another process to read with [`read_obstacles`]; returns how many bytes that took.
    pub(crate) fn write_to(&self, room: &mut [u8]) -> usize {
        let mut at = 0;
        let mut put = |parts: [&[u8]; 3]| {
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            let Some(place) = room.get_mut(at..at + bytes) else { return };
            let mut place = place.iter_mut();
            parts.into_iter().flatten().zip(&mut place).for_each(|(byte, place)| *place = *byte);
            at += bytes;
        };
        for finding in self.findings.iter() {
            let number = ObstacleKind::ALL.iter().position(|kind| *kind == finding.kind).unwrap_or_default() as u16;
            // Longer text than this has no room anyway.
            let len = |text: &[u8]| (text.len().min(u16::MAX.into()) as u16).to_ne_bytes();
            let ([a, b], [c, d], [e, f]) = (number.to_ne_bytes(), len(finding.subject), len(finding.owner));
            put([&[a, b, c, d, e, f], finding.subject, finding.owner]);
        }
        at
    }

    /// The obstacles, in the order they were found. Allocates: only after the thaw.
    pub(crate) fn into_obstacles(self) -> Vec<Obstacle> {
        let mut obstacles: Vec<Obstacle> = self
            .findings
            .iter()
            .map(|finding| {
                let obstacle = Obstacle::new(finding.kind, String::from_utf8_lossy(finding.subject));
                match finding.owner {
                    [] => obstacle,
                    owner => obstacle.owned_by(String::from_utf8_lossy(owner)),
                }
            })
            .collect();
        if self.lost > 0 {
            let subject = format!("{} more obstacle(s), for whose text there was no memory", self.lost);
            obstacles.push(Obstacle::new(ObstacleKind::Kernel, subject));
        }
        obstacles
    }
}

/// The obstacles that another process's sink has [written](ObstacleSink::write_to). What is cut off is left out.
pub(crate) fn read_obstacles(mut bytes: &[u8]) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    while let Some(([a, b, c, d, e, f], rest)) = bytes.split_first_chunk() {
        let [number, subject, owner] = [[*a, *b], [*c, *d], [*e, *f]].map(|word| usize::from(u16::from_ne_bytes(word)));
        let (Some(kind), Some((subject, rest))) = (ObstacleKind::ALL.get(number), rest.split_at_checked(subject)) else { break };
        let Some((owner, rest)) = rest.split_at_checked(owner) else { break };
        let obstacle = Obstacle::new(*kind, String::from_utf8_lossy(subject));
        obstacles.push(if owner.is_empty() { obstacle } else { obstacle.owned_by(String::from_utf8_lossy(owner)) });
        bytes = rest;
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_become_obstacles_in_order() {
        let arena = Arena::new().unwrap();
        let mut sink = ObstacleSink::new(&arena);
        assert!(sink.is_empty());
        sink.push(ObstacleKind::Memfd, format_args!("fd {}", 7));
        sink.push_owned(ObstacleKind::ThreadUnstoppable, format_args!("thread 12"), format_args!("worker-{}", 1));
        assert_eq!(sink.len(), 2);
        let expected = [
            Obstacle::new(ObstacleKind::Memfd, "fd 7"),
            Obstacle::new(ObstacleKind::ThreadUnstoppable, "thread 12").owned_by("worker-1"),
        ];
        let mut room = [0; 256];
        let written = sink.write_to(&mut room);
        assert_eq!(read_obstacles(&room[..written]), expected);
        assert_eq!(
            sink.write_to(&mut room[..written - 1]),
            written - 6 - "thread 12worker-1".len(),
            "what has no room is left out"
        );
        assert_eq!(read_obstacles(&room[..written - 1]).len(), 1);
        assert_eq!(sink.into_obstacles(), expected);
    }
}
