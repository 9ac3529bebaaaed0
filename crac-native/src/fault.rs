//! Failures on demand: `CRAC_FAULT=POINT:NTH` makes the `NTH` arrival (from 1) at a named point fail.
//!
//! Only an engine built with [`NativeEngine::with_fault`](crate::NativeEngine::with_fault) looks at it, so no setting of the
//! environment can make a production service fail.

use std::{fmt, str::FromStr};

use crac_sys::Errno;

/// Where a capture can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// After all threads have stopped.
    Freeze,
    /// After the plan is made.
    Plan,
    /// A write of page data or metadata.
    Write,
    /// Making the file durable.
    Sync,
    /// Giving the file a name.
    Link,
    /// Replacing the target.
    Rename,
    /// Executing the image.
    Exec,
}

impl Point {
    const ALL: [(&'static str, Point); 7] = [
        ("freeze", Point::Freeze),
        ("plan", Point::Plan),
        ("write", Point::Write),
        ("fsync", Point::Sync),
        ("link", Point::Link),
        ("rename", Point::Rename),
        ("exec", Point::Exec),
    ];
}

/// A failure that is due at the `nth` arrival at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    point: Point,
    /// Arrivals left; the failure comes with the last.
    left: u32,
}

impl Fault {
    /// Called at `point`.
    ///
    /// # Errors
    ///
    /// `ENOSPC` for writes, `EIO` elsewhere, when the failure is due.
    pub(crate) fn check(fault: &mut Option<Fault>, point: Point) -> Result<(), Errno> {
        let Some(due) = fault.as_mut().filter(|fault| fault.point == point && fault.left > 0) else { return Ok(()) };
        due.left -= 1;
        match (due.left, point) {
            (0, Point::Write) => Err(Errno::new(libc::ENOSPC)),
            (0, _) => Err(Errno::new(libc::EIO)),
            _ => Ok(()),
        }
    }
}

impl FromStr for Fault {
    type Err = NotAFault;

    fn from_str(text: &str) -> Result<Self, NotAFault> {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let (_, point) = Point::ALL.into_iter().find(|(known, _)| *known == name).ok_or(NotAFault)?;
        let left = nth.parse().ok().filter(|nth| *nth > 0).ok_or(NotAFault)?;
        Ok(Self { point, left })
    }
}

/// Text that names no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAFault;

impl fmt::Display for NotAFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a fault: write POINT:NTH with one of freeze, plan, write, fsync, link, rename, exec")
    }
}

impl std::error::Error for NotAFault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_arrival_fails_and_only_that() {
        let mut fault = Some("write:2".parse().unwrap());
        let mut outcomes = [Point::Write, Point::Sync, Point::Write, Point::Write].map(|point| Fault::check(&mut fault, point));
        assert_eq!(outcomes.each_mut().map(|outcome| outcome.is_ok()), [true, true, false, true]);
        assert!("write:0".parse::<Fault>().is_err() && "reading".parse::<Fault>().is_err());
    }
}
