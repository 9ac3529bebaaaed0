//! Finds out what the registrations of an epoll instance were made for.
//!
//! The kernel tells the number at the time of registration. Meanwhile that number may be closed, while the file lives on under
//! a duplicate, or stand for another file. Restoring the wrong one would hand somebody else's events to a pointer.

use crac_sys::{Errno, descriptor, proc::EpollTarget};

use super::{
    Survey,
    facts::{Fact, Registration, Target},
};
use crate::arena::ArenaVec;

/// The registrations of the epoll instance `epoll`.
pub(super) fn registrations<'a>(
    survey: &Survey<'a, '_>,
    facts: &[Fact<'_>],
    epoll: &Fact<'_>,
) -> Result<&'a [Registration], Errno> {
    let mut registrations = ArenaVec::new(survey.arena);
    for target in epoll.info.epoll_targets() {
        registrations.push(Registration {
            number: target.fd,
            events: target.events,
            data: target.data,
            target: resolve(survey.own, facts, epoll.number, &target)?,
        })?;
    }
    Ok(registrations.into_slice())
}

fn resolve(own: &[i32], facts: &[Fact<'_>], epoll: i32, target: &EpollTarget) -> Result<Target, Errno> {
    let may_be = |fact: &Fact<'_>| target.inode.is_none_or(|inode| inode == fact.file.inode);
    let open = facts.binary_search_by_key(&target.fd, |fact| fact.number).ok().and_then(|at| facts.get(at));
    let is_own = open.is_none() && own.contains(&target.fd);
    match open {
        Some(fact) if may_be(fact) && is_registered(epoll, target.fd)? => return Ok(Target::Descriptor(target.fd)),
        None if is_own && is_registered(epoll, target.fd)? => return Ok(Target::Own),
        Some(_) => {}
        None if is_own => {
            // The round has taken a number that was free: whoever is registered under it gets it back for a moment.
            for fact in facts.iter().filter(|fact| fact.original == fact.number && may_be(fact)) {
                if descriptor::with_another(target.fd, fact.number, || is_registered(epoll, target.fd))?? {
                    return Ok(Target::Descriptor(fact.number));
                }
            }
        }
        None => {
            for fact in facts.iter().filter(|fact| fact.original == fact.number && may_be(fact)) {
                // The number is free: whoever is registered under it is found by giving it back for a moment.
                let Ok(lent) = descriptor::duplicate_to_free(fact.number, target.fd) else { continue };
                let found = is_registered(epoll, target.fd);
                drop(lent);
                if found? {
                    return Ok(Target::Descriptor(fact.number));
                }
            }
            return Ok(Target::Unknown);
        }
    }
    // The number stands for another file now; only the inode can tell which file it stood for.
    let mut candidates = facts.iter().filter(|fact| fact.original == fact.number && may_be(fact));
    match (target.inode, candidates.next(), candidates.next()) {
        (Some(_), Some(only), None) => Ok(Target::Descriptor(only.number)),
        _ => Ok(Target::Unknown),
    }
}

/// Whether the very file behind `number` is registered under that number.
fn is_registered(epoll: i32, number: i32) -> Result<bool, Errno> {
    match descriptor::epoll_add_idle(epoll, number) {
        Err(errno) if errno.number() == libc::EEXIST => Ok(true),
        // Files that cannot be polled, and rings of epoll instances, cannot have been registered.
        Err(_) => Ok(false),
        Ok(()) => descriptor::epoll_remove(epoll, number).map(|()| false),
    }
}
