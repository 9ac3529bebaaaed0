//! Failures on demand: `POINT[:NTH[:HOW]]` makes the `NTH` arrival (from 1) at a named point of a capture fail.
//!
//! `HOW` is `once` (only that arrival, if nothing else is said), `for-good` (every one from it on), or `stop`: nothing fails, the
//! process stops itself there as by `SIGSTOP`, to be looked at or killed. Arrivals are counted over all captures of the engine.
//!
//! Only an engine built with [`NativeEngine::with_fault`](crate::NativeEngine::with_fault) looks at it, so no setting of the
//! environment can make a production service fail. The points of a restore are every system call of the stub: see
//! [`Trial`](crate::layout::Trial).

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use crac_core::Mode;
use crac_sys::{Errno, process};

/// What the documentation and the tests know of a point.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct FaultPoint {
    /// What it is called.
    pub name: &'static str,
    /// What fails there.
    pub what: &'static str,
    /// How the kernel says so.
    pub errno: i32,
    /// In which modes a capture comes through it.
    pub modes: &'static [Mode],
    /// Whether it is the copy of the process that comes through it in continue mode.
    pub in_copy: bool,
}

macro_rules! points {
    ($($point:ident = $name:literal, $what:literal, $errno:ident, $modes:ident, $in_copy:literal;)*) => {
        /// Where a capture can be made to fail, in the order in which it gets there.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Point { $(#[doc = $what] $point,)* }

        impl Point {
            const ALL: &'static [Point] = &[$(Point::$point,)*];

            const fn about(self) -> FaultPoint {
                match self {
                    $(Point::$point => FaultPoint {
                        name: $name, what: $what, errno: libc::$errno, modes: $modes, in_copy: $in_copy,
                    },)*
                }
            }
        }

        /// Every point of a capture, in the order in which it gets there.
        #[doc(hidden)]
        pub const FAULT_POINTS: &[FaultPoint] = &[$(Point::$point.about(),)*];
    };
}

const EVERY: &[Mode] = &[Mode::Exit, Mode::Become, Mode::Continue];
const BECOME: &[Mode] = &[Mode::Become];
const CONTINUE: &[Mode] = &[Mode::Continue];

points! {
    Open = "open", "making the image's file", EACCES, EVERY, false;
    Freeze = "freeze", "stopping the threads; they have stopped by then", EAGAIN, EVERY, false;
    Look = "look", "looking at descriptors, threads and settings", EMFILE, EVERY, false;
    Memory = "memory", "looking at mappings and pages", EIO, EVERY, true;
    Plan = "plan", "making the plan", ENOMEM, EVERY, true;
    Fork = "fork", "copying the process", ENOMEM, CONTINUE, false;
    Copy = "copy", "the first step of the copy", EPERM, CONTINUE, true;
    Write = "write", "each write of page data, tables, restorer and header", ENOSPC, EVERY, true;
    Sync = "fsync", "making the file durable", EIO, EVERY, true;
    Link = "link", "giving the nameless file a name", ENOSPC, EVERY, true;
    Rename = "rename", "replacing what has that name", EIO, EVERY, true;
    Name = "name", "making the name durable", EIO, EVERY, true;
    Exec = "exec", "executing the image", EACCES, BECOME, false;
}

/// What happens when a failure is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Once,
    ForGood,
    Stop,
}

/// A failure that is due at the `nth` arrival at a point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    point: Point,
    nth: u32,
    how: How,
    /// Never given back: there are no more of them than tests ask for.
    arrivals: &'static AtomicU32,
}

impl Fault {
    /// Called at `point`.
    ///
    /// # Errors
    ///
    /// That of the point, when the failure is due.
    pub(crate) fn check(fault: Option<Fault>, point: Point) -> Result<(), Errno> {
        let Some(fault) = fault.filter(|fault| fault.point == point) else { return Ok(()) };
        let arrival = fault.arrivals.fetch_add(1, SeqCst) + 1;
        match fault.how {
            How::Once if arrival == fault.nth => Err(Errno::new(point.about().errno)),
            How::ForGood if arrival >= fault.nth => Err(Errno::new(point.about().errno)),
            How::Stop if arrival == fault.nth => process::stop(),
            How::Once | How::ForGood | How::Stop => Ok(()),
        }
    }

    /// How often a capture has come to the point.
    pub(crate) fn arrivals(&self) -> u32 {
        self.arrivals.load(SeqCst)
    }

    /// Takes over what a copy of the process has counted.
    pub(crate) fn arrived(&self, arrivals: u32) {
        self.arrivals.fetch_max(arrivals, SeqCst);
    }
}

impl FromStr for Fault {
    type Err = NotAFault;

    fn from_str(text: &str) -> Result<Self, NotAFault> {
        let mut words = text.split(':');
        let name = words.next().unwrap_or_default();
        let point = *Point::ALL.iter().find(|point| point.about().name == name).ok_or(NotAFault)?;
        let nth = words.next().unwrap_or("1").parse().ok().filter(|nth| *nth > 0).ok_or(NotAFault)?;
        let how = match words.next() {
            None | Some("once") => How::Once,
            Some("for-good") => How::ForGood,
            Some("stop") => How::Stop,
            Some(_) => return Err(NotAFault),
        };
        match words.next() {
            None => Ok(Self { point, nth, how, arrivals: Box::leak(Box::default()) }),
            Some(_) => Err(NotAFault),
        }
    }
}

/// Text that names no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAFault;

impl fmt::Display for NotAFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a fault: write POINT[:NTH[:once|for-good|stop]] with one of ")?;
        let names: Vec<_> = FAULT_POINTS.iter().map(|point| point.name).collect();
        f.write_str(&names.join(", "))
    }
}

impl std::error::Error for NotAFault {}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(fault: &str) -> [bool; 4] {
        let fault = Some(fault.parse().unwrap());
        [Point::Write, Point::Sync, Point::Write, Point::Write].map(|point| Fault::check(fault, point).is_ok())
    }

    #[test]
    fn once_is_the_nth_arrival_alone_and_for_good_every_one_from_it_on() {
        assert_eq!(outcomes("write:2"), [true, true, false, true]);
        assert_eq!(outcomes("write:2:once"), [true, true, false, true]);
        assert_eq!(outcomes("write:2:for-good"), [true, true, false, false]);
        assert_eq!(outcomes("write"), [false, true, true, true]);
        assert_eq!(outcomes("fsync:1:for-good"), [true, false, true, true]);
    }

    #[test]
    fn what_names_no_fault_is_answered_with_the_points() {
        for text in ["", "reading", "write:0", "write:x", "write:1:twice", "write:1:once:more"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        assert!(NotAFault.to_string().ends_with("link, rename, name, exec"), "{NotAFault}");
    }
}
