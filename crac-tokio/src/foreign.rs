//! Runtimes that nobody attached: seen by their threads.
//!
//! # The rule
//!
//! Asked while every attached runtime is held, so that no thread of theirs waits for events. Then a thread that does not stand belongs
//! to a runtime that is not held, if it waits in epoll and
//!
//! * it is called `tokio-rt-worker`, or
//! * the epoll instance it waits for is a tokio driver's: number 0 in it is an eventfd (the driver's waker) and number 1 a socket
//!   (tokio's signal pipe).
//!
//! An idle runtime with an I/O driver always has one thread there. One that is busy at that moment, or has no I/O driver, is
//! not seen: a finding is certain, its absence is not. Threads in blocking tasks of attached runtimes are not taken for one.

use std::{fs, path::Path};

use crac_core::{Action, Audit, BoxError, Needs, Obstacle, ObstacleKind, Policy};

use crate::{
    board,
    stuck::DEFAULT_NAME,
    threads::{self, Listed},
};

/// An audit that also reports runtimes which are not held ([`ObstacleKind::RuntimeForeign`]).
///
/// Only for engines that save one process. The policies `keep` and `sever` for a thread's name take a finding off the list.
#[derive(Debug, Clone, Default)]
pub struct WithRuntimes<A> {
    audit: A,
}

impl<A: Audit> WithRuntimes<A> {
    /// What `audit` reports, and foreign runtimes.
    pub fn new(audit: A) -> Self {
        Self { audit }
    }
}

impl<A: Audit> Audit for WithRuntimes<A> {
    fn audit(&self, needs: &Needs, policy: &Policy, own: &[i32]) -> Result<Vec<Obstacle>, BoxError> {
        let mut obstacles = self.audit.audit(needs, policy, own)?;
        if needs.descriptors {
            let refused = |listed: &Listed| match policy.decide(ObstacleKind::RuntimeForeign, &listed.name) {
                Action::Keep | Action::Sever => false,
                Action::Refuse | Action::Reopen | Action::Rebind => true,
                _ => true,
            };
            obstacles.extend(foreign().into_iter().filter(refused).map(|listed| {
                Obstacle::new(ObstacleKind::RuntimeForeign, format!("thread {listed} drives a runtime that is not attached"))
            }));
        }
        Ok(obstacles)
    }
}

/// The threads that drive runtimes which are not held.
fn foreign() -> Vec<Listed> {
    let mut listed = threads::listed();
    listed.retain(|listed| !board::is_standing(listed.tid));
    listed.retain(|listed| {
        let syscall = fs::read_to_string(format!("/proc/self/task/{}/syscall", listed.tid)).unwrap_or_default();
        match epoll_waited_for(&syscall) {
            Some(epoll) => listed.name == DEFAULT_NAME || is_driver(epoll),
            None => false,
        }
    });
    listed
}

/// The epoll instance that a thread waits for, by the text of `/proc/PID/task/TID/syscall`: number and arguments of the call.
fn epoll_waited_for(syscall: &str) -> Option<i32> {
    let mut words = syscall.split_ascii_whitespace();
    let number = words.next()?.parse::<u32>().ok()?;
    let epoll = words.next()?.strip_prefix("0x")?;
    EPOLL_WAITS.contains(&number).then(|| i32::from_str_radix(epoll, 16).ok()).flatten()
}

/// epoll_wait, epoll_pwait, epoll_pwait2.
#[cfg(target_arch = "x86_64")]
const EPOLL_WAITS: [u32; 3] = [232, 281, 441];
/// epoll_pwait, epoll_pwait2, as on every newer architecture.
#[cfg(not(target_arch = "x86_64"))]
const EPOLL_WAITS: [u32; 2] = [22, 441];

fn is_driver(epoll: i32) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap_or_default();
    let is = |descriptor: Option<i32>, prefix: &str| {
        let target =
            descriptor.and_then(|descriptor| fs::read_link(Path::new("/proc/self/fd").join(descriptor.to_string())).ok());
        target.is_some_and(|target| target.to_string_lossy().starts_with(prefix))
    };
    is(target_of(&info, 0), "anon_inode:[eventfd]") && is(target_of(&info, 1), "socket:")
}

/// The descriptor registered with user data `data`, by the text of an epoll instance's fdinfo: proc(5).
fn target_of(info: &str, data: u64) -> Option<i32> {
    info.lines().find_map(|line| {
        let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
        let descriptor = words.next()?.parse().ok()?;
        let mut words = words.skip_while(|word| *word != "data:").skip(1);
        (u64::from_str_radix(words.next()?, 16).ok()? == data).then_some(descriptor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_events_names_its_instance() {
        let wait = EPOLL_WAITS[0];
        assert_eq!(epoll_waited_for(&format!("{wait} 0xb 0x7f00 0x400 0xffffffff 0x0 0x0 0x7ffc 0x7f01")), Some(11));
        assert_eq!(epoll_waited_for("202 0x7f00 0x80"), None);
        assert_eq!(epoll_waited_for("running"), None);
        assert_eq!(epoll_waited_for(""), None);
    }

    #[test]
    fn registrations_are_found_by_their_data() {
        let info = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n\
                    tfd:        5 events: 80002019 data:                0  pos:0 ino:421 sdev:f\n\
                    tfd:        8 events: 80002019 data:                1  pos:0 ino:1234 sdev:9\n\
                    tfd:        9 events: 8000201d data:     565374524900  pos:0 ino:1235 sdev:9\n";
        assert_eq!((target_of(info, 0), target_of(info, 1)), (Some(5), Some(8)));
        assert_eq!(target_of(info, 0x565374524900), Some(9));
        assert_eq!(target_of(info, 2), None);
    }
}
