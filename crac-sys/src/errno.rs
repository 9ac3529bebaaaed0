//! The kernel's error numbers, without the C library's `errno`.

use std::{fmt, io};

/// What a system call answers.
pub type Result<T> = core::result::Result<T, Errno>;

/// An error number of the kernel (`errno(3)`). Copying, comparing and printing it allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// The error with the number `number`, for example `libc::ENOENT`.
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The positive error number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Splits what the `syscall` instruction left in the result register.
    pub(crate) const fn check(returned: usize) -> Result<usize> {
        // The kernel answers -4095..=-1 for errors and nothing else in that range.
        if returned > usize::MAX - 4095 { Err(Self((returned as isize).wrapping_neg() as i32)) } else { Ok(returned) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::EPERM => "operation not permitted",
            libc::ENOENT => "no such file or directory",
            libc::ESRCH => "no such process",
            libc::EINTR => "interrupted",
            libc::EIO => "input/output error",
            libc::EBADF => "bad file descriptor",
            libc::EAGAIN => "resource temporarily unavailable",
            libc::ENOMEM => "out of memory",
            libc::EACCES => "permission denied",
            libc::EFAULT => "bad address",
            libc::EEXIST => "file exists",
            libc::EXDEV => "not on the same filesystem",
            libc::ENOTDIR => "not a directory",
            libc::EISDIR => "is a directory",
            libc::EINVAL => "invalid argument",
            libc::EMFILE => "too many open files",
            libc::ENOTTY => "request not supported by this descriptor",
            libc::EFBIG => "file too large",
            libc::ENOSPC => "no space left on device",
            libc::EROFS => "read-only file system",
            libc::ENOSYS => "not implemented by this kernel",
            libc::EOPNOTSUPP => "operation not supported",
            libc::EDQUOT => "disk quota exceeded",
            libc::ETXTBSY => "text file busy",
            _ => return write!(f, "errno {}", self.0),
        };
        write!(f, "{name} (errno {})", self.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_page_of_results_is_an_error() {
        assert_eq!(Errno::check(7), Ok(7));
        assert_eq!(Errno::check((-2_isize) as usize), Err(Errno::new(libc::ENOENT)));
        assert_eq!(Errno::check((-4096_isize) as usize), Ok((-4096_isize) as usize));
    }
}
