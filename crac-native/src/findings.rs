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
        assert_eq!(sink.into_obstacles(), expected);
    }
}
