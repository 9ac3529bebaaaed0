//! Finds descriptors that share one open file description: made by dup(2), they share offset and status flags.

use crac_sys::{Errno, descriptor, fs, proc::FdLink};

use super::{Survey, facts::Fact};

/// Sets [`Fact::original`] of every fact; `facts` are ordered by number before and after.
///
/// Only descriptors that look the same are compared. A socket has one open file description by nature, so that no question is
/// needed there.
pub(super) fn group(survey: &Survey<'_, '_>, facts: &mut [Fact<'_>]) -> Result<(), Errno> {
    let mut probe = Probe::new(survey);
    facts.sort_unstable_by_key(|fact| (likeness(fact), fact.number));
    for alike in facts.chunk_by_mut(|fact, next| likeness(fact) == likeness(next)) {
        group_alike(&mut probe, alike)?;
    }
    facts.sort_unstable_by_key(|fact| fact.number);
    Ok(())
}

fn group_alike(probe: &mut Probe, alike: &mut [Fact<'_>]) -> Result<(), Errno> {
    for at in 1..alike.len() {
        let Some((before, [fact, ..])) = alike.split_at_mut_checked(at) else { break };
        let is_socket = matches!(fact.link(), FdLink::Socket { .. });
        for original in before.iter().filter(|earlier| earlier.original == earlier.number) {
            if is_socket || probe.is_duplicate(original, fact)? {
                fact.original = original.number;
                break;
            }
        }
    }
    Ok(())
}

/// What duplicates have in common and can be had for nothing. Timers run while we look, so their times do not count.
type Likeness = (u64, u64, u32, u64, [u64; 4]);

fn likeness(fact: &Fact<'_>) -> Likeness {
    let info = &fact.info;
    let special = match info.timerfd {
        Some(timer) => [timer.clock as u64, u64::from(timer.settime_flags), timer.interval.0 as u64, timer.interval.1 as u64],
        None => {
            let first = info.epoll_targets().next().map_or(0, |target| target.data ^ u64::from(target.events) << 32);
            [info.eventfd_count.unwrap_or(0), info.eventfd_id.unwrap_or(0), info.signalfd_mask.unwrap_or(0), first]
        }
    };
    (fact.file.device, fact.file.inode, fact.status_flags, info.position, special)
}

/// The three ways to ask, best first. A way that does not work here is not tried twice.
struct Probe {
    query: bool,
    kcmp: bool,
}

impl Probe {
    fn new(survey: &Survey<'_, '_>) -> Self {
        Self { query: survey.duplicate_query, kcmp: survey.kcmp }
    }

    fn is_duplicate(&mut self, a: &Fact<'_>, b: &Fact<'_>) -> Result<bool, Errno> {
        if self.query {
            match descriptor::is_duplicate_by_query(a.number, b.number) {
                Ok(answer) => return Ok(answer),
                Err(_) => self.query = false,
            }
        }
        if self.kcmp {
            match descriptor::is_duplicate_by_kcmp(a.number, b.number) {
                Ok(answer) => return Ok(answer),
                Err(_) => self.kcmp = false,
            }
        }
        by_flag(a, b)
    }
}

/// Flips a status flag under one number, looks whether it flipped under the other, and flips it back.
///
/// The flag must not matter meanwhile, also to other processes that share the description: regular files ignore
/// `O_NONBLOCK`, everything else ignores `O_APPEND`.
fn by_flag(a: &Fact<'_>, b: &Fact<'_>) -> Result<bool, Errno> {
    if a.has_status(libc::O_PATH) {
        // Has no flags to flip, no offset and no state: two of them are as good as one shared.
        return Ok(false);
    }
    let flag = if a.file_type() == libc::S_IFREG { libc::O_NONBLOCK } else { libc::O_APPEND } as usize;
    let before = fs::fcntl(a.number, libc::F_GETFL, 0)?;
    fs::fcntl(a.number, libc::F_SETFL, before ^ flag)?;
    let seen = fs::fcntl(b.number, libc::F_GETFL, 0);
    fs::fcntl(a.number, libc::F_SETFL, before)?;
    Ok((seen? ^ before) & flag != 0)
}
